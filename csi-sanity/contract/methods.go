package contract

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// method is one RPC of the contract, as its descriptor has it.
type method struct {
	// name is Service.Method.
	name       string
	descriptor protoreflect.MethodDescriptor
}

// allMethods are those of all services.
func allMethods() []method {
	var methods []method
	services := csi.File_csi_proto.Services()
	for i := range services.Len() {
		service := services.Get(i)
		for j := range service.Methods().Len() {
			descriptor := service.Methods().Get(j)
			methods = append(methods, method{fmt.Sprintf("%s.%s", service.Name(), descriptor.Name()), descriptor})
		}
	}
	return methods
}

func newMessage(descriptor protoreflect.MessageDescriptor) proto.Message {
	known, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		panic(fmt.Sprintf("%s is not linked in: %v", descriptor.FullName(), err))
	}
	return known.New().Interface()
}

func (m method) newRequest() proto.Message { return newMessage(m.descriptor.Input()) }

// call makes the RPC with that request. Of a stream it takes all.
func (m method) call(d *driver, request proto.Message) error {
	ctx, cancel := context.WithTimeout(context.Background(), rpcTimeout)
	defer cancel()
	path := fmt.Sprintf("/%s/%s", m.descriptor.Parent().FullName(), m.descriptor.Name())
	if !m.descriptor.IsStreamingServer() {
		return d.connection.Invoke(ctx, path, request, newMessage(m.descriptor.Output()))
	}
	stream, err := d.connection.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(request); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		err := stream.RecvMsg(newMessage(m.descriptor.Output()))
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// abilityOf says with which ability a driver has to have each RPC; those that are not here, always.
var abilityOf = map[string]string{
	"Controller.ControllerPublishVolume":    attachments,
	"Controller.ControllerUnpublishVolume":  attachments,
	"Controller.ListVolumes":                listVolumes,
	"Controller.GetCapacity":                getCapacity,
	"Controller.CreateSnapshot":             snapshots,
	"Controller.DeleteSnapshot":             snapshots,
	"Controller.ListSnapshots":              listSnapshots,
	"Controller.GetSnapshot":                getSnapshot,
	"Controller.ControllerExpandVolume":     growth,
	"Controller.ControllerGetVolume":        getVolume,
	"Controller.ControllerModifyVolume":     modify,
	"Controller.ControllerGetVolumeHealth":  volumeHealth,
	"Controller.ControllerListVolumeHealth": listHealth,
	"Node.NodeStageVolume":                  staging,
	"Node.NodeUnstageVolume":                staging,
	"Node.NodeGetVolumeStats":               stats,
	"Node.NodeExpandVolume":                 nodeGrowth,
	"Node.NodeGetVolumeHealth":              nodeHealth,
	"Node.NodeGetStorageHealth":             storageHealth,
}

// has says whether the driver has to have this RPC.
func (m method) isExpected(t *T) bool {
	switch {
	case strings.HasPrefix(m.name, "GroupController."):
		return t.has(groups)
	case strings.HasPrefix(m.name, "SnapshotMetadata."):
		return t.has(metadata)
	}
	ability, conditional := abilityOf[m.name]
	return !conditional || t.has(ability)
}

// fill sets every field of a message, also of those inside, as a function says. What it leaves is
// left alone.
func fill(message protoreflect.Message, set func(protoreflect.Message, protoreflect.FieldDescriptor)) {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		set(message, field)
		// One level is what requests have; a field that holds its own kind would never end.
		if field.Kind() == protoreflect.MessageKind && !field.IsList() && !field.IsMap() && message.Has(field) {
			fill(message.Mutable(field).Message(), set)
		}
	}
}
