package contract

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"os"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"orlop/csi-sanity/mountinfo"
)

var inlineSpecs = []Spec{
	{Name: "inline: a volume comes with a pod, and goes with it", needs: []string{Inline, isMount}, run: inlineLife},
	{Name: "inline: each call ten times, also after a kill", needs: []string{Inline, isMount}, run: inlineRepeats},
	{Name: "inline: wrong requests are refused, and leave nothing", needs: []string{Inline, isMount}, run: wrongInline},
	{Name: "inline: many pods at once", needs: []string{Inline, isMount}, run: manyInline},
}

const ephemeral = "csi.storage.k8s.io/ephemeral"

// inlineRequest is what kubelet sends for an inline volume of a pod.
func (t *T) inlineRequest(target string) *csi.NodePublishVolumeRequest {
	sum := sha256.Sum256([]byte(t.driver.name("inline")))
	context := map[string]string{
		ephemeral:                                "true",
		"csi.storage.k8s.io/pod.name":            "pod",
		"csi.storage.k8s.io/pod.namespace":       "default",
		"csi.storage.k8s.io/pod.uid":             "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
		"csi.storage.k8s.io/serviceAccount.name": "default",
		"size":                                   "64Mi",
	}
	capability := t.settings.capability(nodeWriter)
	for key, value := range t.settings.Parameters {
		switch {
		case key == "csi.storage.k8s.io/fstype":
			capability.GetMount().FsType = value
		case !strings.HasPrefix(key, "csi.storage.k8s.io/"):
			context[key] = value
		}
	}
	if t.settings.VolumeSize > 64<<20 {
		context["size"] = "320Mi"
	}
	return &csi.NodePublishVolumeRequest{
		VolumeId: "csi-" + hex.EncodeToString(sum[:]), TargetPath: target, VolumeCapability: capability, VolumeContext: context,
	}
}

// inline publishes an inline volume, which is gone when the spec has ended.
func (t *T) inline(request *csi.NodePublishVolumeRequest) error {
	t.Cleanup(func() {
		if _, err := insist(t.node.NodeUnpublishVolume, unpublishOf(request)); err != nil {
			t.Errorf("clean up inline volume %s: %v", request.GetVolumeId(), err)
		}
	})
	_, err := call(t.node.NodePublishVolume, request)
	return err
}

func unpublishOf(request *csi.NodePublishVolumeRequest) *csi.NodeUnpublishVolumeRequest {
	return &csi.NodeUnpublishVolumeRequest{VolumeId: request.GetVolumeId(), TargetPath: request.GetTargetPath()}
}

// gone makes sure that nothing is left at a target.
func (t *T) gone(about, target string) {
	t.Helper()
	if left := mountinfo.Below(target); len(left) > 0 {
		t.Errorf("%s: there is still %v", about, left)
	}
	if _, err := os.Lstat(target); err == nil {
		t.Errorf("%s: the target is still there", about)
	}
}

func inlineLife(t *T) {
	listed := 0
	if t.has(listVolumes) {
		listed = len(t.list())
	}
	request := t.inlineRequest(t.path("target"))
	t.ok(t.inline(request), "publish an inline volume")
	target := request.GetTargetPath()
	checkEmpty(t, "a new inline volume", target)
	t.write(target, "old")
	t.check("an inline volume", target, "old")
	if t.has(stats) {
		reply := must(t, t.node.NodeGetVolumeStats, &csi.NodeGetVolumeStatsRequest{VolumeId: request.GetVolumeId(), VolumePath: target})
		if len(reply.GetUsage()) == 0 || reply.GetUsage()[0].GetTotal() <= 0 {
			t.Errorf("the statistics of an inline volume are %v", reply)
		}
	}
	if t.has(listVolumes) && len(t.list()) != listed {
		t.Errorf("an inline volume is listed among those of the controller")
	}
	must(t, t.node.NodeUnpublishVolume, unpublishOf(request))
	t.gone("after the unpublish", target)
	// The same id again is another volume.
	t.ok(t.inline(request), "publish it again")
	checkEmpty(t, "an inline volume of an id that was there before", target)
	must(t, t.node.NodeUnpublishVolume, unpublishOf(request))
	request.Readonly = true
	t.ok(t.inline(request), "publish it read-only")
	if t.canWrite(target) == nil {
		t.Errorf("a read-only inline volume can be written")
	}
}

