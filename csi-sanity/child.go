package sanity

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"orlop/csi-sanity/mountinfo"
)

const (
	// suiteTimeout ends a run that hangs.
	suiteTimeout = 10 * time.Minute
	// leftoverTimeout is how long volumes may take to vanish.
	leftoverTimeout = 15 * time.Second
)

// order is what the parent tells the child to do.
type order struct {
	Configuration Configuration
	// Directory is empty and the run's own.
	Directory string
	// Driver and Suite are the two programs.
	Driver, Suite string
	Kind          orderKind
}

// orderKind is what is to be run.
type orderKind string

const (
	sanityOrder    orderKind = "sanity"
	contractOrder  orderKind = "contract"
	benchmarkOrder orderKind = "benchmark"
)

// verdict is what the child found. The run is good when no spec failed and there is no problem.
type verdict struct {
	Passed, Failed, Skipped int
	Problems                []string
	// Notes are figures that nobody asserts.
	Notes []string
}

func orderFile(dir string) string   { return filepath.Join(dir, "order.json") }
func verdictFile(dir string) string { return filepath.Join(dir, "verdict.json") }

// childMain is the program that runs in the new mount namespace. It returns the exit code.
func childMain(dir string) int {
	// The kernel kills the suite when the thread that started it ends, so it is started from one that
	// lives as long as this process. The driver's keeper has such a thread as well.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var o order
	if err := readJSON(orderFile(dir), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var v verdict
	carryOut(ctx, o, &v)
	if len(v.Problems) > 0 {
		printTail("driver", driverLog(dir))
		printTail("suite", suiteLog(dir))
	}
	if err := writeJSON(verdictFile(dir), v); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// carryOut runs one configuration. Whatever it has made is gone when it returns or panics.
func carryOut(ctx context.Context, o order, v *verdict) {
	problem := func(err error) {
		if err != nil {
			v.Problems = append(v.Problems, err.Error())
		}
	}
	p, err := makePool(ctx, o.Configuration, o.Directory)
	problem(err)
	if p == nil {
		return
	}
	defer func() { problem(p.close()) }()
	if err != nil {
		return
	}
	before := mountinfo.Current()
	defer removeLeftovers(p.path, before)
	d, err := startDriver(ctx, o.Driver, o.Directory, p.path, driverFlags(o)...)
	if err != nil {
		problem(err)
		return
	}
	defer d.kill()

	switch o.Kind {
	case sanityOrder:
		examine(ctx, o, p, before, v)
	case contractOrder:
		examineContract(ctx, o, d, v)
	case benchmarkOrder:
		benchmark(ctx, o, p, v)
	}
	if ctx.Err() != nil {
		problem(fmt.Errorf("the run was interrupted"))
		return
	}
	for _, left := range waitUntilEmpty(leftoverTimeout, func() []string { return leftovers(p.path, before) }) {
		problem(fmt.Errorf("left behind: %s", left))
	}
	problem(d.stop())
	problem(findPanic(o.Directory))
}

// driverFlags are what a configuration adds to the quick start.
func driverFlags(o order) []string {
	if !o.Configuration.Attach {
		return nil
	}
	limit := attachLimit
	if o.Kind != sanityOrder {
		// Our own suite has more at the same time.
		limit *= 2
	}
	// A client of CSI 1.13 must not mind the condition of 1.9.
	return []string{"--attach", "--max-volumes", fmt.Sprint(limit), "--legacy-volume-condition"}
}

// examine runs the suite and judges its results.
func examine(ctx context.Context, o order, p *pool, before []mount, v *verdict) {
	ctx, cancel := context.WithTimeout(ctx, suiteTimeout)
	defer cancel()
	seen, err := stageOne(ctx, o.Configuration, o.Directory)
	if err != nil {
		v.Problems = append(v.Problems, err.Error())
		return
	}
	results, err := runSuite(ctx, o.Configuration, o.Directory, o.Suite)
	if err != nil {
		v.Problems = append(v.Problems, err.Error())
		return
	}
	for _, result := range results {
		switch result.Outcome {
		case Passed:
			v.Passed++
		case Skipped:
			v.Skipped++
		case Failed:
			v.Failed++
			v.Problems = append(v.Problems, fmt.Sprintf("failed: %s\n%s", result.Name, indent(result.Message)))
		}
	}
	v.Problems = append(v.Problems, judgeSkips(results, skipReasons(allowedSkips(o.Configuration)))...)
	v.Problems = append(v.Problems, judgeStaging(o.Configuration, seen, p.path, before)...)
}

// findPanic reports a panic in the driver, which a single RPC's error would hide.
func findPanic(dir string) error {
	log, err := os.ReadFile(driverLog(dir))
	if err != nil {
		return err
	}
	if strings.Contains(string(log), "panicked at") {
		return fmt.Errorf("the driver panicked: see its log")
	}
	return nil
}

// printTail prints the last lines of a log.
func printTail(what, file string) {
	const wanted = 80
	text, err := os.ReadFile(file)
	if err != nil {
		return
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if len(lines) > wanted {
		lines = lines[len(lines)-wanted:]
	}
	fmt.Printf("--- the last lines of the %s's log\n%s\n", what, indent(strings.Join(lines, "\n")))
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(text, "\n", "\n    ")
}

func readJSON(file string, value any) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, value)
}

func writeJSON(file string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}
