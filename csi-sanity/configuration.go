// Package sanity runs the csi-sanity suite against the real Orlop binary, in every combination of
// backend, filesystem and pool that Orlop promises, and checks that nothing is left behind.
//
// Each configuration runs in a process and a mount namespace of its own (child.go): there it gets
// a pool on a fresh filesystem (pool.go), a driver (driver.go), one run of the suite (suite.go) and
// a search for leftovers (leaks.go). The verdict on skipped specs is in skips.go.
package sanity

// Sizes in bytes.
const (
	mebibyte = 1 << 20
	gibibyte = 1 << 30
)

// Configuration is one way of running the suite.
type Configuration struct {
	Name string
	// PoolFilesystem is made anew for the pool. Empty: the pool is a plain directory on whatever
	// filesystem the machine has for temporary files.
	PoolFilesystem string
	// Parameters are those of the storage class.
	Parameters map[string]string
	// Block asks for raw block volumes.
	Block bool
	// VolumeFilesystem is the filesystem that has to appear at the staging path. Empty: a part of
	// the pool's own filesystem (hostpath) or a device node (block) has to appear there.
	VolumeFilesystem string
	// VolumeSize is the size of the volumes, half of which is added when the suite expands them.
	VolumeSize int64
	// Attach runs the driver with --attach, room for attachLimit volumes, and what else is off by default.
	Attach bool
}

// attachLimit is how many volumes the driver may have attached: few, because the suite fills the
// node to the last one, and more than a spec attaches otherwise.
const attachLimit = 8

func hostpath(name, poolFilesystem string) Configuration {
	return Configuration{
		Name:           name,
		PoolFilesystem: poolFilesystem,
		Parameters:     map[string]string{"backend": "hostpath"},
		VolumeSize:     gibibyte,
		Attach:         true,
	}
}

func loop(name, poolFilesystem, volumeFilesystem string) Configuration {
	return Configuration{
		Name:             name,
		PoolFilesystem:   poolFilesystem,
		Parameters:       map[string]string{"backend": "loop", "csi.storage.k8s.io/fstype": volumeFilesystem},
		VolumeFilesystem: volumeFilesystem,
		VolumeSize:       gibibyte,
		Attach:           true,
	}
}

func block(name, poolFilesystem string) Configuration {
	return Configuration{
		Name:           name,
		PoolFilesystem: poolFilesystem,
		Parameters:     map[string]string{"backend": "loop"},
		Block:          true,
		VolumeSize:     gibibyte,
		Attach:         true,
	}
}

// configurations lists what is run, in this order.
func configurations() []Configuration {
	xfs := loop("loop/mount xfs", "ext4", "xfs")
	// Above the smallest size of an xfs, and with it the suite sees a size other than 1 GiB.
	xfs.VolumeSize = 512 * mebibyte
	return []Configuration{
		hostpath("hostpath/mount", "ext4"),
		loop("loop/mount ext4", "ext4", "ext4"),
		xfs,
		loop("loop/mount btrfs", "ext4", "btrfs"),
		block("loop/block", "ext4"),
		hostpath("hostpath/mount on btrfs", "btrfs"),
		loop("loop/mount ext4 on btrfs", "btrfs", "ext4"),
		loop("loop/mount ext4 on xfs", "xfs", "ext4"),
		block("loop/block on btrfs", "btrfs"),
		block("loop/block on xfs", "xfs"),
		{
			// The form of the quick start: no parameters, no attaching, and no filesystem made for the
			// pool. The size is small because the machine decides how much room there is.
			Name:       "hostpath/mount on the machine's own filesystem",
			VolumeSize: 64 * mebibyte,
		},
	}
}
