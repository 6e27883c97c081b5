package contract

import (
	"fmt"
	"maps"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

var modifySpecs = []Spec{
	{Name: "modify: what can be changed is, as often as it is asked", needs: []string{modify, hasMutable}, run: modifies},
	{Name: "modify: all or nothing", needs: []string{modify, hasMutable}, run: modifiesNothing},
	{Name: "modify: a refused change is not kept", needs: []string{modify, hasMutable, getCapacity, OwnPool}, run: modifiesNotByHalf},
	{Name: "modify: a volume can be born changed", needs: []string{modify, hasMutable}, run: bornModified},
}

func (v *volume) modify(parameters map[string]string) error {
	_, err := call(v.t.controller.ControllerModifyVolume, &csi.ControllerModifyVolumeRequest{
		VolumeId: v.id, MutableParameters: parameters,
	})
	return err
}

func modifies(t *T) {
	v := t.create("modify")
	target := v.use()
	t.write(target, "kept")
	for range repeats {
		t.ok(v.modify(t.settings.Mutable), "modify")
	}
	t.ok(v.modify(nil), "modify nothing")
	if t.has(mayKill) {
		t.restart()
		t.ok(v.modify(t.settings.Mutable), "modify after a kill")
	}
	t.check("a modified volume", target, "kept")
	t.ok(t.canWrite(target), "write to a modified volume")
	unknown := &csi.ControllerModifyVolumeRequest{VolumeId: v.id + "0", MutableParameters: t.settings.Mutable}
	refused(t, "an unknown volume", t.controller.ControllerModifyVolume, unknown, codes.NotFound)
	unknown.VolumeId = ""
	refused(t, "no volume", t.controller.ControllerModifyVolume, unknown, codes.InvalidArgument)
	t.okOrAborted("modify", together(8, func(int) error { return v.modify(t.settings.Mutable) }))
}

// spoilt are changes that nobody can make, each with one that can be made.
func (t *T) spoilt() map[string]map[string]string {
	all := map[string]map[string]string{
		"an unknown parameter":         {"no-such-parameter": "x"},
		"a parameter that stays as is": maps.Clone(t.settings.Parameters),
		"an empty name":                {"": "x"},
	}
	for key := range t.settings.Mutable {
		all["another value of "+key] = map[string]string{key: "no-such-value"}
	}
	for about, spoilt := range all {
		if len(spoilt) == 0 {
			delete(all, about)
			continue
		}
		for key, value := range t.settings.Mutable {
			if _, there := spoilt[key]; !there {
				spoilt[key] = value
			}
		}
	}
	return all
}

func modifiesNothing(t *T) {
	v := t.create("nothing")
	for about, spoilt := range t.spoilt() {
		t.code(about, v.modify(spoilt), codes.InvalidArgument)
		request := t.request("spoilt")
		request.MutableParameters = spoilt
		_, err := t.tryCreate(request)
		t.code("create with "+about, err, codes.InvalidArgument)
		// Nothing has the name, so it is free for a volume of another kind.
		request.MutableParameters = nil
		request.CapacityRange = &csi.CapacityRange{RequiredBytes: 2 * t.settings.VolumeSize}
		t.createFrom(request)
	}
}

// modifiesNotByHalf deletes a volume whose change was refused: its room comes back as that of any
// other, whatever a part of the change would have done to its end.
func modifiesNotByHalf(t *T) {
	before := t.room().GetAvailableCapacity()
	size := before / 4
	request := t.request("half")
	request.CapacityRange = &csi.CapacityRange{RequiredBytes: size}
	v := t.createFrom(request)
	for about, spoilt := range t.spoilt() {
		t.code(about, v.modify(spoilt), codes.InvalidArgument)
	}
	t.ok(v.remove(), "remove")
	t.eventually("the room comes back", func() error {
		if now := t.room().GetAvailableCapacity(); now < before-size/20 {
			return fmt.Errorf("the capacity was %d and is %d", before, now)
		}
		return nil
	})
}

func bornModified(t *T) {
	request := t.request("born")
	request.MutableParameters = t.settings.Mutable
	v := t.createFrom(request)
	// They can be changed, so they are no part of what a name stands for.
	request.MutableParameters = nil
	if again := must(t, t.controller.CreateVolume, request).GetVolume(); again.GetVolumeId() != v.id {
		t.Errorf("without mutable parameters the name stands for %s, not for %s", again.GetVolumeId(), v.id)
	}
	t.ok(v.modify(t.settings.Mutable), "modify")
}
