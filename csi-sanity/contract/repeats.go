package contract

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"orlop/csi-sanity/mountinfo"
)

const repeats = 10

var repeatSpecs = []Spec{
	{Name: "repeats: each call of a life ten times", run: eachCallTenTimes},
	{Name: "repeats: teardown of what was never there", run: teardownOfNothing},
}

func eachCallTenTimes(t *T) {
	request := t.request("repeats")
	v := t.createFrom(request)
	for range repeats {
		again := must(t, t.controller.CreateVolume, request).GetVolume()
		if again.GetVolumeId() != v.id || again.GetCapacityBytes() != v.size {
			t.Errorf("CreateVolume answered %v again, first %s with %d", again, v.id, v.size)
		}
		must(t, t.controller.ValidateVolumeCapabilities, v.validation())
	}
	path, target := t.path("staging"), t.path("target")
	for range repeats {
		v.published = nil
		t.ok(v.tryStage(path), "stage")
	}
	staged := len(mountinfo.Below(path))
	for range repeats {
		t.ok(v.tryPublish(path, target, false), "publish")
	}
	if got := len(mountinfo.Below(target)); got != 1 {
		t.Errorf("after ten calls there are %d mounts at the target", got)
	}
	if staged > 1 {
		t.Errorf("after ten calls there are %d mounts at the staging path", staged)
	}
	t.write(target, "repeats")
	if t.has(growth) {
		later := false
		for range repeats {
			later = v.grow(t.settings.VolumeSize*3/2) && v.growNode(target, path)
		}
		if !later {
			t.checkShown("after ten expansions to one size", v, target, path)
		}
	}
	t.check("after all repetitions", target, "repeats")
	for range repeats {
		t.ok(v.unpublish(target), "unpublish")
	}
	for range repeats {
		t.ok(v.unstage(path), "unstage")
	}
	for range repeats {
		t.ok(v.detach(), "detach")
		t.ok(v.delete(), "delete")
	}
}

func teardownOfNothing(t *T) {
	v := t.create("nothing")
	for _, id := range []string{v.id, "no-such-volume"} {
		_, err := call(t.node.NodeUnpublishVolume, &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: t.path("never")})
		t.code("unpublish", err, codes.OK, codes.NotFound)
		if t.has(staging) {
			_, err = call(t.node.NodeUnstageVolume, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: t.path("never")})
			t.code("unstage", err, codes.OK, codes.NotFound)
		}
	}
	t.ok(v.delete(), "delete")
	missing := proto.CloneOf(v.stageRequest(t.path("deleted")))
	if t.has(staging) {
		refused(t, "stage a deleted volume", t.node.NodeStageVolume, missing, codes.NotFound)
	}
	refused(t, "publish a deleted volume", t.node.NodePublishVolume,
		v.publishRequest(t.path("staging"), t.path("target"), false), codes.NotFound)
	refused(t, "validate a deleted volume", t.controller.ValidateVolumeCapabilities, v.validation(), codes.NotFound)
}
