package contract

import (
	"os"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

var secretSpecs = []Spec{
	{Name: "secrets: none is in an answer or in the log", needs: []string{hasLog}, run: secretsStaySecret},
}

// addSecrets puts a secret into each field of a request that is one.
func (d *driver) addSecrets(request any) {
	d.mutex.Lock()
	secret := d.secret
	d.mutex.Unlock()
	message, isMessage := request.(proto.Message)
	if secret == "" || !isMessage {
		return
	}
	fill(message.ProtoReflect(), func(message protoreflect.Message, field protoreflect.FieldDescriptor) {
		marked, _ := proto.GetExtension(field.Options(), csi.E_CsiSecret).(bool)
		if !marked || !field.IsMap() {
			return
		}
		entries := message.Mutable(field).Map()
		entries.Set(protoreflect.ValueOfString("password").MapKey(), protoreflect.ValueOfString(secret))
		entries.Set(protoreflect.ValueOfString(secret).MapKey(), protoreflect.ValueOfString("x"))
	})
}

func (d *driver) setSecret(secret string) {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	d.secret = secret
}

// copyWithSecrets makes each kind of copy there is.
func copyWithSecrets(t *T) {
	v := t.create("secrets")
	if t.has(snapshots) {
		s := t.snapshot(v)
		t.ok(s.restore().remove(), "restore")
		if t.has(metadata) && t.has(ChangedBlocks) {
			_, err := t.blocks(nil, s, 0, 0)
			t.ok(err, "blocks")
		}
	}
	if t.has(clones) {
		t.ok(v.clone().remove(), "clone")
	}
	if t.has(groups) {
		t.ok(t.group(v).delete(), "group")
	}
	if t.has(Inline) && !t.settings.Block {
		t.ok(t.inline(t.inlineRequest(t.path("target"))), "publish an inline volume")
	}
}

// secretsStaySecret sends secrets with everything: a whole life, and requests of all kinds that are
// refused, because it is errors that like to quote.
func secretsStaySecret(t *T) {
	secret := "s3cret-" + t.driver.run
	before, err := os.Stat(t.settings.Log)
	t.ok(err, "find the log")
	t.setSecret(secret)
	defer t.setSecret("")
	everyMethodAnswers(t)
	nonsenseIsRefused(t)
	eachCallTenTimes(t)
	copyWithSecrets(t)
	if t.has(mayKill) {
		// What is written at the end and at the start counts as well.
		t.restart()
	}
	log, err := os.ReadFile(t.settings.Log)
	t.ok(err, "read the log")
	if int64(len(log)) <= before.Size() {
		t.Fatalf("the log has not grown, so it proves nothing")
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, secret) {
			t.Errorf("a secret is in the log: %s", line)
		}
	}
}
