package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Machine is what a run could leave behind on it.
type Machine struct {
	mounts, links, namespaces []string
}

// Observe looks at the machine before a run.
func Observe() (m Machine, err error) {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return m, err
	}
	m.mounts = strings.Split(strings.TrimSpace(string(text)), "\n")
	m.links = names("/sys/class/net")
	m.namespaces = names("/run/netns")
	return m, nil
}

// Compare says what a run has left behind. Other programs on the machine mount things too: only what bears the run's
// name, or what Kubernetes' names are in, is its own.
func (m Machine) Compare(dir string) error {
	now, err := Observe()
	if err != nil {
		return err
	}
	var errs []error
	complain := func(what string, before, after []string, own func(string) bool) {
		for _, name := range after {
			if !slices.Contains(before, name) && own(name) {
				errs = append(errs, fmt.Errorf("left behind: %s %s", what, name))
			}
		}
	}
	kubernetes := func(name string) bool {
		return strings.Contains(name, "cni") || strings.Contains(name, "veth")
	}
	complain("mount", m.mounts, now.mounts, func(mount string) bool {
		return strings.Contains(mount, dir) || strings.Contains(mount, "kubelet") || strings.Contains(mount, "containerd")
	})
	complain("network interface", m.links, now.links, kubernetes)
	complain("network namespace", m.namespaces, now.namespaces, kubernetes)
	return errors.Join(append(errs, remains(dir)...)...)
}

// remains looks for what bears the name of a run's directory.
func remains(dir string) (errs []error) {
	loops, err := allLoops()
	if err != nil {
		errs = append(errs, err)
	}
	for _, loop := range loops {
		if strings.HasPrefix(loop.File, dir) {
			errs = append(errs, fmt.Errorf("left behind: loop device %s on %s", loop.Name, loop.File))
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		arguments, _ := os.ReadFile(process + "/cmdline")
		root, _ := os.Readlink(process + "/cwd")
		if process != fmt.Sprintf("/proc/%d", os.Getpid()) && (strings.Contains(string(arguments), dir) || strings.HasPrefix(root, dir)) {
			errs = append(errs, fmt.Errorf("left behind: process %s %q", process, arguments))
		}
	}
	groups, _ := Output(exec.Command("find", "/sys/fs/cgroup", "-type", "d", "-name", filepath.Base(dir)), "")
	for group := range strings.FieldsSeq(groups) {
		errs = append(errs, fmt.Errorf("left behind: control group %s", group))
	}
	return errs
}

func names(dir string) (names []string) {
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}
