package contract

import (
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"testing"
)

var fromFlags Settings

// pairs is a flag of the form k=v,k=v.
type pairs map[string]string

func (p *pairs) String() string { return fmt.Sprint(map[string]string(*p)) }

func (p *pairs) Set(text string) error {
	*p = pairs{}
	for pair := range strings.SplitSeq(text, ",") {
		key, value, found := strings.Cut(pair, "=")
		if !found {
			return fmt.Errorf("%q is not of the form key=value", pair)
		}
		(*p)[key] = value
	}
	return nil
}

// words is a flag of the form a,b.
type words []string

func (w *words) String() string { return strings.Join(*w, ",") }

func (w *words) Set(text string) error {
	*w = nil
	if text != "" {
		*w = strings.Split(text, ",")
	}
	return nil
}

func init() {
	s := &fromFlags
	flag.StringVar(&s.Endpoint, "endpoint", "", "the driver's socket, unix:///path")
	flag.Var((*pairs)(&s.Parameters), "params", "parameters of the storage class, k=v,k=v")
	flag.BoolVar(&s.Block, "block", false, "raw block volumes")
	flag.Int64Var(&s.VolumeSize, "size", 64<<20, "bytes of an ordinary volume")
	flag.StringVar(&s.Directory, "directory", "", "where staging and target paths are made")
	flag.Var((*words)(&s.With), "with", fmt.Sprintf("facts about the driver, of %v", Facts))
	flag.Var((*words)(&s.Abilities), "abilities", "exactly what the driver must have; other runs print it")
	flag.StringVar(&s.Log, "log", "", "the driver's log file")
	flag.BoolVar(&s.MayKill, "may-kill", false, "the driver may be killed, and is started again by whoever runs it")
	flag.Var((*pairs)(&s.Mutable), "mutable", "parameters that a volume can be given later, k=v,k=v")
	flag.StringVar(&s.Pool, "pool", "", "where the driver keeps its volumes, for the benchmark")
	flag.IntVar(&s.Snapshots, "snapshots", 100, "how many are taken of a volume that is written to")
	flag.StringVar(&s.Report, "report", "", "a file for the results")
}

// TestContract checks the driver at -endpoint. The harness in the directory above gives it one.
func TestContract(t *testing.T) {
	if fromFlags.Endpoint == "" {
		t.Skip("no -endpoint is given: there is no driver to check")
	}
	Run(t, fromFlags)
}

// BenchmarkCopies prints what copies cost the driver at -endpoint.
func BenchmarkCopies(b *testing.B) {
	if fromFlags.Endpoint == "" {
		b.Skip("no -endpoint is given: there is no driver to measure")
	}
	Benchmark(b, fromFlags)
}

// TestSpecNames makes sure that lists of specs mean what they say.
func TestSpecNames(t *testing.T) {
	seen := map[string]bool{}
	for _, spec := range Specs() {
		if seen[spec.Name] {
			t.Errorf("two specs have the name %q", spec.Name)
		}
		seen[spec.Name] = true
		if topic, sentence, found := strings.Cut(spec.Name, ": "); !found || topic == "" || sentence == "" {
			t.Errorf("%q is no topic and sentence", spec.Name)
		}
	}
	if len(seen) == 0 {
		t.Error("there are no specs")
	}
}

func TestReportIsReadAsWritten(t *testing.T) {
	file := t.TempDir() + "/report"
	s := &suite{settings: Settings{Report: file}}
	s.report.Results = []Result{{Name: "a: b", Outcome: Skipped, Missing: []string{"x"}, Message: "y"}}
	s.kills.Store(3)
	if err := s.writeReport(); err != nil {
		t.Fatal(err)
	}
	read, err := ReadReport(file)
	if err != nil || read.Kills != 3 || len(read.Results) != 1 {
		t.Fatalf("read as %+v, %v", read, err)
	}
	one, _ := json.Marshal(read.Results[0])
	two, _ := json.Marshal(s.report.Results[0])
	if string(one) != string(two) {
		t.Errorf("read as %s, written as %s", one, two)
	}
}
