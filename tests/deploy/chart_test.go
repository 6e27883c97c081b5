// Package deploy tests what is in deploy/ without a cluster: the chart, the manifests rendered from it, the examples and
// the documentation. What they do in a cluster is tested in tests/kubernetes.
package deploy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const root = "../.."

// values are sets of values that must render, by name.
var values = map[string][]string{
	"defaults":   nil,
	"one node":   {"shape=single-node"},
	"snapshots":  {"snapshots.enabled=true"},
	"everything": {"shape=single-node", "snapshots.enabled=true", "snapshots.groups=true", "volumeAttributesClasses[0].name=orlop-retain", "volumeAttributesClasses[0].parameters.onDelete=retain", "defaultStorageClass=orlop-loop", "createNamespace=true", "selinux=true", "logFormat=json", "env.ORLOP_LOG=debug", "imagePullSecrets[0].name=registry", "podAnnotations.a=b"},
	"MicroK8s":   {"kubeletDir=/var/snap/microk8s/common/var/lib/kubelet", "shape=single-node"},
	"pools":      {"pools[0].name=disk", "pools[0].create.device=/dev/disk/by-id/nvme-1", "pools[0].create.filesystem=btrfs", "pools[1].name=plain", "pools[1].path=/srv/orlop", "pools[1].reserve=5%", "pools[1].overcommit=2", "pools[2].name=own", "pools[2].path=/srv/own", "pools[2].create.size=10GiB", "pools[2].create.filesystem=xfs", "pools[2].create.sparse=true", "initPools=true"},
	"placement":  {"nodeSelector.disk=fast", "tolerations[0].key=dedicated", "tolerations[0].operator=Exists", "maxUnavailable=10%", "priorityClassName=high", "resources.limits.memory=256Mi"},
	"metrics":    {"metrics.enabled=true", "metrics.host=[::]", "podMonitor.enabled=true", "podMonitor.labels.release=prometheus"},
	"no inline":  {"inlineVolumes=false", "driverName=disks.example.com", "rootDir=/data/orlop"},
}

// helmPath builds helm, or finds the one that was built.
var helmPath = sync.OnceValues(func() (string, error) {
	command := exec.Command("go", "tool", "-n", "helm")
	command.Dir = filepath.Join(root, "deploy/tools")
	out, err := command.Output()
	return strings.TrimSpace(string(out)), err
})

func helm(t *testing.T, arguments ...string) ([]byte, string, error) {
	t.Helper()
	path, err := helmPath()
	if err != nil {
		t.Fatalf("go tool -n helm, in deploy/tools: %v", err)
	}
	command := exec.Command(path, arguments...)
	home := t.TempDir()
	command.Env = append(os.Environ(), "HELM_CONFIG_HOME="+home, "HELM_CACHE_HOME="+home, "HELM_DATA_HOME="+home)
	var out, errors bytes.Buffer
	command.Stdout, command.Stderr = &out, &errors
	err = command.Run()
	return out.Bytes(), errors.String(), err
}

func chart(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(root, "deploy/helm/orlop"))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func flags(values []string) []string {
	var flags []string
	for _, value := range values {
		flags = append(flags, "--set", value)
	}
	return flags
}

// render renders the chart, which must succeed.
func render(t *testing.T, values ...string) []byte {
	t.Helper()
	arguments := append([]string{"template", "orlop", chart(t), "--namespace", "orlop-system"}, flags(values)...)
	out, errors, err := helm(t, arguments...)
	if err != nil {
		t.Fatalf("helm template: %v: %s", err, errors)
	}
	return out
}

func TestTheChartIsWithoutLint(t *testing.T) {
	for name, values := range values {
		t.Run(name, func(t *testing.T) {
			out, errors, err := helm(t, append([]string{"lint", "--strict", chart(t)}, flags(values)...)...)
			if err != nil || strings.Contains(string(out), "[WARNING]") {
				t.Errorf("helm lint: %v\n%s%s", err, out, errors)
			}
		})
	}
}

