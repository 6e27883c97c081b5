package sanity

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bufbuild/protocompile"
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// TestDescriptor compares proto/csi.proto with the descriptor inside the published Go module.
func TestDescriptor(t *testing.T) {
	ours := facts(t, compileProto(t))
	published := facts(t, protodesc.ToFileDescriptorProto(csi.File_csi_proto))
	if len(published) < 2000 {
		t.Fatalf("only %d facts were found in the published descriptor, so the comparison proves nothing", len(published))
	}
	for _, difference := range differences(ours, published) {
		t.Error(difference)
	}
}

// TestDescriptorDifferences makes sure that the comparison sees what it is there to see.
func TestDescriptorDifferences(t *testing.T) {
	published := facts(t, compileProto(t))
	changes := map[string]func(*descriptorpb.FileDescriptorProto){
		"a field's number": func(f *descriptorpb.FileDescriptorProto) {
			message(f, "CreateVolumeRequest").Field[0].Number = proto.Int32(99)
		},
		"a field's type": func(f *descriptorpb.FileDescriptorProto) {
			message(f, "CreateVolumeRequest").Field[0].Type = descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum()
		},
		"a secret mark": func(f *descriptorpb.FileDescriptorProto) {
			message(f, "DeleteVolumeRequest").Field[1].Options = nil
		},
		"a reserved number": func(f *descriptorpb.FileDescriptorProto) {
			message(f, "NodeGetVolumeStatsResponse").ReservedRange = nil
		},
		"an alpha mark of a message": func(f *descriptorpb.FileDescriptorProto) {
			message(f, "VolumeHealth").Options = nil
		},
		"streaming": func(f *descriptorpb.FileDescriptorProto) {
			f.Service[3].Method[0].ServerStreaming = nil
		},
		"the order of two messages": func(f *descriptorpb.FileDescriptorProto) {
			f.MessageType[0], f.MessageType[1] = f.MessageType[1], f.MessageType[0]
		},
		"an option's definition": func(f *descriptorpb.FileDescriptorProto) {
			f.Extension[0].Number = proto.Int32(1)
		},
	}
	for name, change := range changes {
		file := compileProto(t)
		change(file)
		if len(differences(facts(t, file), published)) == 0 {
			t.Errorf("a change of %s was not noticed", name)
		}
	}
}

func message(file *descriptorpb.FileDescriptorProto, name string) *descriptorpb.DescriptorProto {
	at := slices.IndexFunc(file.MessageType, func(m *descriptorpb.DescriptorProto) bool { return m.GetName() == name })
	return file.MessageType[at]
}

func compileProto(t *testing.T) *descriptorpb.FileDescriptorProto {
	t.Helper()
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{"../proto"}}),
	}
	files, err := compiler.Compile(t.Context(), "csi.proto")
	if err != nil {
		t.Fatal(err)
	}
	return protodesc.ToFileDescriptorProto(files[0])
}

// facts takes a descriptor apart into single statements, each one a path and a value.
func facts(t *testing.T, file *descriptorpb.FileDescriptorProto) map[string]string {
	t.Helper()
	// Through the wire form, so that the option extensions of both sides are of the same Go types.
	wire, err := proto.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	file = &descriptorpb.FileDescriptorProto{}
	if err := proto.Unmarshal(wire, file); err != nil {
		t.Fatal(err)
	}
	// The file's own name and its comments are not part of the contract.
	file.Name, file.SourceCodeInfo = nil, nil
	found := map[string]string{}
	collect(found, "", file.ProtoReflect())
	return found
}

func collect(found map[string]string, path string, m protoreflect.Message) {
	if len(m.GetUnknown()) > 0 {
		found[path+"(unknown)"] = fmt.Sprintf("%x", m.GetUnknown())
	}
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		at := path + string(field.Name())
		if !field.IsList() {
			collectValue(found, at, field, value)
			return true
		}
		list := value.List()
		for i := range list.Len() {
			element := fmt.Sprintf("%s[%d]", at, i)
			if name := nameOf(field, list.Get(i)); name != "" {
				// The place in the list is one fact; all else is told under the name, so that
				// one missing element does not make all that follow it look different.
				found[element] = name
				element = fmt.Sprintf("%s %s", at, name)
			}
			collectValue(found, element, field, list.Get(i))
		}
		return true
	})
}

func collectValue(found map[string]string, path string, field protoreflect.FieldDescriptor, value protoreflect.Value) {
	switch field.Kind() {
	case protoreflect.MessageKind:
		collect(found, path+" / ", value.Message())
	case protoreflect.EnumKind:
		if known := field.Enum().Values().ByNumber(value.Enum()); known != nil {
			found[path] = string(known.Name())
			return
		}
		fallthrough
	default:
		found[path] = value.String()
	}
}

// nameOf returns what the descriptor calls this element, or nothing if it has no name.
func nameOf(field protoreflect.FieldDescriptor, value protoreflect.Value) string {
	if field.Kind() != protoreflect.MessageKind {
		return ""
	}
	name := field.Message().Fields().ByName("name")
	if name == nil || name.Kind() != protoreflect.StringKind {
		return ""
	}
	return value.Message().Get(name).String()
}

func differences(ours, published map[string]string) []string {
	var found []string
	for path, want := range published {
		if have, ok := ours[path]; !ok {
			found = append(found, fmt.Sprintf("%s: missing, published is %s", path, want))
		} else if have != want {
			found = append(found, fmt.Sprintf("%s: is %s, published is %s", path, have, want))
		}
	}
	for path, have := range ours {
		if _, ok := published[path]; !ok {
			found = append(found, fmt.Sprintf("%s: is %s, published has no such thing", path, have))
		}
	}
	slices.SortFunc(found, strings.Compare)
	return found
}
