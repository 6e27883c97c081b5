package sanity

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"orlop/csi-sanity/contract"
	"orlop/csi-sanity/mountinfo"
)

// TestSkipListNames compares the list of allowed skips with the specs of a dry run, in which the
// suite calls no driver: a name that is misspelt or that a newer suite has dropped is found here,
// without root and without a driver.
func TestSkipListNames(t *testing.T) {
	dir := t.TempDir()
	report := filepath.Join(dir, "junit.xml")
	err := run(t.Context(), buildSuite(t), "-csi.endpoint="+endpoint(dir), "-ginkgo.dry-run", "-ginkgo.junit-report="+report)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	specs, err := parseReport(text)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, spec := range specs {
		if names[spec.Name] {
			t.Errorf("the suite has two specs with the name %q, and the list cannot tell them apart", spec.Name)
		}
		names[spec.Name] = true
	}
	for _, c := range configurations() {
		for name, reason := range skipReasons(allowedSkips(c)) {
			if !names[name] {
				t.Errorf("the suite has no spec with the name %q", name)
			}
			if reason == "" {
				t.Errorf("no reason is given for %q", name)
			}
		}
	}
}

// TestSizes makes sure that the sizes suit the suite, which asks for twice the size as well and
// expects to get exactly what it asks for.
func TestSizes(t *testing.T) {
	for _, c := range configurations() {
		if c.VolumeSize%8192 != 0 {
			t.Errorf("%s: neither %d bytes nor half as much may need rounding", c.Name, c.VolumeSize)
		}
	}
}

func TestParseReport(t *testing.T) {
	specs, err := parseReport([]byte(`<testsuites><testsuite>
		<testcase name="[It] A works" status="passed"/>
		<testcase name="[It] B works" status="skipped"><skipped message="skipped - not supported"/></testcase>
		<testcase name="[It] C works" status="pending"><skipped message="pending"/></testcase>
		<testcase name="[It] D works" status="failed"><failure message="expected 1">stack</failure></testcase>
		<testcase name="[It] E works" status="panicked"><error message="panic">stack</error></testcase>
		<testcase name="[It] F works" status="timedout"/>
	</testsuite></testsuites>`))
	if err != nil {
		t.Fatal(err)
	}
	want := []SpecResult{
		{"A works", Passed, "passed"},
		{"B works", Skipped, "skipped - not supported"},
		{"C works", Skipped, "pending"},
		{"D works", Failed, "expected 1\nstack"},
		{"E works", Failed, "panic\nstack"},
		{"F works", Failed, "timedout"},
	}
	if !slices.Equal(specs, want) {
		t.Errorf("got %+v, want %+v", specs, want)
	}
	for _, bad := range []string{"", "<testsuites></testsuites>", "<testsuites><testsuite>"} {
		if _, err := parseReport([]byte(bad)); err == nil {
			t.Errorf("the report %q was accepted", bad)
		}
	}
}

func TestJudgeSkips(t *testing.T) {
	reasons := skipReasons([]skipGroup{{Reason: "not yet", Specs: map[string][]string{"X": {"a", "b", "c"}}}})
	problems := judgeSkips([]SpecResult{
		{Name: "X a", Outcome: Skipped},
		{Name: "X b", Outcome: Passed},
		{Name: "X d", Outcome: Skipped, Message: "why"},
		{Name: "X e", Outcome: Failed},
	}, reasons)
	want := []string{
		"on the list of allowed skips, but it ran: X b",
		"on the list of allowed skips, but the suite has no such spec: X c",
		"skipped, and not on the list of allowed skips: X d (why)",
	}
	if !slices.Equal(problems, want) {
		t.Errorf("got %q, want %q", problems, want)
	}
}

// TestMissingListNames compares the list of our own suite with its specs.
func TestMissingListNames(t *testing.T) {
	names := map[string]bool{}
	for _, spec := range contract.Specs() {
		names[spec.Name] = true
	}
	for _, group := range missingGroups {
		if group.Reason == "" {
			t.Errorf("no reason is given why %s is missing", group.Ability)
		}
		for _, spec := range group.Specs {
			if !names[spec] {
				t.Errorf("our suite has no spec with the name %q", spec)
			}
		}
	}
}

func TestJudgeMissing(t *testing.T) {
	allowed := map[string][]string{"a": {"x"}, "b": {"x"}, "c": {"x"}, "d": {"x", "y"}}
	problems := judgeMissing([]contract.Result{
		{Name: "a", Outcome: contract.Skipped, Missing: []string{"x"}},
		{Name: "b", Outcome: contract.Passed},
		{Name: "d", Outcome: contract.Skipped, Missing: []string{"y"}},
		{Name: "e", Outcome: contract.Skipped, Missing: []string{"x"}, Message: "why"},
		{Name: "f", Outcome: contract.Failed},
	}, allowed)
	want := []string{
		"on the list of allowed skips, but it ran: b",
		"on the list of allowed skips, but the suite has no such spec: c",
		`skipped for lack of ["y"], but the list says ["x" "y"]: d`,
		"skipped, and not on the list of allowed skips: e (why)",
	}
	if !slices.Equal(problems, want) {
		t.Errorf("got %q, want %q", problems, want)
	}
}

