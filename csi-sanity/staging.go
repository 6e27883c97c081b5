package sanity

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// watchStaging notes what is mounted at the staging path or below while the suite runs, until the
// context ends: the suite itself would not notice an ext4 where an xfs was asked for.
func watchStaging(ctx context.Context, path string) <-chan map[string]int {
	result := make(chan map[string]int, 1)
	go func() {
		table, err := os.Open("/proc/self/mountinfo")
		if err != nil {
			panic(fmt.Sprintf("the mounts of this process cannot be watched: %v", err))
		}
		defer table.Close()
		seen := map[string]int{}
		for ctx.Err() == nil {
			// The kernel wakes this up at every mount and unmount.
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(table.Fd()), Events: unix.POLLPRI}}, 50)
			for _, m := range currentMounts() {
				if isBelow(m.point, path) {
					seen[m.kind()]++
				}
			}
		}
		result <- seen
	}()
	return result
}

// judgeStaging compares what was seen at the staging path with what the configuration asked for.
func judgeStaging(c Configuration, seen map[string]int, poolPath string, mounts []mount) []string {
	want := c.VolumeFilesystem
	if c.Block {
		want = "part of " + filesystemOf("/dev", mounts)
	} else if want == "" {
		want = "part of " + filesystemOf(poolPath, mounts)
	}
	if seen[want] > 0 && len(seen) == 1 {
		return nil
	}
	var texts []string
	for kind, times := range seen {
		texts = append(texts, fmt.Sprintf("%s (%d looks)", kind, times))
	}
	return []string{fmt.Sprintf("staged volumes had to be %s, but what was seen is %q", want, texts)}
}
