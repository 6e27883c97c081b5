package sanity

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"orlop/csi-sanity/mountinfo"
)

// loopDevice is a loop device with a file behind it.
type loopDevice struct {
	name    string
	backing string
}

func (l loopDevice) String() string { return fmt.Sprintf("%s with %s behind it", l.name, l.backing) }

// loopsBackedBelow returns the loop devices of the whole machine whose file is the given one or lies
// in the given directory. It reads sysfs only: to open a stranger's loop device could disturb it.
func loopsBackedBelow(path string) []loopDevice {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var found []loopDevice
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			// It was detached between the two looks.
			continue
		}
		backing := strings.TrimSuffix(strings.TrimSpace(string(text)), " (deleted)")
		if mountinfo.IsBelow(backing, path) {
			name := filepath.Base(filepath.Dir(filepath.Dir(file)))
			found = append(found, loopDevice{name: "/dev/" + name, backing: backing})
		}
	}
	return found
}

// leftovers lists what volumes have left behind once all of them are deleted.
func leftovers(poolPath string, before []mount) []string {
	found := describe(newMounts(before))
	found = append(found, describe(loopsBackedBelow(poolPath))...)
	for _, place := range []string{"volumes", "snapshots", "groups", "incoming", "trash"} {
		entries, err := os.ReadDir(filepath.Join(poolPath, place))
		if err != nil {
			found = append(found, fmt.Sprintf("the pool's %s cannot be read: %v", place, err))
		}
		for _, entry := range entries {
			found = append(found, filepath.Join("the pool's "+place, entry.Name()))
		}
	}
	return found
}

// waitUntilEmpty asks again and again until nothing is found or time is up, and returns what was
// found last. Loop devices and deleted volumes go away in the background.
func waitUntilEmpty(limit time.Duration, find func() []string) []string {
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		found := find()
		if len(found) == 0 || time.Now().After(end) {
			return found
		}
	}
}

// removeLeftovers takes away what a failed run left, so that the machine is as it was before: first
// the mounts, last one first, then the loop devices.
func removeLeftovers(poolPath string, before []mount) {
	mounts := newMounts(before)
	slices.Reverse(mounts)
	for _, m := range mounts {
		_ = unix.Unmount(m.Point, unix.MNT_DETACH)
	}
	for _, l := range loopsBackedBelow(poolPath) {
		device, err := os.Open(l.name)
		if err != nil {
			continue
		}
		_ = unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0)
		_ = device.Close()
	}
}

// describe makes texts of things.
func describe[T fmt.Stringer](things []T) []string {
	var texts []string
	for _, thing := range things {
		texts = append(texts, thing.String())
	}
	return texts
}
