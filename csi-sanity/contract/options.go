package contract

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"orlop/csi-sanity/mountinfo"
)

var optionSpecs = []Spec{
	{Name: "options: mount flags are in force at the target", needs: []string{isMount}, run: flagsAreInForce},
	{Name: "options: an unknown mount flag is refused everywhere", needs: []string{isMount}, run: unknownFlag},
	{Name: "options: a volume keeps its filesystem", needs: []string{isMount, OwnFilesystem, staging}, run: otherFilesystem},
	{Name: "options: an unknown filesystem is refused", needs: []string{isMount, OwnFilesystem}, run: unknownFilesystem},
}

// flagChecks try what a mount flag forbids, in a volume that has a script and a device node.
var flagChecks = map[string]func(target string) error{
	"ro": func(target string) error {
		if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			return errors.Join(errors.New("it can be written"), err)
		}
		return nil
	},
	"noexec": func(target string) error {
		if err := exec.Command(filepath.Join(target, "script")).Run(); !errors.Is(err, unix.EACCES) {
			return errors.Join(errors.New("programs can be run"), err)
		}
		return nil
	},
	"nodev": func(target string) error {
		device, err := os.Open(filepath.Join(target, "null"))
		if err == nil {
			return errors.Join(errors.New("devices can be opened"), device.Close())
		}
		return nil
	},
	"nosuid": func(string) error { return nil },
	"noatime": func(target string) error {
		file := filepath.Join(target, "script")
		// So long ago that reading changes it unless the flag is there.
		if err := os.Chtimes(file, longAgo, longAgo); err != nil {
			return err
		}
		if _, err := os.ReadFile(file); err != nil {
			return err
		}
		status, err := os.Stat(file)
		if err != nil {
			return err
		}
		if at := status.Sys().(*syscall.Stat_t).Atim; time.Unix(at.Unix()).After(longAgo) {
			return errors.New("reading changes the time of access")
		}
		return nil
	},
}

var longAgo = time.Unix(1_000_000_000, 0)

func flagsAreInForce(t *T) {
	for flag, check := range flagChecks {
		request := t.request(flag)
		plain := request.GetVolumeCapabilities()[0]
		request.VolumeCapabilities = append(request.VolumeCapabilities, withFlags(plain, flag))
		v := t.createFrom(request)
		v.capability = plain
		target := v.use()
		t.ok(prepareForFlags(target), "prepare the volume")
		// It really was the flag, then.
		if err := exec.Command(filepath.Join(target, "script")).Run(); err != nil {
			t.Errorf("without flags a program in the volume cannot be run: %v", err)
		}
		v.rest()
		v.capability = withFlags(plain, flag)
		target = v.use()
		m, mounted := mountinfo.At(target)
		if !mounted || !m.Has(flag) {
			t.Errorf("%s is not in force at the target: %+v", flag, m)
		}
		if err := check(target); err != nil {
			t.Errorf("%s: %v", flag, err)
		}
		v.rest()
	}
}

func prepareForFlags(target string) error {
	script := filepath.Join(target, "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		return err
	}
	return unix.Mknod(filepath.Join(target, "null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3)))
}

func unknownFlag(t *T) {
	for _, flag := range []string{"no-such-flag", "remount", "bind", "ro,no-such-flag"} {
		request := t.request("flag")
		plain := request.GetVolumeCapabilities()[0]
		request.VolumeCapabilities = []*csi.VolumeCapability{withFlags(plain, flag)}
		_, err := t.tryCreate(request)
		t.code("create with the mount flag "+flag, err, codes.InvalidArgument)
		v := t.create("flag")
		v.capability = withFlags(plain, flag)
		if t.has(staging) {
			path := t.path("staging")
			t.code("stage with the mount flag "+flag, v.tryStage(path), codes.InvalidArgument)
			if m, mounted := mountinfo.At(path); mounted {
				t.Errorf("staging was refused, but there is %v", m)
			}
		}
		v.capability = plain
		stagingPath := v.stage()
		v.capability = withFlags(plain, flag)
		target := t.path("target")
		t.code("publish with the mount flag "+flag, v.tryPublish(stagingPath, target, false), codes.InvalidArgument)
		if m, mounted := mountinfo.At(target); mounted {
			t.Errorf("publishing was refused, but there is %v", m)
		}
		v.rest()
	}
}

func withFilesystem(capability *csi.VolumeCapability, name string) *csi.VolumeCapability {
	changed := proto.CloneOf(capability)
	changed.GetMount().FsType = name
	return changed
}

func otherFilesystem(t *T) {
	v := t.create("filesystem")
	plain := v.capability
	t.write(v.use(), "kept")
	v.rest()
	own := t.filesystemOf(v)
	v.capability = withFilesystem(plain, own)
	t.check("with its own filesystem", v.use(), "kept")
	v.rest()
	for _, other := range t.otherFilesystems(v) {
		v.capability = withFilesystem(plain, other)
		path := t.path("staging")
		t.code("stage with "+other, v.tryStage(path), codes.FailedPrecondition, codes.InvalidArgument)
		if m, mounted := mountinfo.At(path); mounted {
			t.Errorf("staging with %s was refused, but there is %v", other, m)
		}
		v.rest()
	}
	v.capability = plain
	t.check("after all that", v.use(), "kept")
}

// filesystemOf looks at which filesystem a volume has.
func (t *T) filesystemOf(v *volume) string {
	t.Helper()
	path := v.stage()
	m, mounted := mountinfo.At(path)
	if !mounted || !m.Whole() {
		t.Fatalf("a staged volume has to be a filesystem of its own, not %v", m)
	}
	v.rest()
	return m.Filesystem
}

// otherFilesystems are those that a volume does not have.
func (t *T) otherFilesystems(v *volume) []string {
	t.Helper()
	own := t.filesystemOf(v)
	return slices.DeleteFunc([]string{"ext4", "xfs", "btrfs"}, func(name string) bool { return name == own })
}

func unknownFilesystem(t *T) {
	for _, name := range []string{"nosuchfs", "EXT4", "ext4 ", "../ext4", "proc"} {
		request := t.request("filesystem")
		request.VolumeCapabilities = []*csi.VolumeCapability{withFilesystem(request.GetVolumeCapabilities()[0], name)}
		_, err := t.tryCreate(request)
		t.code("create with fs_type "+name, err, codes.InvalidArgument)
	}
}
