package sanity

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// mount is one line of mountinfo.
type mount struct {
	id         string
	root       string
	point      string
	filesystem string
}

func (m mount) String() string { return fmt.Sprintf("a %s mounted at %s", m.filesystem, m.point) }

// parseMountinfo understands the lines of /proc/<pid>/mountinfo.
func parseMountinfo(text string) []mount {
	var mounts []mount
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		// A list of optional fields of any length ends with a dash.
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+3 {
			continue
		}
		mounts = append(mounts, mount{
			id:         fields[0],
			root:       unescape(fields[3]),
			point:      unescape(fields[4]),
			filesystem: fields[dash+1],
		})
	}
	return mounts
}

// unescape turns the octal escapes for blanks, line ends and backslashes back.
func unescape(field string) string {
	for _, r := range []struct{ escaped, plain string }{{`\040`, " "}, {`\011`, "\t"}, {`\012`, "\n"}, {`\134`, `\`}} {
		field = strings.ReplaceAll(field, r.escaped, r.plain)
	}
	return field
}

func currentMounts() []mount {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		panic(fmt.Sprintf("the mounts of this process cannot be read: %v", err))
	}
	return parseMountinfo(string(text))
}

// newMounts returns the mounts that were not there before, wherever they are. The namespace is this
// run's own, so nobody else can have made them.
func newMounts(before []mount) []mount {
	return slices.DeleteFunc(currentMounts(), func(m mount) bool { return slices.Contains(before, m) })
}

// filesystemOf returns the type of the filesystem that a path is on.
func filesystemOf(path string, mounts []mount) string {
	best := mount{}
	for _, m := range mounts {
		// Later lines hide earlier ones with the same mount point.
		if isBelow(path, m.point) && len(m.point) >= len(best.point) {
			best = m
		}
	}
	return best.filesystem
}

// isBelow says whether a path is a directory or lies in it.
func isBelow(path, directory string) bool {
	return path == directory || strings.HasPrefix(path, strings.TrimSuffix(directory, "/")+"/")
}

// kind tells a whole filesystem from a directory or a file of one.
func (m mount) kind() string {
	if m.root == "/" {
		return m.filesystem
	}
	return "part of " + m.filesystem
}
