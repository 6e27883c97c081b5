// Package mountinfo reads the mount table of a process.
package mountinfo

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Mount is one line of mountinfo.
type Mount struct {
	ID   string
	Root string
	// Point is where it is mounted.
	Point string
	// Options are those of the mount, and SuperOptions those of the filesystem.
	Options, SuperOptions string
	Filesystem            string
	Source                string
}

func (m Mount) String() string { return fmt.Sprintf("a %s mounted at %s", m.Filesystem, m.Point) }

// Has says whether an option is in force, be it the mount's or the filesystem's.
func (m Mount) Has(option string) bool {
	all := strings.Split(m.Options+","+m.SuperOptions, ",")
	return slices.Contains(all, option)
}

// ReadOnly says whether nothing can be written through this mount.
func (m Mount) ReadOnly() bool { return m.Has("ro") }

// Whole says whether it is a whole filesystem, and not a directory or a file of one.
func (m Mount) Whole() bool { return m.Root == "/" }

// Parse understands the lines of /proc/<pid>/mountinfo.
func Parse(text string) []Mount {
	var mounts []Mount
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		// A list of optional fields of any length ends with a dash.
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+4 {
			continue
		}
		mounts = append(mounts, Mount{
			ID:           fields[0],
			Root:         unescape(fields[3]),
			Point:        unescape(fields[4]),
			Options:      fields[5],
			Filesystem:   fields[dash+1],
			Source:       unescape(fields[dash+2]),
			SuperOptions: fields[dash+3],
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

// Current returns the mounts that this process sees.
func Current() []Mount {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		panic(fmt.Sprintf("the mounts of this process cannot be read: %v", err))
	}
	return Parse(string(text))
}

// At returns what is mounted at exactly this path, the topmost, if anything is.
func At(path string) (Mount, bool) {
	mounts := Current()
	for _, m := range slices.Backward(mounts) {
		if m.Point == path {
			return m, true
		}
	}
	return Mount{}, false
}

// Below returns what is mounted at a directory and beneath it, the last one first.
func Below(directory string) []Mount {
	mounts := slices.DeleteFunc(Current(), func(m Mount) bool { return !IsBelow(m.Point, directory) })
	slices.Reverse(mounts)
	return mounts
}

// IsBelow says whether a path is a directory or lies in it.
func IsBelow(path, directory string) bool {
	return path == directory || strings.HasPrefix(path, strings.TrimSuffix(directory, "/")+"/")
}