func TestEverySetOfValuesMakesSoundObjects(t *testing.T) {
	for name, values := range values {
		t.Run(name, func(t *testing.T) { checkObjects(t, mustDecode(t, render(t, values...))) })
	}
}

func TestAWrongValueIsNamed(t *testing.T) {
	for _, wrong := range []struct{ value, named string }{
		{"shape=cluster", "'single-node', 'many-nodes'"},
		{"shpe=many-nodes", "'shpe' not allowed"},
		{"sidecars.resizer.imag=x", "'imag' not allowed"},
		{"driverName=orlop_1", "/driverName"},
		{"pools=null", "missing property 'pools'"},
		{"pools[0].name=any", "/pools/0/name"},
		{"pools[0].create.filesystem=ext4", "/pools/0"},
		{"pools[0].create.size=10GB", "/pools/0/create/size"},
		{"pools[0].path=relative", "/pools/0/path"},
		{"kubeletDir=/var/lib/kubelet/", "/kubeletDir"},
		{"rootDir=/var/../etc", "/rootDir"},
		{"logFormat=xml", "'text', 'json'"},
		{"timeout=120", "/timeout"},
		{"maxUnavailable=0", "/maxUnavailable"},
		{"env.PATH=/bin", "'PATH' does not match"},
		{"storageClasses[0].parameters.pool=fast", "/storageClasses/0"},
		{"sidecars.provisioner.image=csi-provisioner", "/sidecars/provisioner/image"},
		{"sidecars.provisioner.workers=0", "/sidecars/provisioner/workers"},
		{"snapshots.deletionPolicy=Keep", "'Delete', 'Retain'"},
		{"metrics.port=9808", "/metrics/port"},
		{"metrics.host=node", "/metrics/host"},
		// Each right by itself.
		{"podMonitor.enabled=true", "needs metrics.enabled=true"},
		{"snapshots.groups=true", "group snapshots on many nodes"},
		{"shape=single-node,snapshots.groups=true", "needs snapshots.enabled=true"},
		{"defaultStorageClass=fast", "is none of storageClasses (orlop-hostpath, orlop-loop)"},
		{"volumeAttributesClasses[0].name=a,volumeAttributesClasses[0].parameters.onDelete=retain", "csi-resizer cannot reach"},
	} {
		_, errors, err := helm(t, "template", "orlop", chart(t), "--set", wrong.value)
		if err == nil || !strings.Contains(errors, wrong.named) {
			t.Errorf("%s: %v, and the error does not have %q:\n%s", wrong.value, err, wrong.named, errors)
		}
	}
}

func TestTheManifestsAreThoseOfTheChart(t *testing.T) {
	fresh := t.TempDir()
	out, err := exec.Command(filepath.Join(root, "deploy/manifests/render.sh"), fresh).CombinedOutput()
	if err != nil {
		t.Fatalf("render.sh: %v: %s", err, out)
	}
	committed := filepath.Join(root, "deploy/manifests")
	if there, wanted := yamls(t, committed), yamls(t, fresh); strings.Join(there, " ") != strings.Join(wanted, " ") {
		t.Fatalf("deploy/manifests has %v, render.sh makes %v", there, wanted)
	}
	for _, name := range yamls(t, fresh) {
		text := read(t, filepath.Join(committed, name))
		if !bytes.Equal(text, read(t, filepath.Join(fresh, name))) {
			t.Errorf("deploy/manifests/%s is not what the chart renders: run make manifests, and commit it", name)
		}
		t.Run(name, func(t *testing.T) { checkObjects(t, mustDecode(t, text)) })
	}
}

// yamls returns the names of the YAML files of a directory.
func yamls(t *testing.T, directory string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(directory, "*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s has no YAML files: %v", directory, err)
	}
	names := make([]string, len(paths))
	for i, path := range paths {
		names[i] = filepath.Base(path)
	}
	return names
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
