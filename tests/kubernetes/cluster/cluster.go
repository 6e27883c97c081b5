// Package cluster runs a Kubernetes of one node on this machine, in namespaces of its own, and ends it.
//
// Invariants: whatever a node does is seen in its namespaces alone, but for files below the run's directory, loop
// devices, and control groups; Sweep removes those. Nothing on the node outlives its first process, and that ends with
// whoever holds what Prepare returns. It must not know what is tested.
package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Cluster is a node and the control plane on it.
type Cluster struct {
	dir string // everything that the node keeps
	bin string // programs
}

// New prepares a cluster in a directory that Prepare has made.
func New(dir, bin string) (*Cluster, error) {
	c := &Cluster{dir: dir, bin: bin}
	for _, name := range []string{"pki", "logs"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return nil, err
		}
	}
	return c, errors.Join(writePKI(filepath.Join(dir, "pki")), writeConfigs(dir))
}

// Start boots the node, gives it the images that it lacks, and waits until it takes pods.
func (c *Cluster) Start(images ...string) error {
	if err := startInit(c.dir, c.bin); err != nil {
		return err
	}
	for _, program := range []program{containerd, etcd, apiserver, controllers, scheduler} {
		if _, err := program.start(c.dir); err != nil {
			return err
		}
	}
	if err := within(time.Minute, "containerd", c.containerdAnswers); err != nil {
		return err
	}
	for _, image := range images {
		if err := c.ctr("images", "import", image); err != nil {
			return err
		}
	}
	if err := c.startKubelet(); err != nil {
		return err
	}
	return within(3*time.Minute, "the node", func() error {
		if _, err := c.Kubectl("", "get", "serviceaccount", "default"); err != nil {
			return err
		}
		_, err := c.Kubectl("", "wait", "--for=condition=Ready", "node/"+NodeName, "--timeout=1s")
		return err
	})
}

// Stop ends everything on the node at once. Its files stay, and Start boots it again.
func (c *Cluster) Stop() error {
	return Halt(c.dir)
}

// startKubelet starts the node's kubelet and waits until it answers.
func (c *Cluster) startKubelet() error {
	if _, err := kubelet.start(c.dir); err != nil {
		return err
	}
	return within(time.Minute, "kubelet", func() error {
		_, err := c.Kubectl("", "get", "--raw", "/api/v1/nodes/"+NodeName+"/proxy/healthz")
		return err
	})
}

// StartSnapshotController starts what belongs to the definitions of snapshots, which must be there.
func (c *Cluster) StartSnapshotController() error {
	_, err := snapshots.start(c.dir)
	return err
}

func (c *Cluster) containerdAnswers() error {
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/containerd/containerd.sock", initPID(c.dir))); err != nil {
		return err
	}
	return c.ctr("version")
}

func (c *Cluster) ctr(arguments ...string) error {
	_, err := Output(c.Command(append([]string{"ctr", "--namespace", "k8s.io"}, arguments...)...), "")
	return err
}

// Command is a command that runs among the node's processes.
func (c *Cluster) Command(arguments ...string) *exec.Cmd {
	return enter(c.dir, arguments...)
}

// Path is where this machine finds a path of the node, with what is mounted there. It must not be followed by a link.
func (c *Cluster) Path(path string) (string, error) {
	pid := initPID(c.dir)
	if pid == 0 {
		return "", fmt.Errorf("%s: the node does not run: %w", path, fs.ErrNotExist)
	}
	return filepath.Join(fmt.Sprintf("/proc/%d/root", pid), path), nil
}

// LoopDevices are the node's, each with the file behind it.
func (c *Cluster) LoopDevices() ([]string, error) {
	loops, err := loopDevices(c.dir)
	var names []string
	for _, loop := range loops {
		names = append(names, loop.Name+" "+loop.file())
	}
	return names, err
}

// RestartKubelet kills the kubelet, which leaves pods as they are, and starts another one.
func (c *Cluster) RestartKubelet() error {
	if _, err := Output(c.Command("sh", "-c", `kill -KILL $(pgrep -f '^/run/bin/kubernetes kubelet')`), ""); err != nil {
		return err
	}
	return c.startKubelet()
}