func inlineRepeats(t *T) {
	request := t.inlineRequest(t.path("target"))
	t.ok(t.inline(request), "publish")
	t.write(request.GetTargetPath(), "old")
	for i := range repeats {
		if i == repeats/2 && t.has(mayKill) {
			t.restart()
		}
		must(t, t.node.NodePublishVolume, request)
	}
	if got := len(mountinfo.Below(request.GetTargetPath())); got != 1 {
		t.Errorf("ten calls made %d mounts", got)
	}
	t.check("after ten calls", request.GetTargetPath(), "old")
	if t.has(mayKill) {
		t.restart()
	}
	for range repeats {
		must(t, t.node.NodeUnpublishVolume, unpublishOf(request))
	}
	t.gone("after ten calls", request.GetTargetPath())
}

func wrongInline(t *T) {
	for about, wrong := range map[string]struct {
		change func(*csi.NodePublishVolumeRequest)
		codes  []codes.Code
	}{
		"a size that is none":  {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["size"] = "large" }, []codes.Code{codes.InvalidArgument}},
		"a negative size":      {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["size"] = "-1Gi" }, []codes.Code{codes.InvalidArgument, codes.OutOfRange}},
		"more than there is":   {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["size"] = "1Ei" }, []codes.Code{codes.ResourceExhausted, codes.OutOfRange}},
		"an unknown attribute": {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext["no-such-attribute"] = "x" }, []codes.Code{codes.InvalidArgument}},
		"no volume":            {func(r *csi.NodePublishVolumeRequest) { r.VolumeId = "" }, []codes.Code{codes.InvalidArgument}},
		"no capability":        {func(r *csi.NodePublishVolumeRequest) { r.VolumeCapability = nil }, []codes.Code{codes.InvalidArgument}},
		"an unknown flag": {func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.GetMount().MountFlags = []string{"no-such-flag"}
		}, []codes.Code{codes.InvalidArgument}},
		"a raw block device": {func(r *csi.NodePublishVolumeRequest) {
			r.VolumeCapability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
		}, []codes.Code{codes.InvalidArgument}},
		"not ephemeral": {func(r *csi.NodePublishVolumeRequest) { r.VolumeContext[ephemeral] = "false" },
			[]codes.Code{codes.NotFound, codes.InvalidArgument, codes.FailedPrecondition}},
	} {
		request := t.inlineRequest(t.path("target"))
		wrong.change(request)
		refused(t, about, t.node.NodePublishVolume, request, wrong.codes...)
		t.gone(about, request.GetTargetPath())
	}
	request := t.inlineRequest(t.path("target"))
	t.ok(t.inline(request), "publish")
	other := proto.CloneOf(request)
	other.VolumeContext = maps.Clone(request.GetVolumeContext())
	other.VolumeContext["size"] = "1Gi"
	refused(t, "the same id with another size", t.node.NodePublishVolume, other, codes.AlreadyExists)
	other = proto.CloneOf(request)
	other.TargetPath = t.path("another")
	refused(t, "the same id at another path", t.node.NodePublishVolume, other, codes.AlreadyExists, codes.FailedPrecondition)
	t.gone("the same id at another path", other.GetTargetPath())
}

func manyInline(t *T) {
	requests := make([]*csi.NodePublishVolumeRequest, 8)
	for i := range requests {
		requests[i] = t.inlineRequest(t.path("target"))
	}
	for _, err := range together(len(requests), func(i int) error {
		request := requests[i]
		if _, err := insist(t.node.NodePublishVolume, request); err != nil {
			return err
		}
		if err := t.tryWrite(request.GetTargetPath(), request.GetVolumeId()); err != nil {
			return err
		}
		return t.tryCheck(request.GetTargetPath(), request.GetVolumeId())
	}) {
		if err != nil {
			t.Errorf("%v", err)
		}
	}
	for _, err := range together(len(requests), func(i int) error {
		_, err := insist(t.node.NodeUnpublishVolume, unpublishOf(requests[i]))
		return err
	}) {
		t.ok(err, "unpublish")
	}
	for _, request := range requests {
		t.gone("one of many", request.GetTargetPath())
	}
}
