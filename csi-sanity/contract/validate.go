package contract

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

var validateSpecs = []Spec{
	{Name: "validate: what a volume can do is confirmed as it was asked", run: confirmedAsAsked},
	{Name: "validate: what nobody has checked is not confirmed", run: notConfirmedUnseen},
	{Name: "validate: wrong requests are refused", run: wrongValidations},
}

func (v *volume) validation() *csi.ValidateVolumeCapabilitiesRequest {
	return &csi.ValidateVolumeCapabilitiesRequest{
		VolumeId: v.id, VolumeContext: v.context, VolumeCapabilities: []*csi.VolumeCapability{v.capability},
	}
}

func confirmedAsAsked(t *T) {
	for _, mode := range allModes {
		if !t.has(modeAbility(mode)) {
			continue
		}
		request := t.request("validate")
		request.VolumeCapabilities = []*csi.VolumeCapability{t.settings.capability(mode)}
		v := t.createFrom(request)
		asked := v.validation()
		asked.Parameters = t.settings.Parameters
		confirmed := must(t, t.controller.ValidateVolumeCapabilities, asked).GetConfirmed()
		if confirmed == nil {
			t.Errorf("%s: what the volume was made for is not confirmed", mode)
			continue
		}
		same := len(confirmed.GetVolumeCapabilities()) == 1 &&
			proto.Equal(confirmed.GetVolumeCapabilities()[0], v.capability)
		if !same {
			t.Errorf("%s: confirmed is %v, asked was %v", mode, confirmed.GetVolumeCapabilities(), v.capability)
		}
	}
}

// notConfirmedUnseen asks for what cannot be: to confirm it would tell the CO that it was understood.
func notConfirmedUnseen(t *T) {
	v := t.create("unseen")
	unseen := map[string]func(*csi.ValidateVolumeCapabilitiesRequest){
		"a foreign volume context": func(r *csi.ValidateVolumeCapabilitiesRequest) {
			r.VolumeContext = map[string]string{"no-such-attribute": "x"}
		},
		"an unknown parameter": func(r *csi.ValidateVolumeCapabilitiesRequest) {
			r.Parameters = map[string]string{"no-such-parameter": "x"}
		},
		"an unknown mutable parameter": func(r *csi.ValidateVolumeCapabilitiesRequest) {
			r.MutableParameters = map[string]string{"no-such-parameter": "x"}
		},
		"an unknown mount flag": func(r *csi.ValidateVolumeCapabilitiesRequest) {
			r.VolumeCapabilities = []*csi.VolumeCapability{withFlags(r.GetVolumeCapabilities()[0], "no-such-flag")}
		},
	}
	for about, change := range unseen {
		if t.settings.Block && about == "an unknown mount flag" {
			continue
		}
		request := v.validation()
		change(request)
		reply, err := call(t.controller.ValidateVolumeCapabilities, request)
		t.code(about, err, codes.OK, codes.InvalidArgument)
		confirmed := reply.GetConfirmed()
		if confirmed == nil {
			continue
		}
		echoed := len(confirmed.GetVolumeContext())+len(confirmed.GetParameters())+len(confirmed.GetMutableParameters()) > 0
		if echoed || about == "an unknown mount flag" {
			t.Errorf("%s was confirmed: %v", about, confirmed)
		}
	}
}

func wrongValidations(t *T) {
	v := t.create("wrong")
	missing := v.validation()
	missing.VolumeId = v.id + "0"
	refused(t, "an unknown volume", t.controller.ValidateVolumeCapabilities, missing, codes.NotFound)
	empty := v.validation()
	empty.VolumeCapabilities = nil
	refused(t, "no capabilities", t.controller.ValidateVolumeCapabilities, empty, codes.InvalidArgument)
	typeless := v.validation()
	typeless.VolumeCapabilities = []*csi.VolumeCapability{{AccessMode: v.capability.GetAccessMode()}}
	refused(t, "no access type", t.controller.ValidateVolumeCapabilities, typeless, codes.InvalidArgument)
	modeless := v.validation()
	modeless.VolumeCapabilities = []*csi.VolumeCapability{{AccessType: v.capability.GetAccessType()}}
	refused(t, "no access mode", t.controller.ValidateVolumeCapabilities, modeless, codes.InvalidArgument)
}

// withFlags is a mount capability with these mount flags.
func withFlags(capability *csi.VolumeCapability, flags ...string) *csi.VolumeCapability {
	changed := proto.CloneOf(capability)
	changed.GetMount().MountFlags = flags
	return changed
}
