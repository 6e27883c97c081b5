package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	groupsnapshot "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshot "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	rbac "k8s.io/api/rbac/v1"
	storage "k8s.io/api/storage/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// decoder knows the objects that deploy/ has, and refuses fields that they do not have, or have twice.
var decoder = func() runtime.Decoder {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		apps.AddToScheme, core.AddToScheme, rbac.AddToScheme, storage.AddToScheme,
		snapshot.AddToScheme, groupsnapshot.AddToScheme, monitoring.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			panic(err)
		}
	}
	return serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
}()

// decode reads the objects of a YAML stream.
func decode(text []byte) ([]runtime.Object, error) {
	reader := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	defer reader.Close()
	var objects []runtime.Object
	buffer := make([]byte, len(text)+1)
	for {
		n, err := reader.Read(buffer)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		document := buffer[:n]
		if isEmpty(document) {
			continue
		}
		object, _, err := decoder.Decode(document, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("%w, in:\n%s", err, document)
		}
		objects = append(objects, object)
	}
}

// isEmpty says whether a document has comments only.
func isEmpty(document []byte) bool {
	for line := range bytes.Lines(document) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && !bytes.Equal(line, []byte("---")) {
			return false
		}
	}
	return true
}

func mustDecode(t *testing.T, text []byte) []runtime.Object {
	t.Helper()
	objects, err := decode(text)
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) == 0 {
		t.Fatal("there are no objects in it")
	}
	return objects
}

// all returns the objects of one type.
func all[T runtime.Object](objects []runtime.Object) []T {
	var found []T
	for _, object := range objects {
		if one, is := object.(T); is {
			found = append(found, one)
		}
	}
	return found
}

// the returns the one object of a type.
func the[T runtime.Object](t *testing.T, objects []runtime.Object) T {
	t.Helper()
	found := all[T](objects)
	if len(found) != 1 {
		t.Fatalf("there are %d of %T, not one", len(found), *new(T))
	}
	return found[0]
}

func nameOf(object runtime.Object) string {
	named, is := object.(meta.Object)
	if !is {
		return fmt.Sprintf("%T", object)
	}
	return fmt.Sprintf("%T %s", object, named.GetName())
}

func TestTheDecoderIsStrict(t *testing.T) {
	for name, text := range map[string]string{
		"a misspelt field": "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {name: a}\nspec: {attachRequird: false}\n",
		"a field twice":    "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodeName: a, nodeName: b}\n",
		"a wrong type":     "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostPID: \"no\"}\n",
		"an unknown kind":  "apiVersion: v1\nkind: Pot\nmetadata: {name: a}\n",
	} {
		if _, err := decode([]byte(text)); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	objects, err := decode([]byte("# nothing\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n# nothing\n"))
	if err != nil || len(objects) != 1 {
		t.Errorf("one pod is read as %d objects: %v", len(objects), err)
	}
}
