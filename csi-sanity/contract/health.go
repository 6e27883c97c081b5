package contract

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"orlop/csi-sanity/mountinfo"
)

var healthSpecs = []Spec{
	{Name: "health: what is well has no condition", needs: []string{volumeHealth, nodeHealth}, run: wellVolume},
	{Name: "health: a mount that is gone is told, by this volume alone", needs: []string{nodeHealth, staging, isMount}, run: mountGone},
	{Name: "health: lists keep to their pages", needs: []string{listHealth}, run: healthPages},
	{Name: "health: wrong requests are refused", needs: []string{volumeHealth, nodeHealth}, run: wrongHealth},
	{Name: "health: the node's storage is told in the right words", needs: []string{storageHealth}, run: storageWords},
}

var camelCase = regexp.MustCompile(`^[A-Z][a-zA-Z0-9]*$`)

// checkConditions holds what is told of a volume to the rules.
func (t *T) checkConditions(about string, health *csi.VolumeHealth, id string) {
	t.Helper()
	if health.GetVolumeId() != id {
		t.Errorf("%s: asked was %s, told is of %q", about, id, health.GetVolumeId())
	}
	seen := map[string]bool{}
	for _, entry := range health.GetHealthStatuses() {
		key := fmt.Sprint(entry.GetStatus(), entry.GetReason())
		if seen[key] {
			t.Errorf("%s: the condition %s is told twice", about, key)
		}
		seen[key] = true
		if entry.GetStatus() == csi.VolumeHealthErrorType_UNKNOWN_VOLUME_HEALTH_TYPE || !camelCase.MatchString(entry.GetReason()) {
			t.Errorf("%s: the condition %v has no status or no reason in CamelCase", about, entry)
		}
	}
}

// nodeHealthOf asks the node about a volume at its paths.
func (v *volume) nodeHealthOf(target, stagingPath string) *csi.VolumeHealth {
	v.t.Helper()
	return must(v.t, v.t.node.NodeGetVolumeHealth, &csi.NodeGetVolumeHealthRequest{
		VolumeId: v.id, VolumePublishPath: target, StagingTargetPath: stagingPath,
	}).GetVolumeHealth()
}

func (v *volume) checkWell(about, target, stagingPath string) {
	t := v.t
	t.Helper()
	told := must(t, t.controller.ControllerGetVolumeHealth, &csi.ControllerGetVolumeHealthRequest{VolumeId: v.id}).GetVolumeHealth()
	onNode := v.nodeHealthOf(target, stagingPath)
	for _, health := range []*csi.VolumeHealth{told, onNode} {
		t.checkConditions(about, health, v.id)
		if len(health.GetHealthStatuses()) > 0 {
			t.Errorf("%s: the volume is well, but told is %v", about, health)
		}
	}
}

func wellVolume(t *T) {
	v := t.create("well")
	v.checkWell("when nobody uses it", "", "")
	path := v.stage()
	v.checkWell("staged", "", path)
	target := v.publish(path, false)
	t.write(target, "old")
	v.checkWell("published", target, path)
	v.checkWell("published, without the staging path", target, "")
	if t.has(mayKill) {
		t.restart()
		v.checkWell("after a kill", target, path)
	}
	v.rest()
	v.checkWell("when nobody uses it any more", "", "")
	if !t.has(listHealth) {
		return
	}
	for _, entry := range must(t, t.controller.ControllerListVolumeHealth, &csi.ControllerListVolumeHealthRequest{}).GetEntries() {
		if entry.GetVolumeId() == v.id && len(entry.GetHealthStatuses()) > 0 {
			t.Errorf("the volume is well, but listed is %v", entry)
		}
	}
}

