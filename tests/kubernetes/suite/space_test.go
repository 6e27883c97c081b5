package suite

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"orlop/e2e/artifacts"
)

// space is a namespace of the cluster that one test or benchmark has to itself.
type space struct {
	t    testing.TB
	name string
}

// newSpace makes a namespace, which is gone with all its volumes when the test ends.
func newSpace(t testing.TB) *space {
	t.Helper()
	s := &space{t, strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	s.kubectl("create", "namespace", s.name)
	t.Cleanup(s.remove)
	within(t, 30*time.Second, "the namespace's service account", func() error {
		_, err := node.Kubectl("", "get", "-n", s.name, "serviceaccount", "default")
		return err
	})
	return s
}

// remove removes the namespace and waits until the driver has removed its volumes.
func (s *space) remove() {
	if s.t.Failed() {
		s.report()
	}
	// One after the other, since a namespace that is not empty is looked at again seconds later only.
	s.kubectl("delete", "pods", "--all", "--timeout=120s")
	s.kubectl("delete", "volumegroupsnapshots,volumesnapshots,pvc", "--all", "--timeout=120s")
	s.kubectl("delete", "namespace", s.name, "--wait=false")
	within(s.t, time.Minute, "removal of the volumes", func() error {
		left := s.kubectl("get", "pv", "-o",
			`jsonpath={range .items[?(@.spec.claimRef.namespace=="`+s.name+`")]}{.metadata.name} {.spec.persistentVolumeReclaimPolicy} {.status.phase}{"\n"}{end}`)
		for line := range strings.Lines(left) {
			if !strings.Contains(line, " Retain ") {
				return fmt.Errorf("still there: %s", left)
			}
		}
		return nil
	})
}

// report writes what there was when a test failed beside the logs.
func (s *space) report() {
	events, _ := node.Kubectl("", "get", "events", "-n", s.name, "--sort-by=.lastTimestamp")
	objects, _ := node.Kubectl("", "describe", "-n", s.name, "pods,pvc")
	path := filepath.Join(os.Getenv("ORLOP_E2E_DIR"), "logs", s.name+".txt")
	if err := os.WriteFile(path, []byte(events+"\n"+objects), 0o644); err != nil {
		s.t.Log(err)
	}
	s.t.Logf("events:\n%s", events)
}

// kubectl runs it, in this namespace, and returns what it prints.
func (s *space) kubectl(arguments ...string) string {
	s.t.Helper()
	out, err := node.Kubectl("", append([]string{"--namespace", s.name}, arguments...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// apply makes objects of YAML.
func (s *space) apply(text string) {
	s.t.Helper()
	if out, err := node.Kubectl(text, "--namespace", s.name, "apply", "-f", "-"); err != nil {
		s.t.Fatalf("%v\n%s\n%s", err, out, text)
	}
}

// get is a field of an object, such as ("pvc/data", ".status.phase").
func (s *space) get(object, field string) string {
	s.t.Helper()
	return s.kubectl("get", object, "-o", "jsonpath={"+field+"}")
}

// claim makes a PersistentVolumeClaim; more are lines of its spec.
func (s *space) claim(name, class, size string, more ...string) {
	s.t.Helper()
	s.apply(claimText(name, class, size, more...))
}

func claimText(name, class, size string, more ...string) string {
	mode := "  accessModes: [ReadWriteOnce]"
	for _, line := range more {
		if strings.HasPrefix(line, "accessModes") {
			mode = ""
		}
	}
	return fmt.Sprintf(`apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: %s}
spec:
  storageClassName: %q
  resources: {requests: {storage: %s}}
%s
%s`, name, class, size, mode, indent(more))
}

func indent(lines []string) string {
	var text strings.Builder
	for _, line := range lines {
		text.WriteString("  " + line + "\n")
	}
	return text.String()
}

// volume is one that a pod has at a path. Its source is YAML; a claim is the usual one.
type volume struct {
	path     string
	source   string
	readOnly bool
	block    bool
}

func claimed(claim, path string) volume {
	return volume{path: path, source: fmt.Sprintf("persistentVolumeClaim: {claimName: %s}", claim)}
}

// pod makes a pod that does nothing; more are lines of its spec.
func (s *space) pod(name string, volumes []volume, more ...string) {
	s.t.Helper()
	s.apply(podText(name, volumes, more...))
}

func podText(name string, volumes []volume, more ...string) string {
	var mounts, devices, sources []string
	for i, v := range volumes {
		if v.block {
			devices = append(devices, fmt.Sprintf("{name: v%d, devicePath: %s}", i, v.path))
		} else {
			mounts = append(mounts, fmt.Sprintf("{name: v%d, mountPath: %s, readOnly: %v}", i, v.path, v.readOnly))
		}
		sources = append(sources, fmt.Sprintf("{name: v%d, %s}", i, v.source))
	}
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  dnsPolicy: Default
%s  containers:
  - name: main
    image: %s
    args: [-c, "exec sleep 1000000"]
    volumeMounts: [%s]
    volumeDevices: [%s]
  volumes: [%s]
`, name, indent(more), artifacts.BusyboxImage,
		strings.Join(mounts, ", "), strings.Join(devices, ", "), strings.Join(sources, ", "))
}

// ready waits until pods run.
func (s *space) ready(pods ...string) {
	s.t.Helper()
	for _, pod := range pods {
		s.kubectl("wait", "--for=condition=Ready", "pod/"+pod, "--timeout=60s")
	}
}

// run makes a pod with one claim at /data and waits until it runs.
func (s *space) run(name, claim string, more ...string) {
	s.t.Helper()
	s.pod(name, []volume{claimed(claim, "/data")}, more...)
	s.ready(name)
}

// runBlock starts a pod with the raw block volume of a claim at /dev/disk.
func (s *space) runBlock(name, claim string) {
	s.t.Helper()
	device := claimed(claim, "/dev/disk")
	device.block = true
	s.pod(name, []volume{device})
	s.ready(name)
}

// end deletes a pod and waits until it is gone.
func (s *space) end(pods ...string) {
	s.t.Helper()
	for _, pod := range pods {
		s.kubectl("delete", "pod", pod, "--timeout=120s")
	}
}

// sh runs a shell command in a pod and returns what it prints.
func (s *space) sh(pod, script string) string {
	s.t.Helper()
	out, err := s.try(pod, script)
	if err != nil {
		s.t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// try is sh that may fail.
func (s *space) try(pod, script string) (string, error) {
	out, err := node.Kubectl("", "--namespace", s.name, "exec", pod, "--", "sh", "-euc", script)
	return strings.TrimSpace(out), err
}

// write fills a file with random bytes and returns their sum; same says whether a pod still sees them.
func (s *space) write(pod, file string, mebibytes int) string {
	s.t.Helper()
	return s.sh(pod, fmt.Sprintf("dd if=/dev/urandom of=%[1]s bs=1M count=%[2]d conv=fsync 2>/dev/null; %[3]s", file, mebibytes, sum(file, mebibytes)))
}

func (s *space) same(pod, file string, mebibytes int, want string) {
	s.t.Helper()
	if got := s.sh(pod, sum(file, mebibytes)); got != want {
		s.t.Errorf("%s in pod %s: its sum is %s, and was %s when it was written", file, pod, got, want)
	}
}

func sum(file string, mebibytes int) string {
	return fmt.Sprintf("dd if=%s bs=1M count=%d 2>/dev/null | sha256sum | cut -c 1-64", file, mebibytes)
}

// event waits until something has happened to an object whose message contains a text.
func (s *space) event(object, text string) {
	s.t.Helper()
	within(s.t, time.Minute, "an event of "+object, func() error {
		messages := s.kubectl("get", "events", "--field-selector", "involvedObject.name="+object, "-o",
			`jsonpath={range .items[*]}{.reason}: {.message}{"\n"}{end}`)
		if !strings.Contains(messages, text) {
			return fmt.Errorf("none says %q:\n%s", text, messages)
		}
		return nil
	})
}

// becomes waits until a field of an object has a value.
func (s *space) becomes(object, field, want string) {
	s.t.Helper()
	within(s.t, 2*time.Minute, object, func() error {
		if got := s.get(object, field); got != want {
			return fmt.Errorf("%s is %q, not %q", field, got, want)
		}
		return nil
	})
}

// within repeats a check until it succeeds, and fails the test when that takes too long.
func within(t testing.TB, limit time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: after %v: %v", what, limit, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// file is one of the test's own with this text.
func (s *space) file(text string) string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}
