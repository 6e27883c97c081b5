package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// driver runs the driver that is deployed.
func driver(t *testing.T, arguments ...string) (string, error) {
	t.Helper()
	binary := os.Getenv("ORLOP_BIN")
	if binary == "" {
		t.Fatal("ORLOP_BIN must name the driver (make test does)")
	}
	out, err := exec.Command(binary, arguments...).CombinedOutput()
	return string(out), err
}

// The driver has every flag and variable that it is given.
func TestTheDriverKnowsItsFlags(t *testing.T) {
	help, err := driver(t, "serve", "--help")
	if err != nil {
		t.Fatalf("orlop serve --help: %v: %s", err, help)
	}
	for name, values := range values {
		t.Run(name, func(t *testing.T) {
			container := driverOf(t, mustDecode(t, render(t, values...)))
			if container.Args[0] != "serve" {
				t.Errorf("the driver is told to %s", container.Args[0])
			}
			for _, argument := range container.Args[1:] {
				flag, _, _ := strings.Cut(argument, "=")
				if !strings.Contains(help, flag+" ") && !strings.Contains(help, flag+"\n") {
					t.Errorf("orlop serve has no %s", flag)
				}
			}
			for _, variable := range container.Env {
				// This one is tracing's filter, of which the help of --log-format tells.
				if variable.Name != "ORLOP_LOG" && !strings.Contains(help, variable.Name+"=") {
					t.Errorf("orlop serve does not read %s", variable.Name)
				}
			}
		})
	}
}

// The driver reads the configuration that is made of the values, and sees the pools that were meant.
func TestTheDriverReadsItsConfiguration(t *testing.T) {
	for name, values := range values {
		t.Run(name, func(t *testing.T) {
			text := the[*core.ConfigMap](t, mustDecode(t, render(t, values...))).Data["config.toml"]
			file := filepath.Join(t.TempDir(), "config.toml")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := driver(t, "pool", "list", "--config", file, "--root-dir", filepath.Join(t.TempDir(), "root"))
			if err != nil {
				t.Fatalf("%v: %s\n%s", err, out, text)
			}
			wanted := []string{"default"}
			if name == "pools" {
				wanted = []string{"disk", "plain", "own"}
			}
			for _, pool := range wanted {
				if !strings.Contains(out, pool) {
					t.Errorf("pool %s is not in\n%s", pool, out)
				}
			}
		})
	}
}

// What the driver works on is the host's, pools that lie elsewhere too.
func TestWhatIsTheHostSIsMounted(t *testing.T) {
	container := driverOf(t, mustDecode(t, render(t, values["pools"]...)))
	propagation := map[string]core.MountPropagationMode{}
	for _, mount := range container.VolumeMounts {
		if mount.MountPropagation != nil {
			propagation[mount.MountPath] = *mount.MountPropagation
		}
	}
	for _, path := range []string{"/dev", "/sys"} {
		if !slices.ContainsFunc(container.VolumeMounts, func(m core.VolumeMount) bool { return m.MountPath == path && !m.ReadOnly }) {
			t.Errorf("%s is not mounted for writing", path)
		}
	}
	for path, wanted := range map[string]core.MountPropagationMode{
		"/var/lib/kubelet": core.MountPropagationBidirectional,
		"/var/lib/orlop":   core.MountPropagationBidirectional,
		// A disk of the operator's, which may be mounted later, and one that the driver mounts.
		"/srv/orlop": core.MountPropagationHostToContainer,
		"/srv/own":   core.MountPropagationBidirectional,
	} {
		if propagation[path] != wanted {
			t.Errorf("%s is mounted %q, not %q", path, propagation[path], wanted)
		}
	}
}

func driverOf(t *testing.T, objects []runtime.Object) core.Container {
	t.Helper()
	for _, container := range the[*apps.DaemonSet](t, objects).Spec.Template.Spec.Containers {
		if container.Name == "orlop" {
			return container
		}
	}
	t.Fatal("there is no container orlop")
	return core.Container{}
}
