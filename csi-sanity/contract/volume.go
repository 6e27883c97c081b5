package contract

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"orlop/csi-sanity/mountinfo"
)

// Mode is an access mode.
type Mode = csi.VolumeCapability_AccessMode_Mode

// The access modes, by shorter names.
const (
	nodeWriter        = csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	nodeReader        = csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY
	manyReaders       = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	manyReadersWriter = csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER
	manyWriters       = csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	singleWriter      = csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	multiWriter       = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
)

var allModes = []Mode{nodeWriter, nodeReader, manyReaders, manyReadersWriter, manyWriters, singleWriter, multiWriter}

// capability asks for what the settings want, in an access mode.
func (s *Settings) capability(mode Mode) *csi.VolumeCapability {
	capability := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: mode}}
	if s.Block {
		capability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		capability.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}
	}
	return capability
}

// ordinary is the capability where the mode does not matter.
func (t *T) ordinary() *csi.VolumeCapability {
	if t.has(modeAbility(multiWriter)) {
		return t.settings.capability(multiWriter)
	}
	return t.settings.capability(nodeWriter)
}

// request is one for an ordinary volume.
func (t *T) request(about string) *csi.CreateVolumeRequest {
	return &csi.CreateVolumeRequest{
		Name:               t.driver.name(about),
		CapacityRange:      &csi.CapacityRange{RequiredBytes: t.settings.VolumeSize},
		VolumeCapabilities: []*csi.VolumeCapability{t.ordinary()},
		Parameters:         t.settings.Parameters,
	}
}

// volume is a volume of the driver and where it is staged and published.
type volume struct {
	t       *T
	id      string
	size    int64
	context map[string]string
	// capability is how it is used.
	capability *csi.VolumeCapability
	published  map[string]string
	stagings   []string
	targets    []string
}

// create makes a volume, which is gone when the spec has ended.
func (t *T) create(about string) *volume {
	t.Helper()
	return t.createFrom(t.request(about))
}

// createFrom makes the volume that a request asks for.
func (t *T) createFrom(request *csi.CreateVolumeRequest) *volume {
	t.Helper()
	v, err := t.tryCreate(request)
	t.ok(err, "create %q", request.GetName())
	return v
}

// tryCreate asks for a volume that the driver may refuse.
func (t *T) tryCreate(request *csi.CreateVolumeRequest) (*volume, error) {
	reply, err := call(t.controller.CreateVolume, request)
	if err != nil {
		return nil, err
	}
	v := t.adopt(reply.GetVolume())
	v.capability = request.GetVolumeCapabilities()[0]
	return v, nil
}

// adopt takes the duty to remove a volume.
func (t *T) adopt(made *csi.Volume) *volume {
	v := &volume{
		t: t, id: made.GetVolumeId(), size: made.GetCapacityBytes(), context: made.GetVolumeContext(),
		capability: t.ordinary(),
	}
	t.Cleanup(func() {
		if err := v.remove(); err != nil {
			t.Errorf("clean up volume %s: %v", v.id, err)
		}
	})
	return v
}

// remove undoes everything, as a CO does: what is not there is fine.
func (v *volume) remove() error {
	return errors.Join(v.withdraw(), v.delete())
}

// withdraw takes the volume away from this node.
func (v *volume) withdraw() error {
	var all error
	for _, target := range slices.Clone(v.targets) {
		all = errors.Join(all, v.unpublish(target))
	}
	for _, path := range slices.Clone(v.stagings) {
		all = errors.Join(all, v.unstage(path))
	}
	return errors.Join(all, v.detach())
}

func (v *volume) delete() error {
	_, err := insist(v.t.controller.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: v.id})
	return err
}

// attach does what has to come before a node uses the volume, where the driver wants that.
func (v *volume) attach() error {
	if !v.t.has(attachments) || v.published != nil {
		return nil
	}
	reply, err := call(v.t.controller.ControllerPublishVolume, v.attachRequest())
	if err == nil {
		v.attachedWith(reply)
	}
	return err
}

