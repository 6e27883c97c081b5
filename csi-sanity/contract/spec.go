package contract

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// Spec is one check.
type Spec struct {
	// Name is topic and sentence.
	Name string
	// needs are the abilities without which it is skipped.
	needs []string
	run   func(*T)
}

// Specs are all checks, in the order in which they run.
func Specs() []Spec {
	return slices.Concat(
		replySpecs,
		validateSpecs,
		modeSpecs(),
		optionSpecs,
		capacitySpecs,
		contentSpecs,
		nameSpecs,
		limitSpecs,
		listSpecs,
		roomSpecs,
		topologySpecs,
		repeatSpecs,
		parallelSpecs,
		snapshotSpecs,
		copySpecs(),
		writerSpecs,
		groupSpecs,
		blockSpecs,
		modifySpecs,
		attachSpecs,
		inlineSpecs,
		healthSpecs,
		crashSpecs,
		secretSpecs,
	)
}

// Outcome is what became of a spec.
type Outcome string

// The outcomes.
const (
	Passed  Outcome = "passed"
	Failed  Outcome = "failed"
	Skipped Outcome = "skipped"
)

// Result is one spec after a run.
type Result struct {
	Name    string
	Outcome Outcome
	// Missing are the abilities for lack of which it was skipped.
	Missing []string
	Message string
	// Notes are figures that nobody asserts.
	Notes   []string
	Seconds float64
}

// Report is all that a run found.
type Report struct {
	Results []Result
	// Problems are those that are no spec's.
	Problems []string
	// Kills is how often the driver was killed.
	Kills int
}

// Run checks a driver.
func Run(t *testing.T, s Settings) {
	suite, err := newSuite(t, s)
	if err != nil {
		t.Fatal(err)
	}
	d := suite.driver
	defer d.connection.Close()
	t.Logf("the driver's abilities: %s", strings.Join(suite.abilities, ","))
	suite.report.Problems = append(judgeAbilities(suite.abilities, s.Abilities), d.takeViolations()...)
	for _, problem := range suite.report.Problems {
		t.Error(problem)
	}
	for _, spec := range Specs() {
		t.Run(spec.Name, func(t *testing.T) { suite.run(t, spec) })
	}
	if s.Report == "" {
		return
	}
	if err := suite.writeReport(); err != nil {
		t.Error(err)
	}
}

// newSuite connects to the driver and asks what it can do.
func newSuite(t testing.TB, s Settings) (*suite, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	d, err := connect(s.Endpoint)
	if err != nil {
		return nil, err
	}
	suite := &suite{settings: s, driver: d}
	ctx, cancel := context.WithTimeout(t.Context(), rpcTimeout)
	defer cancel()
	if suite.abilities, err = readAbilities(ctx, d, &s); err == nil {
		suite.node, err = d.node.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	}
	if err != nil {
		return nil, errors.Join(err, d.connection.Close())
	}
	return suite, nil
}

// suite is one run.
type suite struct {
	settings  Settings
	driver    *driver
	abilities []string
	node      *csi.NodeGetInfoResponse
	report    Report
	kills     atomic.Int64
	// lost is set when the driver has not come back.
	lost atomic.Bool
}

func (s *suite) run(t *testing.T, spec Spec) {
	result := Result{Name: spec.Name, Outcome: Passed}
	begin := time.Now()
	checked := &T{TB: t, suite: s, driver: s.driver, settings: &s.settings}
	// It runs after the spec's own cleanups, however the spec ended.
	t.Cleanup(func() {
		checked.clean()
		for _, violation := range s.driver.takeViolations() {
			checked.Errorf("%s", violation)
		}
		switch {
		case t.Skipped():
			result.Outcome = Skipped
		case t.Failed():
			result.Outcome = Failed
		}
		result.Message = strings.Join(checked.said, "\n")
		result.Notes = checked.notes
		result.Seconds = time.Since(begin).Seconds()
		s.report.Results = append(s.report.Results, result)
	})
	if s.lost.Load() {
		checked.Fatalf("the driver did not come back after it was killed")
	}
	for _, need := range spec.needs {
		if !contains(s.abilities, need) {
			result.Missing = append(result.Missing, need)
		}
	}
	if len(result.Missing) > 0 {
		t.Skipf("needs %s", strings.Join(result.Missing, ", "))
	}
	defer func() {
		// A panic would end the whole run before it has cleaned up.
		if panicked := recover(); panicked != nil {
			checked.Errorf("panic: %v\n%s", panicked, debug.Stack())
		}
	}()
	spec.run(checked)
}

func (s *suite) writeReport() error {
	s.report.Kills = int(s.kills.Load())
	text, err := json.MarshalIndent(s.report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(s.settings.Report, text, 0o600)
}

// ReadReport reads what a run has written.
func ReadReport(file string) (Report, error) {
	var report Report
	text, err := os.ReadFile(file)
	if err != nil {
		return report, err
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return report, fmt.Errorf("the suite's report is not readable: %w", err)
	}
	return report, nil
}
