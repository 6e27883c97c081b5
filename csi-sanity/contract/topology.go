package contract

import (
	"maps"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

var topologySpecs = []Spec{
	{Name: "topology: a volume is where it was required", needs: []string{topology}, run: requiredTopology},
	{Name: "topology: what cannot be reached is refused as exhausted", needs: []string{topology}, run: unreachableTopology},
}

// elsewhere is a place with the same keys that no node is at.
func elsewhere(here *csi.Topology) *csi.Topology {
	segments := maps.Clone(here.GetSegments())
	for key := range segments {
		segments[key] = "no-such-place"
	}
	return &csi.Topology{Segments: segments}
}

func covers(term *csi.Topology, segments map[string]string) bool {
	for key, value := range segments {
		if term.GetSegments()[key] != value {
			return false
		}
	}
	return true
}

func requiredTopology(t *T) {
	here := must(t, t.node.NodeGetInfo, &csi.NodeGetInfoRequest{}).GetAccessibleTopology()
	there := elsewhere(here)
	for about, requirement := range map[string]*csi.TopologyRequirement{
		"nothing required":                nil,
		"required here":                   {Requisite: []*csi.Topology{here}},
		"required here or elsewhere":      {Requisite: []*csi.Topology{there, here}},
		"preferred here":                  {Preferred: []*csi.Topology{here}},
		"required and preferred here":     {Requisite: []*csi.Topology{here}, Preferred: []*csi.Topology{here}},
		"preferred elsewhere":             {Requisite: []*csi.Topology{here, there}, Preferred: []*csi.Topology{there, here}},
		"preferred elsewhere, here, both": {Requisite: []*csi.Topology{there, here}, Preferred: []*csi.Topology{there}},
	} {
		request := t.request("topology")
		request.AccessibilityRequirements = requirement
		made, err := call(t.controller.CreateVolume, request)
		t.ok(err, "%s", about)
		v := t.adopt(made.GetVolume())
		reachable := false
		for _, term := range made.GetVolume().GetAccessibleTopology() {
			reachable = reachable || covers(term, here.GetSegments())
		}
		if !reachable {
			t.Errorf("%s: this node is not among %v", about, made.GetVolume().GetAccessibleTopology())
		}
		t.ok(v.remove(), "remove")
	}
}

func unreachableTopology(t *T) {
	here := must(t, t.node.NodeGetInfo, &csi.NodeGetInfoRequest{}).GetAccessibleTopology()
	for about, requirement := range map[string]*csi.TopologyRequirement{
		"required elsewhere": {Requisite: []*csi.Topology{elsewhere(here)}},
		"required and preferred elsewhere": {
			Requisite: []*csi.Topology{elsewhere(here)}, Preferred: []*csi.Topology{elsewhere(here)},
		},
	} {
		request := t.request("topology")
		request.AccessibilityRequirements = requirement
		_, err := t.tryCreate(request)
		t.code(about, err, codes.ResourceExhausted)
	}
}
