package contract

import (
	"regexp"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
)

var replySpecs = []Spec{
	{
		Name: "replies: every RPC answers when it is advertised, and is UNIMPLEMENTED otherwise",
		run:  everyMethodAnswers,
	},
	{
		Name: "replies: nonsense in every field is refused, and the driver lives on",
		run:  nonsenseIsRefused,
	},
	{
		Name: "replies: the driver's name, its node and its topology keep to the grammar",
		run:  identityKeepsToTheGrammar,
	},
}

func everyMethodAnswers(t *T) {
	for _, m := range allMethods() {
		// An empty request lacks what is required, so nothing can come of it.
		code := status.Code(m.call(t.driver, m.newRequest()))
		switch {
		case !m.isExpected(t) && code != codes.Unimplemented:
			t.Errorf("%s is not advertised, but the answer is %v", m.name, code)
		case m.isExpected(t) && code != codes.OK && code != codes.InvalidArgument:
			t.Errorf("%s is advertised, but an empty request is answered with %v", m.name, code)
		}
	}
}

// nonsenseIsRefused sends each RPC fields that are all too long, or all wrong.
func nonsenseIsRefused(t *T) {
	long := strings.Repeat("x", stringLimit+1)
	for about, text := range map[string]string{"too long": long, "wrong": "no such thing", "hostile": "../../etc/\n\x7f", "a path": "/proc/self/none"} {
		for _, m := range allMethods() {
			request := m.newRequest()
			fill(request.ProtoReflect(), func(message protoreflect.Message, field protoreflect.FieldDescriptor) {
				setNonsense(message, field, text)
			})
			switch code := status.Code(m.call(t.driver, request)); code {
			case codes.OK, codes.InvalidArgument, codes.NotFound, codes.OutOfRange, codes.FailedPrecondition,
				codes.Aborted, codes.ResourceExhausted:
			case codes.Unimplemented:
				if m.isExpected(t) {
					t.Errorf("%s with %s fields is UNIMPLEMENTED, but it is advertised", m.name, about)
				}
			default:
				t.Errorf("%s with %s fields is answered with %v", m.name, about, code)
			}
		}
	}
	reply := must(t, t.identity.Probe, &csi.ProbeRequest{})
	if ready := reply.GetReady(); ready != nil && !ready.GetValue() {
		t.Errorf("the driver is not ready any more")
	}
}

func setNonsense(message protoreflect.Message, field protoreflect.FieldDescriptor, text string) {
	value := func(kind protoreflect.FieldDescriptor) protoreflect.Value {
		switch kind.Kind() {
		case protoreflect.StringKind:
			return protoreflect.ValueOfString(text)
		case protoreflect.Int32Kind:
			return protoreflect.ValueOfInt32(-7)
		case protoreflect.Int64Kind:
			return protoreflect.ValueOfInt64(-7)
		case protoreflect.EnumKind:
			return protoreflect.ValueOfEnum(99)
		case protoreflect.BoolKind:
			return protoreflect.ValueOfBool(true)
		default:
			return protoreflect.Value{}
		}
	}
	switch {
	case field.IsMap():
		entries := message.Mutable(field).Map()
		for _, end := range strings.Split("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "") {
			if entry := value(field.MapValue()); entry.IsValid() {
				entries.Set(protoreflect.ValueOfString(text+end).MapKey(), entry)
			}
		}
	case field.IsList() && field.Kind() == protoreflect.MessageKind:
		fill(message.Mutable(field).List().AppendMutable().Message(), func(m protoreflect.Message, f protoreflect.FieldDescriptor) {
			setNonsense(m, f, text)
		})
	case field.IsList():
		message.Mutable(field).List().Append(value(field))
	case field.Kind() == protoreflect.MessageKind:
		message.Mutable(field)
	default:
		if set := value(field); set.IsValid() {
			message.Set(field, set)
		}
	}
}

var (
	domainName  = regexp.MustCompile(`^[a-zA-Z]([-a-zA-Z0-9.]*[a-zA-Z])?$`)
	topologyKey = regexp.MustCompile(`^([a-z0-9]([-.a-z0-9]{0,61}[a-z0-9])?/)?[a-zA-Z0-9]([-_.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$`)
	segment     = regexp.MustCompile(`^[a-zA-Z0-9]([-_.a-zA-Z0-9]{0,61}[a-zA-Z0-9])?$`)
)

func identityKeepsToTheGrammar(t *T) {
	info := must(t, t.identity.GetPluginInfo, &csi.GetPluginInfoRequest{})
	if name := info.GetName(); len(name) > 63 || !domainName.MatchString(name) {
		t.Errorf("the name %q is no domain name of at most 63 characters", name)
	}
	if info.GetVendorVersion() == "" {
		t.Errorf("the driver does not say its version")
	}
	node := must(t, t.node.NodeGetInfo, &csi.NodeGetInfoRequest{})
	if node.GetNodeId() == "" {
		t.Errorf("the node has no id")
	}
	if node.GetMaxVolumesPerNode() < 0 {
		t.Errorf("the node can have %d volumes", node.GetMaxVolumesPerNode())
	}
	checkSegments(t, node.GetAccessibleTopology())
	made := must(t, t.controller.CreateVolume, t.request("topology"))
	t.adopt(made.GetVolume())
	for _, term := range made.GetVolume().GetAccessibleTopology() {
		checkSegments(t, term)
	}
}

func checkSegments(t *T, term *csi.Topology) {
	prefixes, lower := map[string]bool{}, map[string]bool{}
	for key, value := range term.GetSegments() {
		if !topologyKey.MatchString(key) {
			t.Errorf("the topology key %q does not keep to the grammar", key)
		}
		if !segment.MatchString(value) {
			t.Errorf("the topology segment %q does not keep to the grammar", value)
		}
		if prefix, _, found := strings.Cut(key, "/"); found {
			prefixes[prefix] = true
		}
		if lower[strings.ToLower(key)] {
			t.Errorf("the topology has two keys %q that differ in case only", key)
		}
		lower[strings.ToLower(key)] = true
	}
	if len(prefixes) > 1 {
		t.Errorf("the topology keys have %d prefixes", len(prefixes))
	}
}
