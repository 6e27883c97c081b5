package sanity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// poolSize leaves ample room for the volumes of one spec and for those still being removed. The
// image is sparse and takes only what is written.
const poolSize = 24 * gibibyte

// pool is the directory that the driver gets for its pool.
type pool struct {
	path string
	// image holds the pool's filesystem; empty for a plain directory.
	image string
}

// mkfsCommands make a filesystem quickly and without a discard, which would only cost time here.
var mkfsCommands = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-E", "nodiscard"},
	"xfs":   {"mkfs.xfs", "-q", "-K"},
	"btrfs": {"mkfs.btrfs", "-q", "-K"},
}

// poolImage is where the filesystem of a pool is, when it has one of its own.
func poolImage(dir string) string { return filepath.Join(dir, "pool.img") }

// makePool makes the pool's directory and, unless it is to be a plain one, a filesystem for it.
func makePool(ctx context.Context, c Configuration, dir string) (*pool, error) {
	p := &pool{path: filepath.Join(dir, "pool")}
	if err := os.Mkdir(p.path, 0o700); err != nil {
		return nil, err
	}
	if c.PoolFilesystem == "" {
		return p, nil
	}
	image := poolImage(dir)
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(image, poolSize); err != nil {
		return nil, err
	}
	mkfs, known := mkfsCommands[c.PoolFilesystem]
	if !known {
		return nil, fmt.Errorf("no way is known to make a %s", c.PoolFilesystem)
	}
	if err := run(ctx, append(mkfs, image)...); err != nil {
		return nil, err
	}
	options := "loop"
	if c.PoolFilesystem == "ext4" {
		// Nothing is gained by zeroing the inode tables of a filesystem that lives for a minute.
		options += ",noinit_itable"
	}
	// The mount command finds a free loop device, makes one if there is none, and marks it to go
	// away with the mount.
	if err := run(ctx, "mount", "-o", options, image, p.path); err != nil {
		return nil, err
	}
	p.image = image
	// The driver takes an empty directory for a new pool and nothing else.
	err := os.Remove(filepath.Join(p.path, "lost+found"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return p, err
	}
	return p, nil
}

// close unmounts the pool. That it can be unmounted, and that its loop device goes away then, also
// proves that no other loop device holds a file of it open.
func (p *pool) close() error {
	if p.image == "" {
		return nil
	}
	if err := unix.Unmount(p.path, 0); err != nil {
		// Nothing must keep the machine busy: the rest goes when the last user does.
		_ = unix.Unmount(p.path, unix.MNT_DETACH)
		return fmt.Errorf("the pool could not be unmounted: %w", err)
	}
	left := waitUntilEmpty(10*time.Second, func() []string { return describe(loopsBackedBelow(p.image)) })
	if len(left) > 0 {
		return fmt.Errorf("the pool's filesystem is still in use after the unmount: %v", left)
	}
	return nil
}

// run runs a program and puts what it said into the error.
func run(ctx context.Context, command ...string) error {
	output, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%v: %w\n%s", command, err, output)
	}
	return nil
}