func (v *volume) attachRequest() *csi.ControllerPublishVolumeRequest {
	return &csi.ControllerPublishVolumeRequest{
		VolumeId: v.id, NodeId: v.t.suite.node.GetNodeId(), VolumeCapability: v.capability, VolumeContext: v.context,
	}
}

// attachedWith keeps what the node is to be told, which may be nothing.
func (v *volume) attachedWith(reply *csi.ControllerPublishVolumeResponse) {
	v.published = maps.Clone(reply.GetPublishContext())
	if v.published == nil {
		v.published = map[string]string{}
	}
}

func (v *volume) detach() error {
	if v.published == nil {
		return nil
	}
	_, err := insist(v.t.controller.ControllerUnpublishVolume, &csi.ControllerUnpublishVolumeRequest{
		VolumeId: v.id, NodeId: v.t.suite.node.GetNodeId(),
	})
	if err == nil {
		v.published = nil
	}
	return err
}

// tryStage stages the volume at a path.
func (v *volume) tryStage(path string) error {
	if err := v.attach(); err != nil {
		return err
	}
	if !v.t.has(staging) {
		return nil
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	if !contains(v.stagings, path) {
		v.stagings = append(v.stagings, path)
	}
	_, err := call(v.t.node.NodeStageVolume, v.stageRequest(path))
	return err
}

func (v *volume) stageRequest(path string) *csi.NodeStageVolumeRequest {
	return &csi.NodeStageVolumeRequest{
		VolumeId: v.id, StagingTargetPath: path, VolumeCapability: v.capability, VolumeContext: v.context,
		PublishContext: v.published,
	}
}

// stage stages the volume at a new path.
func (v *volume) stage() string {
	v.t.Helper()
	path := v.t.path("staging")
	v.t.ok(v.tryStage(path), "stage %s", v.id)
	return path
}

func (v *volume) unstage(path string) error {
	_, err := insist(v.t.node.NodeUnstageVolume, &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: path})
	if err != nil && status.Code(err) != codes.NotFound {
		return err
	}
	v.stagings = slices.DeleteFunc(v.stagings, func(old string) bool { return old == path })
	if left := mountinfo.Below(path); len(left) > 0 {
		return fmt.Errorf("the unstaged path still has %v", left)
	}
	return nil
}

// tryPublish shows what is staged at one path at another one.
func (v *volume) tryPublish(stagingPath, target string, readOnly bool) error {
	if !contains(v.targets, target) {
		v.targets = append(v.targets, target)
	}
	_, err := call(v.t.node.NodePublishVolume, v.publishRequest(stagingPath, target, readOnly))
	return err
}

func (v *volume) publishRequest(stagingPath, target string, readOnly bool) *csi.NodePublishVolumeRequest {
	if !v.t.has(staging) {
		stagingPath = ""
	}
	return &csi.NodePublishVolumeRequest{
		VolumeId: v.id, StagingTargetPath: stagingPath, TargetPath: target, VolumeCapability: v.capability,
		Readonly: readOnly, VolumeContext: v.context, PublishContext: v.published,
	}
}

// publish shows what is staged at a new path.
func (v *volume) publish(stagingPath string, readOnly bool) string {
	v.t.Helper()
	target := v.t.path("target")
	v.t.ok(v.tryPublish(stagingPath, target, readOnly), "publish %s", v.id)
	return target
}

// unpublish takes a target away; the driver has to remove its path.
func (v *volume) unpublish(target string) error {
	_, err := insist(v.t.node.NodeUnpublishVolume, &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: target})
	if err != nil && status.Code(err) != codes.NotFound {
		return err
	}
	v.targets = slices.DeleteFunc(v.targets, func(old string) bool { return old == target })
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the unpublished path %s is still there (%v)", target, err)
	}
	return nil
}

// use stages and publishes the volume and returns where a pod would see it.
func (v *volume) use() string {
	v.t.Helper()
	return v.publish(v.stage(), false)
}

// rest takes the volume away from this node, which has to work.
func (v *volume) rest() {
	v.t.Helper()
	v.t.ok(v.withdraw(), "withdraw %s", v.id)
}
