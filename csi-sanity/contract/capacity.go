package contract

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"orlop/csi-sanity/mountinfo"
)

var capacitySpecs = []Spec{
	{Name: "capacity: the matrix of required and limit", run: capacityMatrix},
	{Name: "capacity: what is answered is what mount and device show", run: shownSizes},
	{Name: "capacity: a name keeps its size", run: nameKeepsItsSize},
	{Name: "capacity: the matrix of expansion", needs: []string{growth}, run: expansionMatrix},
	{Name: "capacity: a size is a limit", needs: []string{SizeIsLimit}, run: sizeIsLimit},
}

// noSize are the codes for sizes that cannot be.
var noSize = []codes.Code{codes.OutOfRange}

type sizeCase struct {
	about           string
	required, limit int64
	allowed         []codes.Code
}

func (t *T) sizeCases() []sizeCase {
	size := t.settings.VolumeSize
	fits, mayFit := []codes.Code{codes.OK}, []codes.Code{codes.OK, codes.OutOfRange}
	// What a volume has of itself may be more than others have left.
	own := []codes.Code{codes.OK, codes.InvalidArgument, codes.ResourceExhausted}
	return []sizeCase{
		{"required alone", size, 0, fits},
		{"required and limit are equal", size, size, fits},
		{"limit above required", size, 2 * size, fits},
		{"limit alone", 0, size, fits},
		{"an odd size", size + 1, 0, fits},
		{"exactly an odd size", size + 1, size + 1, mayFit},
		{"an odd size with a little room", size + 1, size + 4096, fits},
		{"neither", 0, 0, own},
		{"a limit below every volume", 0, 1, mayFit},
		{"tiny", 1, 1, mayFit},
		{"inverted", 2 * size, size, noSize},
		{"required is negative", -1, 0, []codes.Code{codes.InvalidArgument, codes.OutOfRange}},
		{"limit is negative", 0, -1, []codes.Code{codes.InvalidArgument, codes.OutOfRange}},
		{"required is the least number", math.MinInt64, 0, []codes.Code{codes.InvalidArgument, codes.OutOfRange}},
		{"more than there is", 1 << 60, 0, []codes.Code{codes.OutOfRange, codes.ResourceExhausted}},
		{"required is the greatest number", math.MaxInt64, 0, []codes.Code{codes.OutOfRange, codes.ResourceExhausted}},
		{"both are the greatest number", math.MaxInt64, math.MaxInt64, []codes.Code{codes.OutOfRange, codes.ResourceExhausted}},
	}
}

func (c sizeCase) contains(size int64) bool {
	return size >= c.required && (c.limit == 0 || size <= c.limit)
}

func capacityMatrix(t *T) {
	for _, c := range t.sizeCases() {
		request := t.request("size")
		request.CapacityRange = &csi.CapacityRange{RequiredBytes: c.required, LimitBytes: c.limit}
		v, err := t.tryCreate(request)
		t.code(c.about, err, c.allowed...)
		if err == nil && !c.contains(v.size) {
			t.Errorf("%s: required %d, limit %d, but the volume has %d", c.about, c.required, c.limit, v.size)
		}
		if err == nil {
			checkListedSize(t, v)
			t.ok(v.remove(), "remove")
		}
	}
	request := t.request("no range")
	request.CapacityRange = nil
	v, err := t.tryCreate(request)
	t.code("no range", err, codes.OK, codes.ResourceExhausted)
	if err == nil && v.size <= 0 {
		t.Errorf("without a range the volume has %d bytes", v.size)
	}
}

// checkListedSize compares the size in other answers with that of the creation.
func checkListedSize(t *T, v *volume) {
	t.Helper()
	if t.has(getVolume) {
		reply := must(t, t.controller.ControllerGetVolume, &csi.ControllerGetVolumeRequest{VolumeId: v.id})
		if size := reply.GetVolume().GetCapacityBytes(); size != v.size {
			t.Errorf("ControllerGetVolume says %d bytes, CreateVolume said %d", size, v.size)
		}
	}
	if t.has(listVolumes) {
		if listed, found := t.list()[v.id]; !found || listed.GetCapacityBytes() != v.size {
			t.Errorf("ListVolumes says %d bytes (found: %v), CreateVolume said %d", listed.GetCapacityBytes(), found, v.size)
		}
	}
}

