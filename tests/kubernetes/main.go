// Command e2e runs Orlop in a Kubernetes of its own on this machine, tests it there, and leaves nothing behind.
//
// It builds what is needed, hands a directory to the tests in suite/, which run the cluster, and cleans up after them
// however they end. Arguments go to "go test".
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"orlop/e2e/artifacts"
	"orlop/e2e/cluster"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	}
}

func run(arguments []string) (err error) {
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	repository := filepath.Join(here, "../..")
	parent := os.TempDir()
	for _, dir := range cluster.Abandoned(parent) {
		fmt.Println("e2e: cleaning up after a run that was killed:", dir)
		if err := errors.Join(cluster.Sweep(dir), os.RemoveAll(dir)); err != nil {
			return err
		}
	}
	before, err := cluster.Observe()
	if err != nil {
		return err
	}
	dir, alive, err := cluster.Prepare(parent)
	if err != nil {
		return err
	}
	defer func() { err = finish(dir, alive, before, err) }()

	bin, err := build(repository, dir)
	if err != nil {
		return err
	}
	return timed("cluster and tests", func() error { return test(repository, dir, bin, arguments) })
}

// build makes programs, kept between runs, and images, in the run's directory.
func build(repository, dir string) (string, error) {
	modules := filepath.Join(repository, "tests/kubernetes/build")
	bin := filepath.Join(repository, "target/e2e/bin")
	if err := timed("programs", func() error { return artifacts.Build(modules, bin) }); err != nil {
		return "", err
	}
	return bin, timed("images", func() error {
		return artifacts.Images(repository, bin, filepath.Join(dir, "images"))
	})
}

func test(repository, dir, bin string, arguments []string) error {
	command := exec.Command("go", append([]string{"test", "-v", "-count=1", "-timeout=60m", "-parallel=5", "./suite"}, arguments...)...)
	command.Dir = filepath.Join(repository, "tests/kubernetes")
	command.Env = append(os.Environ(), "ORLOP_E2E_DIR="+dir, "ORLOP_E2E_BIN="+bin)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	// The tests end when the node does; a signal is for this process, which ends both.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	select {
	case err := <-ended:
		return err
	case s := <-signals:
		_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
		<-ended
		return fmt.Errorf("ended by %v", s)
	}
}

// finish cleans up, keeps the logs of a run that failed, and fails one that leaves anything behind.
func finish(dir string, alive *os.File, before cluster.Machine, failure error) error {
	errs := []error{failure, cluster.Sweep(dir), alive.Close()}
	if os.Getenv("ORLOP_KEEP") == "" && errors.Join(errs...) == nil {
		errs = append(errs, os.RemoveAll(dir))
	} else {
		fmt.Println("e2e: logs are kept in", filepath.Join(dir, "logs"))
	}
	left := before.Compare(dir)
	if left == nil {
		fmt.Println("e2e: nothing is left behind")
	}
	return errors.Join(append(errs, left)...)
}

func timed(what string, job func() error) error {
	start := time.Now()
	err := job()
	fmt.Printf("e2e: %s: %v\n", what, time.Since(start).Round(time.Second))
	return err
}
