package suite

import (
	"testing"
	"time"
)

// TestReadWriteOnce lets all pods of the node use a volume.
func TestReadWriteOnce(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"hostpath", "ext4"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.claim("data", class, "64Mi")
			s.run("one", "data")
			s.run("two", "data")
			wrote := s.write("one", "/data/file", 1)
			s.same("two", "/data/file", 1, wrote)
			s.end("one")
			wrote = s.write("two", "/data/file", 1)
			s.run("three", "data")
			s.same("three", "/data/file", 1, wrote)
		})
	}
}

// TestReadWriteOncePod keeps a second pod waiting until the first one is gone.
func TestReadWriteOncePod(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("data", "ext4", "64Mi", "accessModes: [ReadWriteOncePod]")
	s.run("one", "data")
	wrote := s.write("one", "/data/file", 1)
	s.pod("two", []volume{claimed("data", "/data")})
	s.event("two", "ReadWriteOncePod")
	time.Sleep(2 * time.Second)
	if phase := s.get("pod/two", ".status.phase"); phase != "Pending" {
		t.Errorf("the second pod is %s", phase)
	}
	s.end("one")
	s.ready("two")
	s.same("two", "/data/file", 1, wrote)
}

func TestReadWriteMany(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"hostpath", "xfs"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.claim("data", class, "320Mi", "accessModes: [ReadWriteMany]")
			s.run("one", "data")
			s.run("two", "data")
			fromOne, fromTwo := s.write("one", "/data/one", 1), s.write("two", "/data/two", 1)
			s.same("two", "/data/one", 1, fromOne)
			s.same("one", "/data/two", 1, fromTwo)
		})
	}
}

// TestReadOnlyMany has readers of a copy, none of which can write.
func TestReadOnlyMany(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"hostpath", "ext4"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.claim("source", class, "64Mi")
			s.run("writer", "source")
			wrote := s.write("writer", "/data/file", 1)
			s.claim("data", class, "64Mi", "accessModes: [ReadOnlyMany]", "dataSource: {kind: PersistentVolumeClaim, name: source}")
			for _, pod := range []string{"one", "two"} {
				s.run(pod, "data")
				s.same(pod, "/data/file", 1, wrote)
				if out, err := s.try(pod, "echo x > /data/file"); err == nil {
					t.Errorf("a reader wrote: %s", out)
				}
			}
		})
	}
}

// TestReadOnlyMount lets one pod only read what another one writes.
func TestReadOnlyMount(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("data", "hostpath", "64Mi")
	s.run("writer", "data")
	s.pod("reader", []volume{{
		path: "/data", source: "persistentVolumeClaim: {claimName: data, readOnly: true}",
	}})
	s.ready("reader")
	wrote := s.write("writer", "/data/file", 1)
	s.same("reader", "/data/file", 1, wrote)
	if out, err := s.try("reader", "echo x > /data/file"); err == nil {
		t.Errorf("the reader wrote: %s", out)
	}
}
