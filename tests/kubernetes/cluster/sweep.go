package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Prepare makes the directory of a run. The node in it lives no longer than whoever holds what is returned, however
// that ends; and as long as it is held, the directory is in use.
func Prepare(parent string) (dir string, alive *os.File, err error) {
	// Short, and fit for the name of a control group.
	dir, err = os.MkdirTemp(parent, prefix)
	if err != nil {
		return "", nil, err
	}
	path := filepath.Join(dir, aliveFile)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		return "", nil, err
	}
	alive, err = os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", nil, err
	}
	return dir, alive, syscall.Flock(int(alive.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

const prefix = "orlop-e2e."

// Abandoned finds directories of runs that were killed.
func Abandoned(parent string) (dirs []string) {
	candidates, _ := filepath.Glob(filepath.Join(parent, prefix+"*"))
	for _, dir := range candidates {
		alive, err := os.OpenFile(filepath.Join(dir, aliveFile), os.O_RDWR, 0)
		if err != nil {
			// A run that has only just begun, or that has been swept but for its logs.
			continue
		}
		if syscall.Flock(int(alive.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			dirs = append(dirs, dir)
		}
		_ = alive.Close()
	}
	return dirs
}

// Halt ends everything on a node, and detaches the loop devices of raw block volumes, which do not go by themselves.
func Halt(dir string) error {
	loops, err := loopDevices(dir)
	if err != nil {
		return err
	}
	if err := stopInit(dir); err != nil {
		return err
	}
	return errors.Join(detach(loops), removeGroups(dir))
}

// Sweep removes what a run has left, but for its logs, and says what it could not remove.
func Sweep(dir string) error {
	if err := Halt(dir); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == "logs" {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		if err := os.RemoveAll(path); err != nil {
			// Mount points of managed pools are immutable.
			if _, err := Output(exec.Command("chattr", "-R", "-f", "-i", path), ""); err != nil {
				return err
			}
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// loopDevice is what the kernel says of one. Where its file is mounted elsewhere, only the file's number counts.
type loopDevice struct {
	Name   string `json:"name"`
	Inode  uint64 `json:"back-ino"`
	Device string `json:"back-maj:min"`
	File   string `json:"back-file"`
}

func (l loopDevice) file() string { return fmt.Sprintf("%s:%d", strings.TrimSpace(l.Device), l.Inode) }

func allLoops() ([]loopDevice, error) {
	text, err := Output(exec.Command("losetup", "--json", "--list", "--output", "NAME,BACK-INO,BACK-MAJ:MIN,BACK-FILE"), "")
	if err != nil || text == "" {
		return nil, err
	}
	var answer struct{ Loopdevices []loopDevice }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return nil, fmt.Errorf("losetup: %w", err)
	}
	return answer.Loopdevices, nil
}

// loopDevices are those whose file is the node's, and those on top of them, which kubelet makes as locks.
func loopDevices(dir string) ([]loopDevice, error) {
	all, err := allLoops()
	if err != nil {
		return nil, err
	}
	files, err := imageFiles(dir)
	if err != nil {
		return nil, err
	}
	var own []loopDevice
	for found := true; found; {
		found = false
		for _, loop := range all {
			if files[loop.file()] {
				files[loop.file()] = false
				own = append(own, loop)
				var node syscall.Stat_t
				if err := syscall.Stat(loop.Name, &node); err == nil {
					files[fileNumber(&node)] = true
				}
				found = true
			}
		}
	}
	return own, nil
}

// imageFiles are the files that a node's loop devices may have behind them: those in the run's directory, and those in
// pools that are mounted on the node.
func imageFiles(dir string) (map[string]bool, error) {
	files := map[string]bool{}
	root := filepath.Join(dir, "var/lib/orlop")
	if pid := initPID(dir); pid != 0 {
		root = fmt.Sprintf("/proc/%d/root/var/lib/orlop", pid)
	}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !entry.Type().IsRegular() || filepath.Ext(path) != ".img" {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			files[fileNumber(info.Sys().(*syscall.Stat_t))] = true
		}
		return err
	})
	return files, err
}

func fileNumber(file *syscall.Stat_t) string {
	major := (file.Dev >> 8 & 0xfff) | (file.Dev >> 32 &^ 0xfff)
	minor := (file.Dev & 0xff) | (file.Dev >> 12 &^ 0xff)
	return fmt.Sprintf("%d:%d:%d", major, minor, file.Ino)
}

// detach ends loop devices that were the node's, those on top first, and waits until none is left.
func detach(loops []loopDevice) error {
	return within(10*time.Second, "loop devices of the node", func() error {
		now, err := allLoops()
		if err != nil {
			return err
		}
		var left []error
		for i := len(loops) - 1; i >= 0; i-- {
			for _, loop := range now {
				if loop.Name == loops[i].Name && loop.file() == loops[i].file() {
					_, err := Output(exec.Command("losetup", "--detach", loop.Name), "")
					left = append(left, fmt.Errorf("%s on %s is still there", loop.Name, loop.File), err)
				}
			}
		}
		return errors.Join(left...)
	})
}
