package contract

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

var crashSpecs = []Spec{
	{Name: "crash: a killed driver forgets nothing, and its mounts stay", needs: []string{mayKill}, run: nothingForgotten},
	{Name: "crash: kills in the middle of many lives", needs: []string{mayKill}, run: killsInTheMiddle},
}

// step makes one call of a life.
func step[Q, R any](l *life, rpc func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) (R, error) {
	if l.repeat {
		return insist(rpc, request)
	}
	return call(rpc, request)
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

// killsInTheMiddle kills the driver again and again while volumes live; each caller repeats what it
// did not see the end of, as kubelet and the sidecars do.
func killsInTheMiddle(t *T) {
	const kills, lives = 12, 6
	var left atomic.Int64
	left.Store(kills)
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
	paths := make([]*life, lives)
	for i := range paths {
		paths[i] = t.newLife("killed")
		paths[i].repeat = true
	}
	for _, err := range together(lives, func(i int) error {
		for count := 0; left.Load() > 0; count++ {
			l := *paths[i]
			l.request = t.request(fmt.Sprint("killed ", count))
			if t.has(staging) {
				if err := os.MkdirAll(l.staging, 0o700); err != nil {
					return err
				}
			}
			if err := l.run(func() {}); err != nil {
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
