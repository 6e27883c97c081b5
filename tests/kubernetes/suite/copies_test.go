package suite

import (
	"fmt"
	"testing"
)

var copied = []struct{ class, size, larger string }{
	{"hostpath", "64Mi", "128Mi"}, {"ext4", "64Mi", "128Mi"}, {"xfs", "320Mi", "640Mi"}, {"btrfs", "256Mi", "384Mi"},
}

// TestSnapshot restores what was there, though its writer goes on, and into a larger volume too.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	for _, kind := range copied {
		t.Run(kind.class, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.claim("source", kind.class, kind.size)
			s.run("writer", "source")
			wrote := s.write("writer", "/data/file", 8)
			s.snapshot("before", "source")
			s.sh("writer", "rm /data/file; echo later > /data/later; sync")
			restore := "dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: before}"
			s.claim("restored", kind.class, kind.size, restore)
			s.claim("larger", kind.class, kind.larger, restore)
			for _, claim := range []string{"restored", "larger"} {
				s.run(claim, claim)
				s.same(claim, "/data/file", 8, wrote)
				s.sh(claim, "test ! -e /data/later; echo x > /data/own")
			}
			// More than the source could hold.
			s.sh("larger", fmt.Sprintf("dd if=/dev/zero of=/data/much bs=1M count=%d conv=fsync", megabytes(t, kind.size)))
			s.sh("writer", "test ! -e /data/own")
			s.kubectl("delete", "volumesnapshot", "before", "--timeout=60s")
			s.same("restored", "/data/file", 8, wrote)
		})
	}
}

// TestClone copies a volume whose pod goes on writing.
func TestClone(t *testing.T) {
	t.Parallel()
	for _, kind := range copied {
		t.Run(kind.class, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.claim("source", kind.class, kind.size)
			s.run("writer", "source")
			wrote := s.write("writer", "/data/file", 8)
			s.claim("copy", kind.class, kind.size, "dataSource: {kind: PersistentVolumeClaim, name: source}")
			s.run("user", "copy")
			s.same("user", "/data/file", 8, wrote)
			other := s.write("user", "/data/file", 8)
			s.same("writer", "/data/file", 8, wrote)
			s.end("writer")
			s.kubectl("delete", "pvc", "source")
			s.same("user", "/data/file", 8, other)
		})
	}
}

// TestRawBlockSnapshot restores a raw device.
func TestRawBlockSnapshot(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("source", "ext4", "64Mi", "volumeMode: Block")
	s.runBlock("writer", "source")
	wrote := s.write("writer", "/dev/disk", 8)
	s.snapshot("before", "source")
	s.write("writer", "/dev/disk", 8)
	s.claim("restored", "ext4", "64Mi", "volumeMode: Block",
		"dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: before}")
	s.runBlock("user", "restored")
	s.same("user", "/dev/disk", 8, wrote)
}

// snapshot takes one and waits until it can be used.
func (s *space) snapshot(name, claim string) {
	s.t.Helper()
	s.apply(fmt.Sprintf(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %s}
spec: {volumeSnapshotClassName: orlop, source: {persistentVolumeClaimName: %s}}
`, name, claim))
	s.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "volumesnapshot/"+name, "--timeout=60s")
}

func megabytes(t *testing.T, size string) (n int) {
	t.Helper()
	if _, err := fmt.Sscanf(size, "%dMi", &n); err != nil {
		t.Fatalf("%s: %v", size, err)
	}
	return n
}
