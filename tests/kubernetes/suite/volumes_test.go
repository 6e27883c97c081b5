package suite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"
)

// TestDynamic takes a volume of each kind through a life: made for a pod, written, read by the next pod, bounded by its
// size, and gone with its claim.
func TestDynamic(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct{ class, size string }{
		{"hostpath", "64Mi"}, {"ext4", "64Mi"}, {"xfs", "320Mi"}, {"btrfs", "256Mi"}, {"second", "64Mi"},
	} {
		t.Run(kind.class, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.claim("data", kind.class, kind.size)
			s.run("first", "data")
			wrote := s.write("first", "/data/file", 8)
			s.end("first")
			s.run("next", "data")
			s.same("next", "/data/file", 8, wrote)
			if out, err := s.try("next", "dd if=/dev/zero of=/data/more bs=1M count=500"); err == nil {
				t.Errorf("a volume of %s took 400 MiB more: %s", kind.size, out)
			}
			s.same("next", "/data/file", 8, wrote)
			place := placeOf(s, "data")
			s.end("next")
			s.kubectl("delete", "pvc", "data")
			freed(t, place)
		})
	}
}

func TestRawBlock(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("disk", "ext4", "64Mi", "volumeMode: Block")
	s.runBlock("first", "disk")
	if size := s.sh("first", "blockdev --getsize64 /dev/disk"); size != "67108864" {
		t.Errorf("the device has %s bytes", size)
	}
	wrote := s.write("first", "/dev/disk", 8)
	s.end("first")
	s.runBlock("next", "disk")
	s.same("next", "/dev/disk", 8, wrote)
}

// TestRetain keeps a volume whose claim is deleted, with what is in it.
func TestRetain(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("data", "kept", "64Mi")
	s.run("writer", "data")
	wrote := s.write("writer", "/data/file", 1)
	pv := s.get("pvc/data", ".spec.volumeName")
	s.end("writer")
	s.kubectl("delete", "pvc", "data")
	s.becomes("pv/"+pv, ".status.phase", "Released")
	t.Cleanup(func() {
		s.kubectl("patch", "pv", pv, "-p", `{"spec": {"persistentVolumeReclaimPolicy": "Delete"}}`)
		s.kubectl("wait", "--for=delete", "pv/"+pv, "--timeout=60s")
	})
	// An administrator gives it to another claim.
	s.kubectl("patch", "pv", pv, "--type=json", "-p", `[{"op": "remove", "path": "/spec/claimRef"}]`)
	s.claim("again", "kept", "64Mi", "volumeName: "+pv)
	s.run("reader", "again")
	s.same("reader", "/data/file", 1, wrote)
	s.end("reader")
	s.kubectl("delete", "pvc", "again")
}

// TestFsGroup lets a pod that is not root write through its group.
func TestFsGroup(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"hostpath", "ext4"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.claim("data", class, "64Mi")
			s.run("user", "data", "securityContext: {runAsUser: 1234, runAsGroup: 1234, runAsNonRoot: true, fsGroup: 4321}")
			s.sh("user", "umask 007; echo mine > /data/file; mkdir /data/directory")
			if owner := s.sh("user", "stat -c %u:%g /data/file"); owner != "1234:4321" {
				t.Errorf("the file is %s", owner)
			}
			if group := s.sh("user", "stat -c %g /data"); group != "4321" {
				t.Errorf("the volume's group is %s", group)
			}
		})
	}
}

// TestInline gives a pod a volume of its own that no claim is made for.
func TestInline(t *testing.T) {
	for _, backend := range []string{"hostpath", "loop"} {
		t.Run(backend, func(t *testing.T) {
			s := newSpace(t)
			before := volumes(t)
			source := fmt.Sprintf("csi: {driver: %s, volumeAttributes: {size: 64Mi, backend: %s, pool: main}}", driverName, backend)
			s.pod("user", []volume{{path: "/data", source: source}})
			s.ready("user")
			wrote := s.write("user", "/data/file", 8)
			s.same("user", "/data/file", 8, wrote)
			if out, err := s.try("user", "dd if=/dev/zero of=/data/more bs=1M count=100"); err == nil {
				t.Errorf("64 MiB took 100 MiB more: %s", out)
			}
			s.end("user")
			within(t, time.Minute, "removal of the inline volume", func() error {
				if left := volumes(t); left != before {
					return fmt.Errorf("%s, and %s before the pod", left, before)
				}
				return nil
			})
		})
	}
}

// TestGenericEphemeral has a claim that comes and goes with its pod.
func TestGenericEphemeral(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.pod("user", []volume{{path: "/data", source: `ephemeral: {volumeClaimTemplate: {spec: {
		storageClassName: xfs, accessModes: [ReadWriteOnce], resources: {requests: {storage: 320Mi}}}}}`}})
	s.ready("user")
	s.write("user", "/data/file", 8)
	place := placeOf(s, "user-v0")
	s.end("user")
	freed(t, place)
}

// placeOf is where the volume of a claim is on the node.
func placeOf(s *space, claim string) string {
	s.t.Helper()
	pv := s.get("pvc/"+claim, ".spec.volumeName")
	// v-<pool>-<key>-<generation>
	parts := strings.Split(s.get("pv/"+pv, ".spec.csi.volumeHandle"), "-")
	if len(parts) != 4 {
		s.t.Fatalf("an unknown kind of volume handle: %v", parts)
	}
	for _, pool := range []string{"main", "second"} {
		place := "/var/lib/orlop/pools/" + pool + "/volumes/" + parts[2]
		if _, err := os.Stat(onNode(s.t, place)); err == nil {
			return place
		}
	}
	s.t.Fatalf("no pool has the volume %v", parts)
	return ""
}

// freed waits until a volume is no longer there.
func freed(t testing.TB, place string) {
	t.Helper()
	within(t, time.Minute, "removal of the volume", func() error {
		if _, err := os.Stat(onNode(t, place)); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %v", place, err)
		}
		return nil
	})
}

// volumes lists the volumes in the pool.
func volumes(t testing.TB) string {
	t.Helper()
	entries, err := os.ReadDir(onNode(t, "/var/lib/orlop/pools/main/volumes"))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(entries)
}

func onNode(t testing.TB, path string) string {
	t.Helper()
	path, err := node.Path(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