func shownSizes(t *T) {
	size := t.settings.VolumeSize
	for _, required := range []int64{size, size + 1, size + size/2} {
		request := t.request("shown")
		request.CapacityRange = &csi.CapacityRange{RequiredBytes: required, LimitBytes: 2 * size}
		v := t.createFrom(request)
		path := v.stage()
		t.checkShown("after its creation", v, v.publish(path, false), path)
		v.rest()
	}
}

// checkShown compares a volume's size with what a pod sees of it.
func (t *T) checkShown(about string, v *volume, target, stagingPath string) {
	t.Helper()
	switch {
	case t.settings.Block:
		if got, err := deviceSize(target); err != nil || got != v.size {
			t.Errorf("%s: the device has %d bytes, the volume %d (%v)", about, got, v.size, err)
		}
	case t.has(OwnFilesystem):
		checkFilesystemSize(t, about, v, target)
	}
	if t.has(stats) {
		checkStats(t, about, v, target, stagingPath)
	}
}

func checkFilesystemSize(t *T, about string, v *volume, target string) {
	t.Helper()
	var space unix.Statfs_t
	t.ok(unix.Statfs(target, &space), "statfs")
	total := int64(space.Blocks) * space.Bsize
	// The rest is what the filesystem keeps for itself: inodes, a journal.
	if total > v.size || total < v.size*7/10 {
		t.Errorf("%s: the filesystem has %d bytes, the volume %d", about, total, v.size)
	}
	m, _ := mountinfo.At(target)
	sectors, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(m.Source), "size"))
	if err != nil {
		t.Errorf("%s: the device of the filesystem cannot be found: %v", about, err)
		return
	}
	count, err := strconv.ParseInt(strings.TrimSpace(string(sectors)), 10, 64)
	if err != nil || count*512 != v.size {
		t.Errorf("%s: the filesystem's device has %d bytes, the volume %d", about, count*512, v.size)
	}
}

func checkStats(t *T, about string, v *volume, target, stagingPath string) {
	t.Helper()
	reply := must(t, t.node.NodeGetVolumeStats, &csi.NodeGetVolumeStatsRequest{
		VolumeId: v.id, VolumePath: target, StagingTargetPath: stagingPath,
	})
	units := map[csi.VolumeUsage_Unit]*csi.VolumeUsage{}
	for _, usage := range reply.GetUsage() {
		units[usage.GetUnit()] = usage
		if usage.GetTotal() < 0 || usage.GetUsed() < 0 || usage.GetAvailable() < 0 {
			t.Errorf("%s: negative figures: %v", about, usage)
		}
	}
	bytes := units[csi.VolumeUsage_BYTES]
	switch {
	case bytes == nil:
		t.Errorf("%s: the statistics have no bytes: %v", about, reply)
	case t.settings.Block && bytes.GetTotal() != v.size:
		t.Errorf("%s: the statistics say %d bytes, the volume has %d", about, bytes.GetTotal(), v.size)
	case !t.settings.Block && bytes.GetTotal() <= 0:
		t.Errorf("%s: the statistics say that there are no bytes: %v", about, bytes)
	case t.has(SizeIsLimit) && bytes.GetTotal() > v.size:
		t.Errorf("%s: the statistics say %d bytes, more than the volume's %d", about, bytes.GetTotal(), v.size)
	}
}

func deviceSize(path string) (int64, error) {
	device, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer device.Close()
	return device.Seek(0, io.SeekEnd)
}

