package contract

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

var contentSpecs = []Spec{
	{Name: "contents: a new volume is empty, also under a name that had one", run: newIsEmpty},
	{Name: "contents: they stay while the volume comes and goes", run: contentsStay},
	{Name: "contents: volumes do not share them", run: contentsApart},
	{Name: "contents: they stay while a used volume grows", needs: []string{growth, onlineGrowth}, run: growOnline},
	{Name: "contents: they stay while an unused volume grows", needs: []string{growth}, run: growOffline},
}

// checkEmpty makes sure that nothing of anybody is in a volume.
func checkEmpty(t *T, about, target string) {
	t.Helper()
	if !t.settings.Block {
		entries, err := os.ReadDir(target)
		if err != nil || len(entries) > 0 {
			t.Errorf("%s: the volume has %v (%v)", about, entries, err)
		}
		return
	}
	device, err := os.Open(target)
	t.ok(err, "open the device")
	defer device.Close()
	zeros, data := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(device, data)
		if !bytes.Equal(data[:n], zeros[:n]) {
			t.Errorf("%s: the device is not empty", about)
			return
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		t.ok(err, "read the device")
	}
}

func newIsEmpty(t *T) {
	request := t.request("empty")
	first := t.createFrom(request)
	target := first.use()
	checkEmpty(t, "a new volume", target)
	t.write(target, "old")
	t.ok(first.remove(), "remove the first volume")
	second := t.createFrom(request)
	checkEmpty(t, "a new volume of the same name", second.use())
	// A late repetition of the deletion must not reach the new one.
	if first.id != second.id {
		t.ok(first.delete(), "delete the first volume again")
	}
	must(t, t.controller.ValidateVolumeCapabilities, second.validation())
}

func contentsStay(t *T) {
	v := t.create("contents")
	path := v.stage()
	target := v.publish(path, false)
	t.write(target, "first")
	t.ok(v.unpublish(target), "unpublish")
	target = v.publish(path, false)
	t.check("after unpublish and publish", target, "first")
	if !t.settings.Block {
		t.write(target, "second")
	}
	v.rest()
	target = v.use()
	t.check("after unstage and stage", target, "first")
	if !t.settings.Block {
		t.check("after unstage and stage", target, "second")
	}
	v.rest()
	// Somewhere else, read-only, and back.
	t.check("read-only", v.publish(v.stage(), true), "first")
	v.rest()
	target = v.use()
	t.check("after it was read-only", target, "first")
	t.ok(t.canWrite(target), "write after it was read-only")
}

func contentsApart(t *T) {
	one, two := t.create("one"), t.create("two")
	first, second := one.use(), two.use()
	t.write(first, "one")
	t.write(second, "two")
	t.check("the first volume", first, "one")
	t.check("the second volume", second, "two")
	t.ok(one.remove(), "remove the first volume")
	t.check("the second volume, when the first is gone", second, "two")
	two.rest()
	t.check("the second volume, staged again", two.use(), "two")
}

// grow asks the controller for more; it says whether the node has to do something as well.
func (v *volume) grow(size int64) bool {
	v.t.Helper()
	reply := must(v.t, v.t.controller.ControllerExpandVolume, &csi.ControllerExpandVolumeRequest{
		VolumeId: v.id, CapacityRange: &csi.CapacityRange{RequiredBytes: size}, VolumeCapability: v.capability,
	})
	if reply.GetCapacityBytes() < size {
		v.t.Errorf("%d bytes were asked for, but the volume has %d", size, reply.GetCapacityBytes())
	}
	v.size = reply.GetCapacityBytes()
	return reply.GetNodeExpansionRequired()
}

// growNode lets the node take over a new size. It says whether the volume is to be staged again
// for that.
func (v *volume) growNode(target, stagingPath string) bool {
	v.t.Helper()
	err := v.expandNode(target, stagingPath)
	if v.t.has(OwnFilesystem) && !v.t.has(GrowsMounted) {
		v.t.code("expand a filesystem that cannot grow while it is mounted", err, codes.FailedPrecondition)
		return true
	}
	v.t.ok(err, "expand on the node")
	return false
}

func (v *volume) expandNode(target, stagingPath string) error {
	reply, err := call(v.t.node.NodeExpandVolume, &csi.NodeExpandVolumeRequest{
		VolumeId: v.id, VolumePath: target, StagingTargetPath: stagingPath, VolumeCapability: v.capability,
		CapacityRange: &csi.CapacityRange{RequiredBytes: v.size},
	})
	if got := reply.GetCapacityBytes(); err == nil && got != 0 && got != v.size {
		return fmt.Errorf("the node says %d bytes, the controller said %d", got, v.size)
	}
	return err
}

// growOnline grows a volume while a pod writes to it.
func growOnline(t *T) {
	v := t.create("online")
	path := v.stage()
	target := v.publish(path, false)
	t.write(target, "before")
	stop := t.busy(target)
	for _, factor := range []int64{3, 4} {
		later := v.grow(t.settings.VolumeSize/2*factor) && v.growNode(target, path)
		if !later {
			t.checkShown("after it has grown while it is used", v, target, path)
		}
	}
	t.ok(stop(), "write while it grows")
	t.check("after it has grown", target, "before")
	if !t.settings.Block {
		t.write(target, "after")
	}
	v.rest()
	path = v.stage()
	target = v.publish(path, false)
	t.check("staged again", target, "before")
	t.checkShown("staged again", v, target, path)
}

// busy writes to a volume until the function that it returns is called, at the latest when the spec
// ends.
func (t *T) busy(target string) func() error {
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() { stopped <- writeUntil(target, t.settings.Block, stop) }()
	end := sync.OnceValue(func() error {
		close(stop)
		return <-stopped
	})
	t.Cleanup(func() { _ = end() })
	return end
}

// writeUntil keeps a volume busy, in a file of its own or behind what the checks look at.
func writeUntil(target string, block bool, stop <-chan struct{}) error {
	if !block {
		target += "/busy"
	}
	file, err := os.OpenFile(target, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	data := bytesOf("busy", 4096)
	for {
		select {
		case <-stop:
			return nil
		case <-time.After(time.Millisecond):
		}
		// Between the second place and the third one.
		if _, err := file.WriteAt(data, 3*chunk); err != nil {
			return err
		}
		if err := file.Sync(); err != nil {
			return err
		}
	}
}

func growOffline(t *T) {
	v := t.create("offline")
	t.write(v.use(), "before")
	v.rest()
	nodeHasWork := v.grow(t.settings.VolumeSize * 3 / 2)
	path := v.stage()
	target := v.publish(path, false)
	if nodeHasWork {
		// What could not be done while it was mounted has been done before it was.
		t.ok(v.expandNode(target, path), "expand on the node")
	}
	t.check("after it has grown", target, "before")
	t.checkShown("after it has grown", v, target, path)
	t.write(target, "before")
	v.rest()
	// A reader comes first: whoever grows the filesystem then, it is not lost.
	v.grow(t.settings.VolumeSize * 2)
	t.check("read-only", v.publish(v.stage(), true), "before")
	v.rest()
	path = v.stage()
	target = v.publish(path, false)
	t.check("after it was read-only", target, "before")
	t.checkShown("after it was read-only", v, target, path)
}
