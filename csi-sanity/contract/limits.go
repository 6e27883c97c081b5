package contract

import (
	"path/filepath"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// That nothing the driver returns is too long is a rule that binds every reply (rules.go).
var limitSpecs = []Spec{
	{Name: "limits: strings of more than 128 bytes are refused", run: longStrings},
	{Name: "limits: maps of more than 4 KiB are refused", run: largeMaps},
	{Name: "limits: paths may be longer than strings", needs: []string{staging}, run: longPaths},
	{Name: "limits: ids that are not the driver's name nothing", run: foreignIDs},
}

func longStrings(t *T) {
	long := strings.Repeat("x", stringLimit+1)
	request := t.request("long")
	request.Name = long
	_, err := t.tryCreate(request)
	t.code("a name of 129 bytes", err, codes.InvalidArgument)
	request.Name = strings.Repeat("é", stringLimit/2) + "x"
	_, err = t.tryCreate(request)
	t.code("a name of 129 bytes in 65 characters", err, codes.InvalidArgument)
	if !t.settings.Block {
		request = t.request("long")
		request.VolumeCapabilities = []*csi.VolumeCapability{withFilesystem(t.ordinary(), long)}
		_, err = t.tryCreate(request)
		t.code("a filesystem of 129 bytes", err, codes.InvalidArgument)
	}
	unknown := []codes.Code{codes.InvalidArgument, codes.NotFound}
	refused(t, "validate an id of 129 bytes", t.controller.ValidateVolumeCapabilities, &csi.ValidateVolumeCapabilitiesRequest{
		VolumeId: long, VolumeCapabilities: []*csi.VolumeCapability{t.ordinary()},
	}, unknown...)
	refused(t, "publish an id of 129 bytes", t.node.NodePublishVolume, &csi.NodePublishVolumeRequest{
		VolumeId: long, StagingTargetPath: t.path("staging"), TargetPath: t.path("target"), VolumeCapability: t.ordinary(),
	}, unknown...)
	if t.has(staging) {
		refused(t, "stage an id of 129 bytes", t.node.NodeStageVolume, &csi.NodeStageVolumeRequest{
			VolumeId: long, StagingTargetPath: t.path("staging"), VolumeCapability: t.ordinary(),
		}, unknown...)
	}
	if t.has(growth) {
		refused(t, "expand an id of 129 bytes", t.controller.ControllerExpandVolume, &csi.ControllerExpandVolumeRequest{
			VolumeId: long, CapacityRange: &csi.CapacityRange{RequiredBytes: 1},
		}, unknown...)
	}
}

func largeMaps(t *T) {
	large := map[string]string{}
	for _, end := range strings.Split("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "") {
		large["csi.storage.k8s.io/"+end] = strings.Repeat("x", 100)
	}
	request := t.request("large")
	request.Parameters = large
	_, err := t.tryCreate(request)
	t.code("parameters of 6 KiB", err, codes.InvalidArgument)
	if t.has(getCapacity) {
		refused(t, "GetCapacity with parameters of 6 KiB", t.controller.GetCapacity,
			&csi.GetCapacityRequest{Parameters: large}, codes.InvalidArgument)
	}
	if !t.settings.Block {
		var flags []string
		for range 2000 {
			flags = append(flags, "ro,rw")
		}
		request = t.request("large")
		request.VolumeCapabilities = []*csi.VolumeCapability{withFlags(t.ordinary(), flags...)}
		_, err = t.tryCreate(request)
		t.code("mount flags of 10 KiB", err, codes.InvalidArgument)
	}
}

// longPaths uses paths that are as long as kubelet's can be, and longer.
func longPaths(t *T) {
	path := t.path("deep")
	t.mkdir(path)
	for range 20 {
		path = filepath.Join(path, "a-rather-long-part-of-a-path")
		t.mkdir(path)
	}
	v := t.create("long path")
	stagingPath, target := filepath.Join(path, "staging"), filepath.Join(path, "target")
	t.mkdir(stagingPath)
	t.ok(v.tryStage(stagingPath), "stage at a path of %d bytes", len(path))
	t.ok(v.tryPublish(stagingPath, target, false), "publish at a path of %d bytes", len(path))
	t.write(target, "deep")
	t.check("at a long path", target, "deep")
	v.rest()
	t.check("at a short path", v.use(), "deep")
}

// foreignIDs are of the form that ids have, or of none; nothing may be found or done.
func foreignIDs(t *T) {
	v := t.create("foreign")
	for _, id := range []string{
		"x", "..", "../../etc", "/", v.id + "0", v.id[:len(v.id)-1], strings.ToUpper(v.id) + "Z", "v-00000000-0-0", " " + v.id, v.id + "\n", "\x00", "🚢",
	} {
		refused(t, "validate "+id, t.controller.ValidateVolumeCapabilities, &csi.ValidateVolumeCapabilitiesRequest{
			VolumeId: id, VolumeCapabilities: []*csi.VolumeCapability{v.capability},
		}, codes.NotFound, codes.InvalidArgument)
		_, err := call(t.controller.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: id})
		t.code("delete "+id, err, codes.OK, codes.InvalidArgument)
	}
	must(t, t.controller.ValidateVolumeCapabilities, v.validation())
}