func nameKeepsItsSize(t *T) {
	request := t.request("name and size")
	size := t.settings.VolumeSize
	v := t.createFrom(request)
	for _, c := range []struct {
		about           string
		required, limit int64
		allowed         codes.Code
	}{
		{"the same again", size, 0, codes.OK},
		{"with a limit that it keeps", size, 2 * size, codes.OK},
		{"larger than it is", 2 * size, 0, codes.AlreadyExists},
		{"smaller than it is", size / 4, size / 2, codes.AlreadyExists},
	} {
		request.CapacityRange = &csi.CapacityRange{RequiredBytes: c.required, LimitBytes: c.limit}
		reply, err := call(t.controller.CreateVolume, request)
		t.code(c.about, err, c.allowed)
		if err == nil && (reply.GetVolume().GetVolumeId() != v.id || reply.GetVolume().GetCapacityBytes() != v.size) {
			t.Errorf("%s: another volume was answered: %v, not %s with %d", c.about, reply.GetVolume(), v.id, v.size)
		}
	}
}

func expansionMatrix(t *T) {
	v := t.create("expansion")
	size := v.size
	for _, c := range []sizeCase{
		{"the size that it has", size, 0, []codes.Code{codes.OK}},
		{"exactly the size that it has", size, size, []codes.Code{codes.OK}},
		{"less than it has", size / 2, 0, []codes.Code{codes.OK, codes.OutOfRange}},
		{"a limit below what it has", size / 4, size / 2, noSize},
		{"inverted", 4 * size, 3 * size, noSize},
		{"negative", -1, 0, []codes.Code{codes.InvalidArgument, codes.OutOfRange}},
		{"a negative limit", size, -1, []codes.Code{codes.InvalidArgument, codes.OutOfRange}},
		// RESOURCE_EXHAUSTED would keep Kubernetes from ever taking the wish back.
		{"more than there is", 1 << 60, 0, noSize},
		{"the greatest number", math.MaxInt64, 0, noSize},
		{"more, exactly", size + size/2, size + size/2, []codes.Code{codes.OK}},
		{"an odd size", size + size/2 + 1, 0, []codes.Code{codes.OK}},
	} {
		reply, err := call(t.controller.ControllerExpandVolume, &csi.ControllerExpandVolumeRequest{
			VolumeId: v.id, CapacityRange: &csi.CapacityRange{RequiredBytes: c.required, LimitBytes: c.limit},
			VolumeCapability: v.capability,
		})
		t.code(c.about, err, c.allowed...)
		if err != nil {
			checkListedSize(t, v)
			continue
		}
		if got := reply.GetCapacityBytes(); got < v.size || !c.contains(got) {
			t.Errorf("%s: required %d, limit %d, had %d, but the volume has %d", c.about, c.required, c.limit, v.size, got)
		}
		v.size = reply.GetCapacityBytes()
		checkListedSize(t, v)
	}
	refused(t, "no range", t.controller.ControllerExpandVolume, &csi.ControllerExpandVolumeRequest{VolumeId: v.id},
		codes.InvalidArgument)
	path := v.stage()
	t.checkShown("after it has grown while nobody used it", v, v.publish(path, false), path)
}

// sizeIsLimit writes until nothing more fits.
func sizeIsLimit(t *T) {
	v := t.create("limit")
	target := v.use()
	if t.settings.Block {
		device, err := os.OpenFile(target, os.O_RDWR, 0)
		t.ok(err, "open the device")
		defer device.Close()
		if n, err := device.WriteAt(make([]byte, 4096), v.size); n != 0 || err == nil {
			t.Errorf("%d bytes were written behind the end of the device: %v", n, err)
		}
		return
	}
	file, err := os.Create(filepath.Join(target, "all"))
	t.ok(err, "create a file")
	defer file.Close()
	written, data := int64(0), bytesOf("limit", 4<<20)
	for written <= v.size {
		n, err := file.Write(data)
		written += int64(n)
		if err == nil {
			err = file.Sync()
		}
		if errors.Is(err, unix.ENOSPC) {
			t.Logf("%d of %d bytes could be written", written, v.size)
			return
		}
		t.ok(err, "write")
	}
	t.Errorf("%s", fmt.Sprintf("%d bytes were written into a volume of %d", written, v.size))
}
