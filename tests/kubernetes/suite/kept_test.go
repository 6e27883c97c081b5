package suite

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKeptAndImported changes what happens to a volume when it is deleted, deletes it, and takes what was kept in again:
// a VolumeAttributesClass, `orlop volume import`, and static provisioning of what that prints.
func TestKeptAndImported(t *testing.T) {
	t.Parallel()
	for _, kind := range []struct{ attributes, class, place string }{
		{"retain", "hostpath", "retained"}, {"archive", "ext4", "archive"},
	} {
		t.Run(kind.attributes, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			s.claim("data", kind.class, "64Mi")
			s.run("writer", "data")
			wrote := s.write("writer", "/data/file", 8)
			s.kubectl("patch", "pvc", "data", "-p", `{"spec": {"volumeAttributesClassName": "`+kind.attributes+`"}}`)
			s.becomes("pvc/data", ".status.currentVolumeAttributesClassName", kind.attributes)
			place := placeOf(s, "data")
			s.end("writer")
			s.kubectl("delete", "pvc", "data")
			freed(t, place)

			kept := filepath.Join("/var/lib/orlop/pools/main", kind.place, path.Base(place))
			matches, err := filepath.Glob(onNode(t, kept) + ".*")
			if err != nil || len(matches) != 1 {
				t.Fatalf("%s.*: %v %v", kept, matches, err)
			}
			kept = path.Join(path.Dir(kept), filepath.Base(matches[0]))
			manifest := s.kubectl("exec", "-n", system, driverPod(t), "-c", "orlop", "--",
				"orlop", "volume", "import", kept, "--endpoint", "unix:///csi/csi.sock", "--unused")
			if !strings.Contains(manifest, "kind: PersistentVolume\n") {
				t.Fatalf("the import printed no manifest: %s", manifest)
			}
			s.apply(manifest)
			pv := strings.TrimSpace(s.kubectl("create", "--dry-run=client", "-f", s.file(manifest), "-o", "jsonpath={.metadata.name}"))
			s.claim("again", s.get("pv/"+pv, ".spec.storageClassName"), "64Mi", "volumeName: "+pv)
			s.run("reader", "again")
			s.same("reader", "/data/file", 8, wrote)
			s.kubectl("patch", "pv", pv, "-p", `{"spec": {"persistentVolumeReclaimPolicy": "Delete"}}`)
		})
	}
}

// TestGroupSnapshot takes one of two volumes that nobody writes to, and restores both.
func TestGroupSnapshot(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	wrote := map[string]string{}
	for _, claim := range []string{"one", "two"} {
		s.claim(claim, "ext4", "64Mi")
		s.run(claim, claim)
		s.kubectl("label", "pvc", claim, "group=both")
		wrote[claim] = s.write(claim, "/data/file", 4)
		s.end(claim)
	}
	s.apply(`apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: both}
spec: {volumeGroupSnapshotClassName: orlop, source: {selector: {matchLabels: {group: both}}}}
`)
	s.kubectl("wait", "--for=jsonpath={.status.readyToUse}=true", "volumegroupsnapshot/both", "--timeout=60s")
	for _, claim := range []string{"one", "two"} {
		name := ""
		within(t, 30*time.Second, "the member snapshot of "+claim, func() error {
			name = s.kubectl("get", "volumesnapshots", "-o",
				`jsonpath={.items[?(@.spec.source.persistentVolumeClaimName=="`+claim+`")].metadata.name}`)
			if name == "" {
				return fmt.Errorf("there is none in\n%s", s.kubectl("get", "volumesnapshots", "-o", "yaml"))
			}
			return nil
		})
		s.claim("restored-"+claim, "ext4", "64Mi", "dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: "+name+"}")
		s.run("restored-"+claim, "restored-"+claim)
		s.same("restored-"+claim, "/data/file", 4, wrote[claim])
	}
	s.kubectl("delete", "volumegroupsnapshot", "both", "--timeout=60s")
}
