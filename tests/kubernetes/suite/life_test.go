package suite

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The tests here do to the node and to the driver what administrators do. Each runs alone.

// TestKubeletRestarted lets a new kubelet find the volumes of the old one, and take them down.
func TestKubeletRestarted(t *testing.T) {
	s := newSpace(t)
	wrote := s.usedVolumes()
	if err := node.RestartKubelet(); err != nil {
		t.Fatal(err)
	}
	s.reachable(wrote)
	s.stillUsed(wrote)
	s.end("hostpath", "ext4")
	s.run("next", "ext4")
	s.same("next", "/data/file", 2, wrote["ext4"])
}

// TestRollingUpdate replaces the driver's pod while volumes are in use.
func TestRollingUpdate(t *testing.T) {
	s := newSpace(t)
	wrote := s.usedVolumes()
	loops := loopNames(t)
	old := driverPod(t)
	if err := install("--set", "podAnnotations.version=next"); err != nil {
		t.Fatal(err)
	}
	if now := driverPod(t); now == old {
		t.Errorf("the driver's pod is still %s", old)
	}
	if now := loopNames(t); fmt.Sprint(now) != fmt.Sprint(loops) {
		t.Errorf("loop devices were %v and are %v", loops, now)
	}
	s.stillUsed(wrote)
	s.claim("after", "ext4", "64Mi")
	s.run("after", "after")
}

// TestUninstalled removes the chart, which leaves pools and volumes, and installs it again.
func TestUninstalled(t *testing.T) {
	s := newSpace(t)
	wrote := s.usedVolumes()
	if _, err := node.Helm("uninstall", "orlop", "--namespace", system, "--wait", "--timeout", "120s"); err != nil {
		t.Fatal(err)
	}
	// A pod that uses volumes needs no driver.
	s.stillUsed(wrote)
	if err := install(); err != nil {
		t.Fatal(err)
	}
	s.stillUsed(wrote)
	s.end("hostpath", "ext4")
	for _, class := range []string{"hostpath", "ext4"} {
		s.run(class, class)
	}
	s.stillUsed(wrote)
}

// TestReboot ends everything on the node at once and boots it again: all mounts are gone, and all data is there.
func TestReboot(t *testing.T) {
	s := newSpace(t)
	wrote := s.usedVolumes()
	if err := node.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	if err := node.StartSnapshotController(); err != nil {
		t.Fatal(err)
	}
	within(t, 3*time.Minute, "the driver after the boot", func() error {
		_, err := node.Kubectl("", "rollout", "status", "-n", system, "daemonset/orlop", "--timeout=5s")
		return err
	})
	// Kubelet starts the same pods again.
	s.reachable(wrote)
	s.stillUsed(wrote)
	s.claim("after", "hostpath", "64Mi")
	s.run("after", "after")
}

// usedVolumes makes a volume of each backend, each in use by a pod of its class's name, and returns sums of their files.
func (s *space) usedVolumes() map[string]string {
	s.t.Helper()
	wrote := map[string]string{}
	for _, class := range []string{"hostpath", "ext4"} {
		s.claim(class, class, "64Mi")
		s.run(class, class)
		wrote[class] = s.write(class, "/data/file", 2)
	}
	return wrote
}

// reachable waits until a kubelet that has just started knows the pods.
func (s *space) reachable(wrote map[string]string) {
	s.t.Helper()
	within(s.t, 3*time.Minute, "the pods under a new kubelet", func() error {
		for class := range wrote {
			if _, err := s.try(class, "true"); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *space) stillUsed(wrote map[string]string) {
	s.t.Helper()
	for class, sum := range wrote {
		s.same(class, "/data/file", 2, sum)
		s.sh(class, "date >> /data/log; sync /data/log")
	}
}

func driverPod(t *testing.T) string {
	t.Helper()
	name, err := node.Kubectl("", "get", "pods", "-n", system, "-l", "app.kubernetes.io/name=orlop", "-o", "jsonpath={.items[*].metadata.name}")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// TestManifests asks the API server about every manifest that is not the chart's.
func TestManifests(t *testing.T) {
	files := 0
	err := filepath.WalkDir("../../../deploy", func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() && entry.Name() == "helm" {
			return filepath.SkipDir
		}
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".yaml") {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(text), "\napiVersion: ") && !strings.HasPrefix(string(text), "apiVersion: ") {
			return err
		}
		files++
		// What helm has made is helm's, and a dry run makes no namespace.
		manifest := strings.ReplaceAll(string(text), "namespace: orlop-system", "namespace: "+system)
		if out, err := node.Kubectl(manifest, "apply", "--dry-run=server", "--force-conflicts", "--server-side", "-f", "-"); err != nil {
			t.Errorf("%s: %v\n%s", path, err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Fatal("there is no manifest under deploy/")
	}
	t.Logf("%d manifests", files)
}

// BenchmarkClaims measures how long it takes from claims to running pods.
func BenchmarkClaims(b *testing.B) {
	for _, class := range []string{"hostpath", "ext4"} {
		for _, count := range []int{1, 20, 100} {
			b.Run(fmt.Sprintf("%s/%d", class, count), func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					s := newSpace(b)
					var objects strings.Builder
					for i := range count {
						name := fmt.Sprintf("p%d", i)
						objects.WriteString(claimText(name, class, "16Mi") + "---\n" + podText(name, []volume{claimed(name, "/data")}) + "---\n")
					}
					b.StartTimer()
					s.apply(objects.String())
					s.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=300s")
				}
			})
		}
	}
}
