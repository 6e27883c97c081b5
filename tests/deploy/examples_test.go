package deploy

import (
	"path/filepath"
	"testing"

	snapshot "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
)

func TestTheExamplesAreSound(t *testing.T) {
	chart := mustDecode(t, render(t, "snapshots.enabled=true"))
	classes := map[string]bool{}
	for _, class := range all[*storage.StorageClass](chart) {
		classes[class.Name] = true
	}
	snapshots := the[*snapshot.VolumeSnapshotClass](t, chart).Name
	directory := filepath.Join(root, "deploy/examples")
	checkClaim := func(t *testing.T, name string, claim core.PersistentVolumeClaimSpec) {
		if claim.StorageClassName == nil || !classes[*claim.StorageClassName] {
			t.Errorf("%s names no StorageClass of the chart", name)
		}
		if claim.Resources.Requests.Storage().IsZero() {
			t.Errorf("%s asks for no size", name)
		}
	}
	for _, file := range yamls(t, directory) {
		t.Run(file, func(t *testing.T) {
			objects := mustDecode(t, read(t, filepath.Join(directory, file)))
			checkNamesDiffer(t, objects)
			for _, claim := range all[*core.PersistentVolumeClaim](objects) {
				checkClaim(t, claim.Name, claim.Spec)
			}
			for _, taken := range all[*snapshot.VolumeSnapshot](objects) {
				if *taken.Spec.VolumeSnapshotClassName != snapshots {
					t.Errorf("%s names no VolumeSnapshotClass of the chart", taken.Name)
				}
			}
			for _, set := range all[*apps.StatefulSet](objects) {
				for _, claim := range set.Spec.VolumeClaimTemplates {
					checkClaim(t, claim.Name, claim.Spec)
				}
				checkStatefulSet(t, set, all[*core.Service](objects))
			}
		})
	}
}

// checkStatefulSet looks at its pods with their claims as volumes, and whether its service finds them.
func checkStatefulSet(t *testing.T, set *apps.StatefulSet, services []*core.Service) {
	t.Helper()
	pod := *set.Spec.Template.Spec.DeepCopy()
	for _, claim := range set.Spec.VolumeClaimTemplates {
		pod.Volumes = append(pod.Volumes, core.Volume{Name: claim.Name})
	}
	checkPod(t, pod)
	checkSelector(t, set.Spec.Selector, set.Spec.Template.Labels)
	if pod.SecurityContext == nil || pod.SecurityContext.FSGroup == nil || *pod.SecurityContext.RunAsUser == 0 {
		t.Errorf("the pods of %s run as root, or do not get their volume", set.Name)
	}
	if len(services) != 1 || services[0].Name != set.Spec.ServiceName || services[0].Spec.ClusterIP != core.ClusterIPNone {
		t.Fatalf("%s has no headless service %s", set.Name, set.Spec.ServiceName)
	}
	for name, value := range services[0].Spec.Selector {
		if set.Spec.Template.Labels[name] != value {
			t.Errorf("service %s does not find the pods of %s", services[0].Name, set.Name)
		}
	}
}
