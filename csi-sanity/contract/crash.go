package contract

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

var crashSpecs = []Spec{
	{Name: "crash: a killed driver forgets nothing, and its mounts stay", needs: []string{mayKill}, run: nothingForgotten},
	{Name: "crash: kills in the middle of many lives", needs: []string{mayKill}, run: killsInTheMiddle},
	{Name: "crash: kills in the middle of many copies", needs: []string{mayKill, snapshots, clones}, run: killsInCopies},
}

// kill ends the process that listens at the endpoint, at once. Whoever runs it starts it again.
func (t *T) kill() error {
	pid, err := listenerOf(t.settings.socket())
	if err != nil {
		return err
	}
	if pid <= 1 || pid == os.Getpid() {
		return fmt.Errorf("process %d listens at the endpoint; it is no driver to kill", pid)
	}
	t.suite.kills.Add(1)
	return syscall.Kill(pid, syscall.SIGKILL)
}

// listenerOf returns the process that listens at a unix socket: the kernel tells each client.
func listenerOf(socket string) (int, error) {
	connection, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer connection.Close()
	raw, err := connection.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	var failed error
	err = raw.Control(func(descriptor uintptr) {
		peer, failed = unix.GetsockoptUcred(int(descriptor), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, failed
	}
	return int(peer.Pid), nil
}

// waitReady waits until the driver answers again.
func (t *T) waitReady() error {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		reply, err := call(t.identity.Probe, &csi.ProbeRequest{})
		if err == nil && (reply.GetReady() == nil || reply.GetReady().GetValue()) {
			return nil
		}
		if time.Now().After(end) {
			t.suite.lost.Store(true)
			return fmt.Errorf("the driver does not come back: %v, %w", reply, err)
		}
	}
}

// restart kills the driver and waits until it is back.
func (t *T) restart() {
	t.Helper()
	t.ok(t.kill(), "kill the driver")
	t.ok(t.waitReady(), "wait for the driver")
}

func nothingForgotten(t *T) {
	request := t.request("kept")
	v := t.createFrom(request)
	path := v.stage()
	target := v.publish(path, false)
	t.write(target, "kept")
	t.restart()
	t.check("while nobody asks", target, "kept")
	t.ok(t.canWrite(target), "write to a volume whose driver was killed")
	if again := must(t, t.controller.CreateVolume, request).GetVolume(); again.GetVolumeId() != v.id || again.GetCapacityBytes() != v.size {
		t.Errorf("after the kill the name stands for %v, before for %s with %d", again, v.id, v.size)
	}
	t.ok(v.tryStage(path), "stage again")
	t.ok(v.tryPublish(path, target, false), "publish again")
	t.checkShown("after the kill", v, target, path)
	t.restart()
	t.ok(v.withdraw(), "withdraw after a kill")
	t.check("staged after a kill", v.use(), "kept")
	t.restart()
	t.ok(v.remove(), "remove after a kill")
	if t.has(listVolumes) && t.list()[v.id] != nil {
		t.Errorf("the removed volume is listed")
	}
}

// amid runs callers while the driver is killed again and again. Each does its work over and over
// until the kills have ended, and repeats what it did not see the end of, as kubelet and the
// sidecars do.
func (t *T) amid(kills, callers int, work func(caller, round int) error) {
	t.Helper()
	var left atomic.Int64
	left.Store(int64(kills))
	killed := make(chan error, 1)
	go func() {
		var err error
		for ; err == nil && left.Load() > 0; left.Add(-1) {
			time.Sleep(time.Duration(10+rand.IntN(60)) * time.Millisecond)
			if err = t.kill(); err == nil {
				err = t.waitReady()
			}
		}
		left.Store(0)
		killed <- err
	}()
	for _, err := range together(callers, func(caller int) error {
		for round := 0; left.Load() > 0; round++ {
			if err := work(caller, round); err != nil {
				return err
			}
		}
		return nil
	}) {
		if err != nil {
			t.Errorf("%v", err)
		}
	}
	t.ok(<-killed, "kill the driver")
}

func killsInTheMiddle(t *T) {
	lives := make([]*life, 6)
	for i := range lives {
		lives[i] = t.newLife("killed")
		lives[i].repeat = true
	}
	t.amid(12, len(lives), func(caller, round int) error {
		l := *lives[caller]
		l.request = t.request(fmt.Sprint("killed ", round))
		return l.run()
	})
}

// killsInCopies takes snapshots, restores them, clones the copies, and deletes it all.
func killsInCopies(t *T) {
	v := t.create("source")
	t.write(v.use(), "old")
	v.rest()
	lives := make([]*life, 3)
	for i := range lives {
		lives[i] = t.newLife("killed")
		lives[i].repeat = true
	}
	t.amid(12, len(lives), func(caller, _ int) error {
		taken, err := insist(t.controller.CreateSnapshot, t.snapshotRequest(v.id))
		if err != nil {
			return fmt.Errorf("snapshot: %w", err)
		}
		s := &snapshot{t: t, id: taken.GetSnapshot().GetSnapshotId()}
		restored, err := insist(t.controller.CreateVolume, t.copyRequest(fromSnapshot(s.id), v.size))
		if err != nil {
			return errors.Join(fmt.Errorf("restore: %w", err), s.delete())
		}
		copied := &volume{t: t, id: restored.GetVolume().GetVolumeId()}
		l := *lives[caller]
		l.request, l.begins = t.copyRequest(fromVolume(copied.id), v.size), "old"
		return errors.Join(l.run(), copied.delete(), s.delete())
	})
}
