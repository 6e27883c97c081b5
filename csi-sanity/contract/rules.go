package contract

import (
	"fmt"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// stringLimit and mapLimit are the general limits of CSI, for plugins as well as for COs.
	stringLimit = 128
	mapLimit    = 4096
	// nodeIDLimit is the one exception among what plugins return.
	nodeIDLimit = 256
)

// brokenByError returns the rules that an error breaks: it has a text, and no details.
func brokenByError(err error) []string {
	said, isStatus := status.FromError(err)
	if !isStatus {
		return []string{fmt.Sprintf("the error is no gRPC status: %v", err)}
	}
	var broken []string
	if said.Message() == "" {
		broken = append(broken, fmt.Sprintf("the error %s has no message", said.Code()))
	}
	if len(said.Proto().GetDetails()) > 0 {
		broken = append(broken, fmt.Sprintf("the error %s has details, which CSI forbids", said.Code()))
	}
	if said.Code() == codes.Unknown {
		broken = append(broken, "the error is UNKNOWN, of which no caller can make anything: "+said.Message())
	}
	return broken
}

// brokenByReply returns the rules that a reply breaks: the limits of strings and maps.
func brokenByReply(reply proto.Message) []string {
	var r replyRules
	r.message(reply.ProtoReflect())
	return r.broken
}

type replyRules struct{ broken []string }

func (r *replyRules) message(message protoreflect.Message) {
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.IsMap():
			r.entries(field, value.Map())
		case field.IsList():
			for i := range value.List().Len() {
				r.value(field, value.List().Get(i))
			}
		default:
			r.value(field, value)
		}
		return true
	})
}

func (r *replyRules) value(field protoreflect.FieldDescriptor, value protoreflect.Value) {
	switch field.Kind() {
	case protoreflect.MessageKind:
		r.message(value.Message())
	case protoreflect.StringKind:
		limit := stringLimit
		if field.FullName() == "csi.v1.NodeGetInfoResponse.node_id" {
			limit = nodeIDLimit
		}
		text := value.String()
		if len(text) > limit {
			r.add("%s has %d bytes, more than %d: %q", field.FullName(), len(text), limit, text)
		}
		if !utf8.ValidString(text) {
			r.add("%s is not UTF-8", field.FullName())
		}
	}
}

func (r *replyRules) entries(field protoreflect.FieldDescriptor, entries protoreflect.Map) {
	size := 0
	entries.Range(func(key protoreflect.MapKey, value protoreflect.Value) bool {
		size += len(key.String())
		if field.MapValue().Kind() == protoreflect.StringKind {
			size += len(value.String())
		}
		return true
	})
	if size > mapLimit {
		r.add("%s has %d bytes, more than %d", field.FullName(), size, mapLimit)
	}
}

func (r *replyRules) add(format string, about ...any) {
	r.broken = append(r.broken, fmt.Sprintf(format, about...))
}
