package contract

import (
	"fmt"
	"maps"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

var roomSpecs = []Spec{
	{Name: "room: what GetCapacity promises can be had, and no more", needs: []string{getCapacity}, run: promisedRoom},
	{Name: "room: it shrinks with each volume and comes back", needs: []string{getCapacity, OwnPool}, run: roomShrinks},
	{Name: "room: the class and the topology are heeded", needs: []string{getCapacity}, run: roomOfClass},
}

func (t *T) roomRequest() *csi.GetCapacityRequest {
	return &csi.GetCapacityRequest{
		VolumeCapabilities: []*csi.VolumeCapability{t.ordinary()}, Parameters: t.settings.Parameters,
	}
}

func (t *T) room() *csi.GetCapacityResponse {
	t.Helper()
	reply := must(t, t.controller.GetCapacity, t.roomRequest())
	for about, size := range map[string]int64{
		"the capacity": reply.GetAvailableCapacity(), "the maximum": reply.GetMaximumVolumeSize().GetValue(),
		"the minimum": reply.GetMinimumVolumeSize().GetValue(),
	} {
		if size < 0 {
			t.Errorf("%s is %d", about, size)
		}
	}
	if most := reply.GetMaximumVolumeSize(); most != nil && most.GetValue() > reply.GetAvailableCapacity() {
		t.Errorf("one volume can have %d, but all together only %d", most.GetValue(), reply.GetAvailableCapacity())
	}
	return reply
}

func promisedRoom(t *T) {
	room := t.room()
	if most := room.GetMaximumVolumeSize(); most != nil && most.GetValue() > 0 {
		request := t.request("too large")
		request.CapacityRange = &csi.CapacityRange{RequiredBytes: 2 * most.GetValue()}
		_, err := t.tryCreate(request)
		t.code("twice the maximum", err, codes.ResourceExhausted, codes.OutOfRange)
		request = t.request("largest")
		size := most.GetValue()
		if !t.has(OwnPool) {
			// Others may have written in the meantime.
			size = size / 10 * 9
		}
		request.CapacityRange = &csi.CapacityRange{RequiredBytes: size}
		v, err := t.tryCreate(request)
		t.ok(err, "create the largest volume, of %d bytes", size)
		t.ok(v.remove(), "remove the largest volume")
	}
	if least := room.GetMinimumVolumeSize(); least != nil {
		request := t.request("smallest")
		request.CapacityRange = &csi.CapacityRange{LimitBytes: least.GetValue()}
		if v := t.createFrom(request); least.GetValue() > 0 && v.size > least.GetValue() {
			t.Errorf("the smallest volume has %d bytes, the limit was %d", v.size, least.GetValue())
		}
		if least.GetValue() > 1 {
			request = t.request("too small")
			request.CapacityRange = &csi.CapacityRange{LimitBytes: least.GetValue() - 1}
			_, err := t.tryCreate(request)
			t.code("less than the minimum", err, codes.OutOfRange)
		}
	}
}

func roomShrinks(t *T) {
	before := t.room().GetAvailableCapacity()
	size := before / 4
	request := t.request("large")
	request.CapacityRange = &csi.CapacityRange{RequiredBytes: size}
	one, two := t.createFrom(request), (*volume)(nil)
	between := t.room().GetAvailableCapacity()
	request.Name = t.driver.name("large too")
	two = t.createFrom(request)
	after := t.room().GetAvailableCapacity()
	// What a filesystem keeps for itself may count with the first one.
	if between > before-size/2 || after > between-size*9/10 {
		t.Errorf("two volumes of %d were made, and the capacity was %d, %d, %d", size, before, between, after)
	}
	t.ok(one.remove(), "remove the first volume")
	t.ok(two.remove(), "remove the second volume")
	t.eventually("the room of deleted volumes comes back", func() error {
		// A filesystem may keep a little for next time.
		if now := t.room().GetAvailableCapacity(); now < before-size/20 {
			return fmt.Errorf("the capacity was %d and is %d", before, now)
		}
		return nil
	})
}

func roomOfClass(t *T) {
	request := t.roomRequest()
	request.VolumeCapabilities = nil
	request.Parameters = maps.Clone(request.Parameters)
	if request.Parameters == nil {
		request.Parameters = map[string]string{}
	}
	// The provisioner sends the class as it is, without capabilities.
	for _, key := range []string{"provisioner-secret-name", "node-stage-secret-namespace", "pvc/name"} {
		request.Parameters["csi.storage.k8s.io/"+key] = "x"
	}
	must(t, t.controller.GetCapacity, request)
	request.Parameters["no-such-parameter"] = "x"
	refused(t, "an unknown parameter", t.controller.GetCapacity, request, codes.InvalidArgument)
	if !t.has(topology) {
		return
	}
	node := must(t, t.node.NodeGetInfo, &csi.NodeGetInfoRequest{})
	request = t.roomRequest()
	request.AccessibleTopology = node.GetAccessibleTopology()
	if room := must(t, t.controller.GetCapacity, request); room.GetAvailableCapacity() == 0 {
		t.Errorf("there is no room on this node")
	}
	request.AccessibleTopology = elsewhere(node.GetAccessibleTopology())
	if room := must(t, t.controller.GetCapacity, request); room.GetAvailableCapacity() != 0 {
		t.Errorf("there is room where this driver has nothing: %v", room)
	}
}
