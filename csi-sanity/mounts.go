package sanity

import (
	"slices"

	"orlop/csi-sanity/mountinfo"
)

type mount = mountinfo.Mount

// newMounts returns the mounts that were not there before, wherever they are. The namespace is this
// run's own, so nobody else can have made them.
func newMounts(before []mount) []mount {
	// By what cannot change while it is mounted, as options can.
	same := func(one, two mount) bool {
		return one.ID == two.ID && one.Root == two.Root && one.Point == two.Point && one.Filesystem == two.Filesystem
	}
	return slices.DeleteFunc(mountinfo.Current(), func(m mount) bool {
		return slices.ContainsFunc(before, func(old mount) bool { return same(old, m) })
	})
}

// filesystemOf returns the type of the filesystem that a path is on.
func filesystemOf(path string, mounts []mount) string {
	best := mount{}
	for _, m := range mounts {
		// Later lines hide earlier ones with the same mount point.
		if mountinfo.IsBelow(path, m.Point) && len(m.Point) >= len(best.Point) {
			best = m
		}
	}
	return best.Filesystem
}

// kind tells a whole filesystem from a directory or a file of one.
func kind(m mount) string {
	if m.Whole() {
		return m.Filesystem
	}
	return "part of " + m.Filesystem
}
