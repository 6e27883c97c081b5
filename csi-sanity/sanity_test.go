package sanity

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"orlop/csi-sanity/contract"
)

// childVariable tells the test binary to be the child of a run, and in which directory.
const childVariable = "ORLOP_SANITY_CHILD"

// totals are the sums over all configurations that were run.
var totals verdict

// interrupted ends when the tests are asked to stop.
var interrupted context.Context

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		os.Exit(childMain(dir))
	}
	var stop context.CancelFunc
	interrupted, stop = signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := m.Run()
	stop()
	if totals.Passed+totals.Failed+totals.Skipped > 0 {
		fmt.Printf("%d passed, %d failed, %d skipped\n", totals.Passed, totals.Failed, totals.Skipped)
	}
	os.Exit(code)
}

// TestSanity runs the suite in every configuration, one after the other.
func TestSanity(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts filesystems and needs root: run it with sudo, or as root in a privileged container")
	}
	driver := findDriver(t)
	suite := buildSuite(t)
	fmt.Println("driver:", driver)
	for _, c := range configurations() {
		t.Run(c.Name, func(t *testing.T) {
			runAndReport(t, order{Configuration: c, Driver: driver, Suite: suite, Kind: sanityOrder})
		})
	}
}

// TestContract runs our own suite in the same configurations.
func TestContract(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts filesystems and needs root: run it with sudo, or as root in a privileged container")
	}
	driver := findDriver(t)
	suite := buildContract(t)
	for _, c := range configurations() {
		t.Run(c.Name, func(t *testing.T) {
			runAndReport(t, order{Configuration: c, Driver: driver, Suite: suite, Kind: contractOrder})
		})
	}
}

// BenchmarkCopies prints what copies cost where blocks are shared. Nothing is judged but that it runs.
func BenchmarkCopies(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Fatal("this benchmark mounts filesystems and needs root")
	}
	driver := findDriver(b)
	suite := buildContract(b)
	for _, c := range configurations() {
		if !slices.Contains(contractFacts(c), contract.InstantCopies) {
			continue
		}
		v := runInNamespace(b, order{Configuration: c, Driver: driver, Suite: suite, Kind: benchmarkOrder})
		for _, problem := range v.Problems {
			b.Error(problem)
		}
		for _, note := range v.Notes {
			fmt.Printf("%s, %s\n", c.Name, note)
		}
	}
}

// buildContract builds our own suite.
func buildContract(t testing.TB) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "contract")
	if err := run(t.Context(), "go", "test", "-c", "-o", program, "./contract"); err != nil {
		t.Fatal(err)
	}
	return program
}

// runAndReport carries out one order and counts its results.
func runAndReport(t *testing.T, o order) {
	if interrupted.Err() != nil {
		t.Fatal("interrupted")
	}
	v := runInNamespace(t, o)
	for _, problem := range v.Problems {
		t.Error(problem)
	}
	if len(v.Problems) > 0 && v.Failed == 0 {
		// A leak or a driver that did not start is a failure as well.
		v.Failed = 1
	}
	for _, note := range v.Notes {
		fmt.Printf("note of %s: %s\n", o.Configuration.Name, note)
	}
	fmt.Printf("%s %s: %d passed, %d failed, %d skipped\n", o.Kind, o.Configuration.Name, v.Passed, v.Failed, v.Skipped)
	totals.Passed += v.Passed
	totals.Failed += v.Failed
	totals.Skipped += v.Skipped
}

// findDriver returns the absolute path of the binary under test.
func findDriver(t testing.TB) string {
	t.Helper()
	candidates := []string{"../target/release/orlop", "../target/debug/orlop"}
	if binary := os.Getenv("ORLOP_BIN"); binary != "" {
		candidates = []string{binary}
	}
	for _, candidate := range candidates {
		if status, err := os.Stat(candidate); err == nil && status.Mode().IsRegular() && status.Mode()&0o111 != 0 {
			path, err := filepath.Abs(candidate)
			if err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	t.Fatalf("no driver to test, looked for %q: build it with `cargo build --release`, or name it in ORLOP_BIN", candidates)
	return ""
}

// buildSuite builds csi-sanity at the version that go.mod names. The suite keeps its specs in
// global variables, so it can run only once in a process and has to be a program of its own.
func buildSuite(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "csi-sanity")
	err := run(t.Context(), "go", "build", "-o", program, "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity")
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// runInNamespace lets a child process carry out one configuration in a mount namespace of its own.
func runInNamespace(t testing.TB, o order) verdict {
	t.Helper()
	// Not t.TempDir: the names of tests would make the path too long for a socket.
	dir, err := os.MkdirTemp("", "orlop-sanity-")
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("ORLOP_KEEP") == "" {
		defer os.RemoveAll(dir)
	} else {
		fmt.Println("kept:", dir)
	}
	o.Directory = dir
	if err := writeJSON(orderFile(dir), o); err != nil {
		t.Fatal(err)
	}
	// The kernel signals the child when the thread that started it ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	child := exec.CommandContext(interrupted, "/proc/self/exe")
	child.Env = append(os.Environ(), childVariable+"="+dir)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS, // Go makes all mounts private with it.
		Setpgid:      true,                // An interrupt from the terminal shall reach the parent only.
		Pdeathsig:    syscall.SIGTERM,     // The child cleans up even if this process is killed.
	}
	child.Cancel = func() error { return child.Process.Signal(syscall.SIGTERM) }
	child.WaitDelay = 2 * time.Minute
	if err := child.Run(); err != nil {
		return verdict{Problems: []string{fmt.Sprintf("the run broke off: %v", err)}}
	}
	var v verdict
	if err := readJSON(verdictFile(dir), &v); err != nil {
		return verdict{Problems: []string{err.Error()}}
	}
	return v
}
