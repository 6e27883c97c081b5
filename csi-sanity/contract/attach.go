package contract

import (
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

var attachSpecs = []Spec{
	{Name: "attach: each call ten times, and the nodes are told", needs: []string{attachments}, run: attachRepeats},
	{Name: "attach: a volume cannot be used without it, nor deleted with it", needs: []string{attachments, staging}, run: attachFirst},
	{Name: "attach: wrong requests are refused", needs: []string{attachments}, run: wrongAttachments},
	{Name: "attach: read-only holds on the node", needs: []string{attachments, attachReadOnly, staging}, run: attachedReadOnly},
	{Name: "attach: a node has a limit, and it holds for all at once", needs: []string{attachments}, run: attachLimit},
	{Name: "attach: it outlives a kill", needs: []string{attachments, mayKill}, run: attachKilled},
}

// checkNodes looks at which nodes a volume is said to be on.
func (v *volume) checkNodes(about string, want ...string) {
	t := v.t
	t.Helper()
	if !t.has(publishedNodes) {
		return
	}
	for _, entry := range must(t, t.controller.ListVolumes, &csi.ListVolumesRequest{}).GetEntries() {
		if got := entry.GetStatus().GetPublishedNodeIds(); entry.GetVolume().GetVolumeId() == v.id && !slices.Equal(got, want) {
			t.Errorf("%s: listed on the nodes %v, not %v", about, got, want)
		}
	}
	if t.has(getVolume) {
		reply := must(t, t.controller.ControllerGetVolume, &csi.ControllerGetVolumeRequest{VolumeId: v.id})
		if got := reply.GetStatus().GetPublishedNodeIds(); !slices.Equal(got, want) {
			t.Errorf("%s: answered with the nodes %v, not %v", about, got, want)
		}
	}
}

func attachRepeats(t *T) {
	v := t.create("attach")
	node := t.suite.node.GetNodeId()
	v.checkNodes("before")
	first := must(t, t.controller.ControllerPublishVolume, v.attachRequest())
	for range repeats {
		if again := must(t, t.controller.ControllerPublishVolume, v.attachRequest()); !proto.Equal(first, again) {
			t.Errorf("the same again is %v, before it was %v", again, first)
		}
	}
	v.checkNodes("attached", node)
	detach := &csi.ControllerUnpublishVolumeRequest{VolumeId: v.id, NodeId: node}
	for range repeats {
		must(t, t.controller.ControllerUnpublishVolume, detach)
	}
	v.checkNodes("detached")
	// Without a node it is all of them.
	must(t, t.controller.ControllerPublishVolume, v.attachRequest())
	must(t, t.controller.ControllerUnpublishVolume, &csi.ControllerUnpublishVolumeRequest{VolumeId: v.id})
	v.checkNodes("detached from all")
	t.okOrAborted("attach", together(8, func(int) error {
		_, err := call(t.controller.ControllerPublishVolume, v.attachRequest())
		return err
	}))
	t.okOrAborted("detach", together(8, func(int) error {
		_, err := call(t.controller.ControllerUnpublishVolume, detach)
		return err
	}))
	must(t, t.controller.ControllerUnpublishVolume, detach)
	t.ok(v.delete(), "delete")
	_, err := call(t.controller.ControllerUnpublishVolume, detach)
	t.code("detach a deleted volume", err, codes.OK, codes.NotFound)
}

func attachFirst(t *T) {
	v := t.create("first")
	path := t.path("staging")
	t.mkdir(path)
	refused(t, "stage before it is attached", t.node.NodeStageVolume, v.stageRequest(path), codes.FailedPrecondition)
	t.ok(v.tryStage(path), "stage when it is attached")
	_, err := call(t.controller.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: v.id})
	t.code("delete what is staged", err, codes.FailedPrecondition)
	t.ok(v.unstage(path), "unstage")
	_, err = call(t.controller.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: v.id})
	t.code("delete what is attached", err, codes.FailedPrecondition)
	t.ok(v.detach(), "detach")
}

