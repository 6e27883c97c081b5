// Package artifacts makes what a cluster runs: programs, built from Go modules, and images of them. It asks no registry
// of images. What is up to date is not made again: Go knows.
package artifacts

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
)

// source is one program and the directory with the go.mod that says which release it is.
type source struct {
	module string
	pkg    string
	flags  string
}

// The largest first: what is wrong with it is known early.
var sources = []source{
	{"kubernetes", "orlop/e2e/kubernetes", "-X k8s.io/component-base/version.gitVersion=v1.36.3"},
	{"../../../deploy/tools", "helm.sh/helm/v4/cmd/helm", ""},
	{"provisioner", "github.com/kubernetes-csi/external-provisioner/v6/cmd/csi-provisioner", ""},
	{"snapshotter", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/csi-snapshotter", ""},
	{"snapshotter", "github.com/kubernetes-csi/external-snapshotter/v8/cmd/snapshot-controller", ""},
	{"resizer", "github.com/kubernetes-csi/external-resizer/v2/cmd/csi-resizer", ""},
	{"standins", "orlop/e2e/standins/csi-node-driver-registrar", ""},
	{"standins", "orlop/e2e/standins/livenessprobe", ""},
}

// Build makes all programs. Each is static, because an image of it has nothing else in it.
func Build(modules, bin string) error {
	for _, s := range sources {
		command := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w "+s.flags,
			"-o", filepath.Join(bin, path.Base(s.pkg)), s.pkg)
		command.Dir = filepath.Join(modules, s.module)
		command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
		command.Stdout, command.Stderr = os.Stdout, os.Stderr
		if err := command.Run(); err != nil {
			return fmt.Errorf("%s: %w", s.pkg, err)
		}
	}
	return nil
}

// SnapshotCRDs is the directory with the definitions that belong to the snapshotter's release.
func SnapshotCRDs(modules string) (string, error) {
	command := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/kubernetes-csi/external-snapshotter/client/v8")
	command.Dir = filepath.Join(modules, "snapshotter")
	command.Stderr = os.Stderr
	dir, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("the snapshotter's definitions: %w", err)
	}
	return filepath.Join(string(dir[:len(dir)-1]), "config/crd"), nil
}