// TestKeeper lets something else than the driver be killed, and end by itself.
func TestKeeper(t *testing.T) {
	dir := t.TempDir()
	launches := 0
	k := &keeper{done: make(chan struct{})}
	launch := func() (*driver, error) {
		if launches++; launches > 3 {
			return nil, errors.New("no more")
		}
		d := &driver{dir: dir, command: exec.Command("sh", "-c", "kill -KILL $$"), ended: make(chan struct{})}
		if err := d.command.Start(); err != nil {
			return nil, err
		}
		d.outcome = d.command.Wait()
		close(d.ended)
		return d, nil
	}
	var err error
	if k.current, err = launch(); err != nil {
		t.Fatal(err)
	}
	k.watch(launch)
	if k.killed() != 3 || launches != 4 || k.failed == nil {
		t.Errorf("killed %d times, launched %d times: %v", k.killed(), launches, k.failed)
	}
	if wasKilled(nil) || wasKilled(exec.Command("false").Run()) {
		t.Error("what ended by itself is taken as killed")
	}
}

func TestFilesystemOf(t *testing.T) {
	mounts := []mount{
		{Point: "/", Filesystem: "ext4"},
		{Point: "/dev", Filesystem: "devtmpfs"},
		{Point: "/t/pool", Filesystem: "xfs"},
	}
	for path, want := range map[string]string{
		"/t": "ext4", "/t/pool": "xfs", "/t/pool/volumes": "xfs", "/t/pool2": "ext4", "/dev/loop0": "devtmpfs",
	} {
		if got := filesystemOf(path, mounts); got != want {
			t.Errorf("%s is on %s, not on %s", path, want, got)
		}
	}
	if got := kind(mount{Root: "/", Filesystem: "xfs"}) + ", " + kind(mount{Root: "/a", Filesystem: "xfs"}); got != "xfs, part of xfs" {
		t.Errorf("the kinds are %q", got)
	}
}

func TestJudgeStaging(t *testing.T) {
	mounts := []mount{{Point: "/", Filesystem: "ext4"}, {Point: "/dev", Filesystem: "devtmpfs"}}
	cases := []struct {
		configuration Configuration
		seen          map[string]int
		good          bool
	}{
		{Configuration{VolumeFilesystem: "xfs"}, map[string]int{"xfs": 3}, true},
		{Configuration{VolumeFilesystem: "xfs"}, map[string]int{"ext4": 3}, false},
		{Configuration{VolumeFilesystem: "xfs"}, map[string]int{"xfs": 3, "ext4": 1}, false},
		{Configuration{VolumeFilesystem: "xfs"}, map[string]int{}, false},
		{Configuration{}, map[string]int{"part of ext4": 1}, true},
		{Configuration{}, map[string]int{"ext4": 1}, false},
		{Configuration{Block: true}, map[string]int{"part of devtmpfs": 1}, true},
		{Configuration{Block: true}, map[string]int{"ext4": 1}, false},
	}
	for _, c := range cases {
		problems := judgeStaging(c.configuration, c.seen, "/pool", mounts)
		if (len(problems) == 0) != c.good {
			t.Errorf("%+v with %v: %q", c.configuration, c.seen, problems)
		}
	}
}

// TestLeftovers looks at a pool without mounts; what needs root is proved by the runs themselves.
func TestLeftovers(t *testing.T) {
	pool := t.TempDir()
	before := mountinfo.Current()
	if found := leftovers(pool, before); len(found) != 5 {
		t.Errorf("a directory that never became a pool gave %q", found)
	}
	for _, place := range []string{"volumes/v", "snapshots", "groups", "incoming", "trash/t"} {
		if err := os.MkdirAll(filepath.Join(pool, place), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"the pool's volumes/v", "the pool's trash/t"}
	if found := leftovers(pool, before); !slices.Equal(found, want) {
		t.Errorf("got %q, want %q", found, want)
	}
}

func TestWaitUntilEmpty(t *testing.T) {
	looks := 0
	found := waitUntilEmpty(time.Minute, func() []string {
		if looks++; looks < 3 {
			return []string{"something"}
		}
		return nil
	})
	if len(found) != 0 || looks != 3 {
		t.Errorf("got %q after %d looks", found, looks)
	}
	if found := waitUntilEmpty(0, func() []string { return []string{"something"} }); len(found) != 1 {
		t.Errorf("got %q, although it never went away", found)
	}
}

func TestCleanEnvironment(t *testing.T) {
	got := cleanEnvironment([]string{"PATH=/bin", "ORLOP_POOL=x", "CSI_ENDPOINT=y", "HOME=/"})
	if want := []string{"PATH=/bin", "HOME=/"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestDriverThatEnds makes sure that a driver which cannot start is reported at once, not after the
// time that a slow one gets.
func TestDriverThatEnds(t *testing.T) {
	dir := t.TempDir()
	begin := time.Now()
	_, err := startDriver(context.Background(), "/bin/false", dir, dir)
	if err == nil || !strings.Contains(err.Error(), "ended before it was ready") || time.Since(begin) > startTimeout/2 {
		t.Errorf("got %v after %s", err, time.Since(begin))
	}
}
