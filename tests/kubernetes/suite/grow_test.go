package suite

import "testing"

// TestGrowOnline grows volumes in use. A mounted ext4 grows only where the driver has CAP_SYS_RESOURCE, so it is not
// among them: see TestGrowOffline.
func TestGrowOnline(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct{ class, size, larger string }{
		{"hostpath", "64Mi", "192Mi"}, {"xfs", "320Mi", "512Mi"}, {"btrfs", "256Mi", "384Mi"},
	} {
		t.Run(kind.class, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.claim("data", kind.class, kind.size)
			s.run("user", "data")
			wrote := s.write("user", "/data/file", 8)
			s.grow("data", kind.larger)
			s.becomes("pvc/data", ".status.capacity.storage", kind.larger)
			s.sh("user", "dd if=/dev/zero of=/data/much bs=1M count=120 conv=fsync")
			s.same("user", "/data/file", 8, wrote)
		})
	}
}

func TestGrowRawBlock(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("disk", "ext4", "64Mi", "volumeMode: Block")
	s.runBlock("user", "disk")
	wrote := s.write("user", "/dev/disk", 8)
	s.grow("disk", "128Mi")
	s.becomes("pvc/disk", ".status.capacity.storage", "128Mi")
	if size := s.sh("user", "blockdev --getsize64 /dev/disk"); size != "134217728" {
		t.Errorf("the device has %s bytes", size)
	}
	s.same("user", "/dev/disk", 8, wrote)
}

// TestGrowOffline grows a volume that no pod uses; the next pod has the room.
func TestGrowOffline(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct{ class, size, larger string }{
		{"hostpath", "64Mi", "192Mi"}, {"ext4", "64Mi", "192Mi"}, {"xfs", "320Mi", "512Mi"},
	} {
		t.Run(kind.class, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.claim("data", kind.class, kind.size)
			s.run("first", "data")
			wrote := s.write("first", "/data/file", 8)
			s.end("first")
			s.grow("data", kind.larger)
			s.run("next", "data")
			s.becomes("pvc/data", ".status.capacity.storage", kind.larger)
			s.sh("next", "dd if=/dev/zero of=/data/much bs=1M count=120 conv=fsync")
			s.same("next", "/data/file", 8, wrote)
		})
	}
}

// TestGrowTooMuch asks for more than there is, and then for what there is.
func TestGrowTooMuch(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("data", "hostpath", "64Mi")
	s.run("user", "data")
	wrote := s.write("user", "/data/file", 8)
	s.grow("data", "100Gi")
	s.becomes("pvc/data", ".status.allocatedResourceStatuses.storage", "ControllerResizeInfeasible")
	s.event("data", "room")
	s.grow("data", "96Mi")
	s.becomes("pvc/data", ".status.capacity.storage", "96Mi")
	s.sh("user", "dd if=/dev/zero of=/data/much bs=1M count=72 conv=fsync")
	s.same("user", "/data/file", 8, wrote)
}

func (s *space) grow(claim, size string) {
	s.t.Helper()
	s.kubectl("patch", "pvc", claim, "-p", `{"spec": {"resources": {"requests": {"storage": "`+size+`"}}}}`)
}
