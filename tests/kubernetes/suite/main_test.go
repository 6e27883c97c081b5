// Package suite tests Orlop as users have it: installed from its chart in a Kubernetes, with the official sidecars. It is
// run by "make e2e", which cleans up after it.
package suite

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orlop/e2e/artifacts"
	"orlop/e2e/cluster"
)

const (
	driverName = "orlop.csi.local"
	system     = "orlop-system"
	chart      = "../../../deploy/helm/orlop"
)

// node is the cluster that all tests share.
var node *cluster.Cluster

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if err := boot(); err != nil {
		fmt.Fprintln(os.Stderr, "the cluster:", err)
		return 1
	}
	code := m.Run()
	if code != 0 {
		report()
	}
	return code
}

// boot starts a cluster and installs in it what the cluster's administrator would, and then Orlop.
func boot() (err error) {
	dir, bin := os.Getenv("ORLOP_E2E_DIR"), os.Getenv("ORLOP_E2E_BIN")
	if dir == "" || bin == "" {
		return errors.New("it is prepared by `make e2e`; `make e2e TESTS=Name` runs one test")
	}
	if node, err = cluster.New(dir, bin); err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(dir, "images", "*.tar"))
	if err != nil {
		return err
	}
	for i, archive := range archives {
		archives[i] = path.Join("/run/node/images", filepath.Base(archive))
	}
	start := time.Now()
	if err := node.Start(archives...); err != nil {
		return err
	}
	fmt.Printf("the node is ready after %v\n", time.Since(start).Round(100*time.Millisecond))
	definitions, err := artifacts.SnapshotCRDs("../build")
	if err != nil {
		return err
	}
	if _, err := node.Kubectl("", "apply", "-k", definitions); err != nil {
		return err
	}
	if err := node.StartSnapshotController(); err != nil {
		return err
	}
	if err := install(); err != nil {
		return errors.Join(err, reportTo("installation"))
	}
	fmt.Printf("Orlop is ready after %v\n", time.Since(start).Round(100*time.Millisecond))
	return nil
}

// install installs the chart, or upgrades to it with more settings, and waits until its pods are ready.
func install(settings ...string) error {
	arguments := []string{
		"upgrade", "--install", "orlop", chart, "--namespace", system, "--create-namespace",
		"--values", "values.yaml", "--wait", "--timeout", "120s",
	}
	_, err := node.Helm(append(arguments, settings...)...)
	return err
}

// report writes what the cluster says of itself beside its logs.
func report() {
	if err := reportTo("end"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func reportTo(name string) error {
	var text strings.Builder
	for _, arguments := range [][]string{
		{"get", "events", "-A", "--sort-by=.lastTimestamp"},
		{"get", "pods,pv,pvc,volumesnapshots,volumesnapshotcontents,csistoragecapacities", "-A", "-o", "wide"},
		{"describe", "pods", "-n", system},
		{"logs", "-n", system, "-l", "app.kubernetes.io/name=orlop", "--all-containers", "--ignore-errors", "--prefix", "--tail=-1"},
	} {
		out, err := node.Kubectl("", arguments...)
		fmt.Fprintf(&text, "==> kubectl %s\n%s\n", strings.Join(arguments, " "), out)
		if err != nil {
			fmt.Fprintln(&text, err)
		}
	}
	return os.WriteFile(filepath.Join(os.Getenv("ORLOP_E2E_DIR"), "logs", name+".txt"), []byte(text.String()), 0o644)
}

// clusterOutput runs a command among the node's processes.
func clusterOutput(arguments ...string) (string, error) {
	return cluster.Output(node.Command(arguments...), "")
}