func wrongAttachments(t *T) {
	v := t.create("wrong")
	for about, wrong := range map[string]struct {
		change func(*csi.ControllerPublishVolumeRequest)
		codes  []codes.Code
	}{
		"no volume":         {func(r *csi.ControllerPublishVolumeRequest) { r.VolumeId = "" }, []codes.Code{codes.InvalidArgument}},
		"an unknown volume": {func(r *csi.ControllerPublishVolumeRequest) { r.VolumeId += "0" }, []codes.Code{codes.NotFound}},
		"no node":           {func(r *csi.ControllerPublishVolumeRequest) { r.NodeId = "" }, []codes.Code{codes.InvalidArgument}},
		"an unknown node":   {func(r *csi.ControllerPublishVolumeRequest) { r.NodeId = "no-such-node" }, []codes.Code{codes.NotFound}},
		"no capability":     {func(r *csi.ControllerPublishVolumeRequest) { r.VolumeCapability = nil }, []codes.Code{codes.InvalidArgument}},
	} {
		request := v.attachRequest()
		wrong.change(request)
		refused(t, about, t.controller.ControllerPublishVolume, request, wrong.codes...)
	}
	v.checkNodes("after wrong requests")
	t.ok(v.attach(), "attach")
	request := v.attachRequest()
	if t.has(modeAbility(nodeReader)) {
		request.VolumeCapability = t.settings.capability(nodeReader)
		refused(t, "attach it in another way as well", t.controller.ControllerPublishVolume, request, codes.AlreadyExists)
	}
	request = v.attachRequest()
	if t.has(attachReadOnly) {
		request.Readonly = true
		refused(t, "attach it read-only as well", t.controller.ControllerPublishVolume, request, codes.AlreadyExists)
	}
	v.checkNodes("after all that", t.suite.node.GetNodeId())
}

func attachedReadOnly(t *T) {
	v := t.create("read-only")
	t.write(v.use(), "old")
	v.rest()
	request := v.attachRequest()
	request.Readonly = true
	v.attachedWith(must(t, t.controller.ControllerPublishVolume, request))
	path := t.path("staging")
	// Whether it is refused or made read-only, nothing can be written.
	if err := v.tryStage(path); err != nil {
		t.code("stage for writing what is attached read-only", err, codes.FailedPrecondition)
		return
	}
	target := t.path("target")
	if err := v.tryPublish(path, target, false); err != nil {
		t.code("publish for writing what is attached read-only", err, codes.FailedPrecondition)
		return
	}
	t.check("attached read-only", target, "old")
	if t.canWrite(target) == nil {
		t.Errorf("what is attached read-only can be written")
	}
	v.rest()
	t.check("attached for writing again", v.use(), "old")
}

func attachLimit(t *T) {
	limit := int(t.suite.node.GetMaxVolumesPerNode())
	if limit == 0 || limit > 64 {
		t.note("the node's limit of %d volumes is not tried", limit)
		return
	}
	volumes := make([]*volume, limit+4)
	for i := range volumes {
		volumes[i] = t.create("limit")
	}
	attached := 0
	for i, err := range together(len(volumes), func(i int) error {
		reply, err := insist(t.controller.ControllerPublishVolume, volumes[i].attachRequest())
		if err == nil {
			volumes[i].attachedWith(reply)
		}
		return err
	}) {
		t.code("attach", err, codes.OK, codes.ResourceExhausted)
		if err == nil {
			attached++
			// What is attached is no second time counted.
			must(t, t.controller.ControllerPublishVolume, volumes[i].attachRequest())
		}
	}
	if attached != limit {
		t.Errorf("of %d volumes %d were attached, the limit is %d", len(volumes), attached, limit)
	}
	waiting := slices.IndexFunc(volumes, func(v *volume) bool { return v.published == nil })
	leaving := slices.IndexFunc(volumes, func(v *volume) bool { return v.published != nil })
	if waiting < 0 || leaving < 0 {
		return
	}
	t.ok(volumes[leaving].detach(), "detach one")
	t.ok(volumes[waiting].attach(), "attach another one")
}

func attachKilled(t *T) {
	v := t.create("killed")
	t.ok(v.attach(), "attach")
	t.restart()
	v.checkNodes("after a kill", t.suite.node.GetNodeId())
	target := v.use()
	t.write(target, "old")
	t.restart()
	t.check("after another kill", target, "old")
	v.rest()
	v.checkNodes("detached")
}
