package suite

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDriverKilled kills the driver while pods write and claims are made. Mounts and loop devices are the kernel's, so
// that writers notice nothing, and what was asked for is finished by the next driver.
func TestDriverKilled(t *testing.T) {
	s := newSpace(t)
	classes := []string{"hostpath", "ext4", "xfs", "btrfs"}
	for _, class := range classes {
		s.claim(class, class, "320Mi")
		s.pod(class, []volume{claimed(class, "/data")})
	}
	s.ready(classes...)
	for _, class := range classes {
		// Each line is on the disk before the next one is begun.
		s.sh(class, "i=0; (while :; do i=$((i+1)); echo $i >> /data/log; sync /data/log; sleep 0.05; done) > /dev/null 2>&1 &")
	}
	loops := loopNames(t)
	for round := range 3 {
		claim := fmt.Sprintf("new%d", round)
		s.claim(claim, classes[round], "320Mi")
		s.pod(claim, []volume{claimed(claim, "/data")})
		time.Sleep(time.Duration(round) * 150 * time.Millisecond)
		killDriver(t)
	}
	s.ready("new0", "new1", "new2")
	for i := range 3 {
		s.write(fmt.Sprintf("new%d", i), "/data/file", 1)
	}
	for _, loop := range loops {
		if !slices.Contains(loopNames(t), loop) {
			t.Errorf("loop device %s is gone", loop)
		}
	}
	for _, class := range classes {
		lines := s.sh(class, "tail -n 1 /data/log")
		within(t, 10*time.Second, "writing goes on", func() error {
			if now := s.sh(class, "tail -n 1 /data/log"); now == lines {
				return fmt.Errorf("%s: still at line %s", class, now)
			}
			return nil
		})
		s.sh(class, `test "$(wc -l < /data/log)" -le "$(tail -n 1 /data/log)"; seq "$(wc -l < /data/log)" | head -n 50 > /tmp/want; head -n 50 /data/log | cmp - /tmp/want`)
	}
	// What was mounted before can be taken down by the driver that did not mount it.
	s.end(classes...)
}

// killDriver kills the driver's process and waits until there is another one.
func killDriver(t *testing.T) {
	t.Helper()
	restarts := restartCount(t)
	killed := false
	within(t, time.Minute, "a driver to kill", func() error {
		out, err := clusterOutput("sh", "-c", `pidof orlop || true`)
		if err != nil || strings.TrimSpace(out) == "" {
			return fmt.Errorf("no process is named orlop: %v", err)
		}
		_, err = clusterOutput(append([]string{"kill", "-KILL"}, strings.Fields(out)...)...)
		killed = err == nil
		return err
	})
	if !killed {
		return
	}
	within(t, 2*time.Minute, "the next driver", func() error {
		if now := restartCount(t); now == restarts {
			return fmt.Errorf("it has been started %s times", now)
		}
		_, err := node.Kubectl("", "wait", "-n", system, "--for=condition=Ready", "pod", "-l", "app.kubernetes.io/name=orlop", "--timeout=1s")
		return err
	})
}

func restartCount(t *testing.T) string {
	t.Helper()
	out, err := node.Kubectl("", "get", "pods", "-n", system, "-l", "app.kubernetes.io/name=orlop", "-o",
		`jsonpath={.items[*].status.containerStatuses[?(@.name=="orlop")].restartCount}`)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// loopNames are the node's loop devices.
func loopNames(t *testing.T) []string {
	t.Helper()
	names, err := node.LoopDevices()
	if err != nil {
		t.Fatal(err)
	}
	return names
}