// mountGone unmounts a volume behind the driver's back, as somebody at the node could.
func mountGone(t *T) {
	v, other := t.create("gone"), t.create("other")
	path := v.stage()
	target := v.publish(path, false)
	otherPath := other.stage()
	otherTarget := other.publish(otherPath, false)
	for len(mountinfo.Below(target)) > 0 {
		t.ok(unix.Unmount(target, 0), "unmount the target")
	}
	told := v.nodeHealthOf(target, path)
	t.checkConditions("without its mount", told, v.id)
	if len(told.GetHealthStatuses()) == 0 {
		t.Errorf("the volume is not mounted where it was published, but nothing is told")
	}
	other.checkWell("a volume beside one without its mount", otherTarget, otherPath)
	t.ok(v.tryPublish(path, target, false), "publish it again")
	if told = v.nodeHealthOf(target, path); len(told.GetHealthStatuses()) > 0 {
		t.Errorf("the volume is mounted again, but told is %v", told)
	}
	// Something else is in its place.
	elsewhere := other.publish(otherPath, false)
	told = must(t, t.node.NodeGetVolumeHealth, &csi.NodeGetVolumeHealthRequest{VolumeId: v.id, VolumePublishPath: elsewhere}).GetVolumeHealth()
	t.checkConditions("at another volume's path", told, v.id)
	if len(told.GetHealthStatuses()) == 0 {
		t.Errorf("another volume is at the path, but nothing is told")
	}
}

func healthPages(t *T) {
	t.some(5)
	pages := func(most int32) []string {
		var ids []string
		token := ""
		for range 1000 {
			reply := must(t, t.controller.ControllerListVolumeHealth, &csi.ControllerListVolumeHealthRequest{MaxEntries: most, StartingToken: token})
			if most > 0 && len(reply.GetEntries()) > int(most) {
				t.Errorf("at most %d entries were asked for, and there are %d", most, len(reply.GetEntries()))
			}
			for _, entry := range reply.GetEntries() {
				t.checkConditions("listed", entry, entry.GetVolumeId())
				ids = append(ids, entry.GetVolumeId())
			}
			if token = reply.GetNextToken(); token == "" {
				return ids
			}
		}
		t.Fatalf("the list does not end")
		return nil
	}
	all := pages(0)
	for _, most := range []int32{1, 2, 3} {
		if paged := pages(most); !slices.Equal(paged, all) {
			t.Errorf("in pages of %d there are %v, at once %v", most, paged, all)
		}
	}
	refused(t, "a foreign token", t.controller.ControllerListVolumeHealth,
		&csi.ControllerListVolumeHealthRequest{StartingToken: "none of yours"}, codes.Aborted)
	refused(t, "a negative count", t.controller.ControllerListVolumeHealth,
		&csi.ControllerListVolumeHealthRequest{MaxEntries: -1}, codes.InvalidArgument)
}

func wrongHealth(t *T) {
	v := t.create("wrong")
	for about, c := range map[string]struct {
		id   string
		code codes.Code
	}{
		"no volume":         {"", codes.InvalidArgument},
		"an unknown volume": {v.id + "0", codes.NotFound},
		"no such volume":    {"no-such-volume", codes.NotFound},
	} {
		refused(t, about, t.controller.ControllerGetVolumeHealth, &csi.ControllerGetVolumeHealthRequest{VolumeId: c.id}, c.code)
		refused(t, about+" on the node", t.node.NodeGetVolumeHealth, &csi.NodeGetVolumeHealthRequest{VolumeId: c.id}, c.code)
	}
	t.ok(v.delete(), "delete")
	refused(t, "a deleted volume", t.controller.ControllerGetVolumeHealth, &csi.ControllerGetVolumeHealthRequest{VolumeId: v.id}, codes.NotFound)
}

func storageWords(t *T) {
	reply := must(t, t.node.NodeGetStorageHealth, &csi.NodeGetStorageHealthRequest{})
	seen := map[string]bool{}
	for _, entry := range reply.GetBackendHealth() {
		key := fmt.Sprint(entry.GetStatus(), entry.GetReason(), entry.GetVolumeCapability())
		if seen[key] {
			t.Errorf("the condition %s is told twice", key)
		}
		seen[key] = true
		if entry.GetStatus() == csi.StorageHealthErrorType_UNKNOWN_STORAGE_HEALTH_ERROR_TYPE || !camelCase.MatchString(entry.GetReason()) {
			t.Errorf("the condition %v has no status or no reason in CamelCase", entry)
		}
	}
	if t.has(OwnPool) && len(seen) > 0 {
		t.Errorf("the storage is well, but told is %v", reply)
	}
}
