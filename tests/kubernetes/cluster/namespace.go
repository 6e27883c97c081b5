package cluster

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed node.sh
var nodeScript string

// Layout of a run's directory.
const (
	initFile    = "init.pid"
	upFile      = "up"
	aliveFile   = "alive"
	cgroupsFile = "cgroups"
)

// startInit starts the node's first process in namespaces of its own and waits until they are set up. Everything that
// runs on the node is below it: when it ends, the kernel ends them all and takes their mounts and their network away.
func startInit(dir, bin string) error {
	_ = os.Remove(filepath.Join(dir, upFile))
	log, err := appendTo(filepath.Join(dir, "logs", "init.log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	command := exec.Command("bash", "-c", nodeScript, "node.sh", "init", dir, bin)
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		// A Ctrl-C is for those who clean up.
		Setsid: true,
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("the node's namespaces: %w", err)
	}
	pid := command.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	if err := os.WriteFile(filepath.Join(dir, initFile), []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return errors.Join(err, command.Process.Kill())
	}
	return within(10*time.Second, "the node's namespaces", func() error {
		select {
		case err := <-ended:
			return permanent{fmt.Errorf("its first process ended: %v; see %s", err, log.Name())}
		default:
		}
		_, err := os.Stat(filepath.Join(dir, upFile))
		return err
	})
}

// initPID is the node's first process as the machine sees it, or 0 when it does not run.
func initPID(dir string) int {
	text, err := os.ReadFile(filepath.Join(dir, initFile))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		return 0
	}
	// The number may be somebody else's by now.
	arguments, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(arguments), "\x00inside\x00"+dir+"\x00") {
		return 0
	}
	return pid
}

// stopInit ends the node as a power cut does, but for the page cache, and waits until nothing of it runs.
func stopInit(dir string) error {
	pid := initPID(dir)
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return within(time.Minute, "the end of the node's processes", func() error {
		if initPID(dir) != 0 {
			return fmt.Errorf("process %d still runs", pid)
		}
		return nil
	})
}

// enter is a command among the node's processes.
func enter(dir string, arguments ...string) *exec.Cmd {
	all := append([]string{
		"--target", strconv.Itoa(initPID(dir)), "--mount", "--net", "--pid", "--ipc", "--cgroup",
		"bash", "-c", nodeScript, "node.sh", "join",
	}, arguments...)
	command := exec.Command("nsenter", all...)
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return command
}

// removeGroups removes the node's control groups, which its containers have made more of.
func removeGroups(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, cgroupsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for group := range strings.FieldsSeq(string(text)) {
		if err := within(20*time.Second, "removal of "+group, func() error { return removeGroup(group) }); err != nil {
			return err
		}
	}
	return os.Remove(filepath.Join(dir, cgroupsFile))
}

// removeGroup removes a control group and those below it. Their files cannot be removed and need not be.
func removeGroup(group string) error {
	entries, err := os.ReadDir(group)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeGroup(filepath.Join(group, entry.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(group)
}

func appendTo(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
}
