package contract

import (
	"fmt"
	"os"
	"path/filepath"

	"google.golang.org/grpc/codes"
)

// modeRules say what an access mode allows on one node.
type modeRules struct {
	mode Mode
	// writes: its users may write.
	writes bool
	// many: more than one target path.
	many bool
	// oneWriter: only one of them may be writable, where the driver says so.
	oneWriter bool
}

var modeTable = []modeRules{
	{nodeWriter, true, false, true},
	{nodeReader, false, false, false},
	{manyReaders, false, true, false},
	{manyReadersWriter, true, true, true},
	{manyWriters, true, true, false},
	{singleWriter, true, false, true},
	{multiWriter, true, true, false},
}

// modeSpecs are one for each mode: what can be published, and what can be written then.
func modeSpecs() []Spec {
	var specs []Spec
	for _, rules := range modeTable {
		specs = append(specs, Spec{
			Name:  fmt.Sprintf("modes: %s", rules.mode),
			needs: []string{modeAbility(rules.mode), modeAbility(nodeWriter), staging},
			run:   func(t *T) { checkMode(t, rules) },
		})
	}
	return specs
}

func checkMode(t *T, rules modeRules) {
	request := t.request("mode")
	// Filled by a writer first: the CO may use a volume with any of the capabilities that it asks for.
	writer, wanted := t.settings.capability(nodeWriter), t.settings.capability(rules.mode)
	request.VolumeCapabilities = append(request.VolumeCapabilities[:0], writer, wanted)
	v := t.createFrom(request)
	t.write(v.use(), "before")
	v.rest()
	v.capability = wanted
	for _, first := range []bool{false, true} {
		for _, second := range []bool{false, true} {
			checkTargets(t, v, rules, first, second)
		}
	}
}

// checkTargets publishes a volume twice, each time read-only or not, and looks at what it can do.
func checkTargets(t *T, v *volume, rules modeRules, firstReadOnly, secondReadOnly bool) {
	about := fmt.Sprintf("readonly %v, then readonly %v", firstReadOnly, secondReadOnly)
	stagingPath := v.stage()
	firstWrites := rules.writes && !firstReadOnly
	first := v.publish(stagingPath, firstReadOnly)
	checkAccess(t, about+": the first target", first, firstWrites)
	checkRepeats(t, v, rules, stagingPath, first, firstReadOnly)

	secondWrites := rules.writes && !secondReadOnly
	allowed := []codes.Code{codes.OK}
	switch {
	case !rules.many:
		allowed = []codes.Code{codes.FailedPrecondition}
	case rules.oneWriter && firstWrites && secondWrites && t.has(OneWriter):
		allowed = []codes.Code{codes.FailedPrecondition}
	case rules.oneWriter && firstWrites && secondWrites:
		// The mode speaks of nodes; whether there may be two writers on one is left open.
		allowed = append(allowed, codes.FailedPrecondition)
	}
	target := t.path("second")
	err := v.tryPublish(stagingPath, target, secondReadOnly)
	t.code(about+": the second target", err, allowed...)
	if err != nil {
		if _, err := os.Lstat(target); err == nil {
			t.Errorf("%s: the second target was refused, but %s is there", about, target)
		}
	} else {
		checkAccess(t, about+": the second target", target, secondWrites)
		if firstWrites {
			checkShared(t, about, first, target)
		}
	}
	// Neither the second one nor its refusal has changed the first one.
	checkAccess(t, about+": the first target beside the second", first, firstWrites)
	v.rest()
}

// checkAccess reads what was written before, and tries to write.
func checkAccess(t *T, about, target string, writes bool) {
	t.Helper()
	t.check(about, target, "before")
	err := t.canWrite(target)
	if writes && err != nil {
		t.Errorf("%s has to be writable: %v", about, err)
	}
	if !writes && err == nil {
		t.Errorf("%s must not be writable", about)
	}
}

// checkRepeats publishes the same target again: the same way is fine, another way is not.
func checkRepeats(t *T, v *volume, rules modeRules, stagingPath, target string, readOnly bool) {
	t.ok(v.tryPublish(stagingPath, target, readOnly), "publish the same target the same way again")
	allowed := []codes.Code{codes.AlreadyExists}
	if !rules.writes {
		// For a mode that only reads, both ways are the same.
		allowed = append(allowed, codes.OK)
	}
	t.code("the same target with another readonly", v.tryPublish(stagingPath, target, !readOnly), allowed...)
}

// checkShared writes through one target and reads through another one.
func checkShared(t *T, about, from, to string) {
	t.Helper()
	if t.settings.Block {
		t.write(from, "before")
		t.check(about+": the other target", to, "before")
		return
	}
	text := []byte(about)
	t.ok(writeFile(filepath.Join(from, "shared"), text), "write")
	read, err := os.ReadFile(filepath.Join(to, "shared"))
	if err != nil || string(read) != string(text) {
		t.Errorf("%s: what was written through one target is not seen through the other: %q, %v", about, read, err)
	}
}
