package contract

import (
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// snapshot is a snapshot of the driver.
type snapshot struct {
	t    *T
	id   string
	made *csi.Snapshot
}

func (t *T) snapshotRequest(source string) *csi.CreateSnapshotRequest {
	return &csi.CreateSnapshotRequest{SourceVolumeId: source, Name: t.driver.name("snapshot")}
}

// snapshot takes a snapshot, which is gone when the spec has ended.
func (t *T) snapshot(v *volume) *snapshot {
	t.Helper()
	return t.snapshotFrom(t.snapshotRequest(v.id))
}

func (t *T) snapshotFrom(request *csi.CreateSnapshotRequest) *snapshot {
	t.Helper()
	s, err := t.trySnapshot(request)
	t.ok(err, "take a snapshot of %s", request.GetSourceVolumeId())
	return s
}

func (t *T) trySnapshot(request *csi.CreateSnapshotRequest) (*snapshot, error) {
	reply, err := call(t.controller.CreateSnapshot, request)
	if err != nil {
		return nil, err
	}
	s := &snapshot{t: t, id: reply.GetSnapshot().GetSnapshotId(), made: reply.GetSnapshot()}
	t.Cleanup(func() {
		if err := s.delete(); err != nil {
			t.Errorf("clean up snapshot %s: %v", s.id, err)
		}
	})
	if !reply.GetSnapshot().GetReadyToUse() {
		s.waitReady()
	}
	return s, nil
}

// waitReady asks again until the snapshot can be used.
func (s *snapshot) waitReady() {
	s.t.Helper()
	s.t.eventually("the snapshot becomes ready", func() error {
		listed := s.t.listedSnapshots(&csi.ListSnapshotsRequest{SnapshotId: s.id})
		if len(listed) != 1 || !listed[0].GetReadyToUse() {
			return fmt.Errorf("listed is %v", listed)
		}
		return nil
	})
}

func (s *snapshot) delete() error {
	_, err := insist(s.t.controller.DeleteSnapshot, &csi.DeleteSnapshotRequest{SnapshotId: s.id})
	return err
}

func fromSnapshot(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
		Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: id},
	}}
}

func fromVolume(id string) *csi.VolumeContentSource {
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
		Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: id},
	}}
}

// copyRequest is one for a volume that begins with something, of its size.
func (t *T) copyRequest(source *csi.VolumeContentSource, size int64) *csi.CreateVolumeRequest {
	request := t.request("copy")
	request.VolumeContentSource = source
	request.CapacityRange = &csi.CapacityRange{RequiredBytes: size}
	return request
}

// restore makes a volume of a snapshot.
func (s *snapshot) restore() *volume {
	s.t.Helper()
	return s.t.createFrom(s.t.copyRequest(fromSnapshot(s.id), s.made.GetSizeBytes()))
}

// clone makes a volume of a volume.
func (v *volume) clone() *volume {
	v.t.Helper()
	return v.t.createFrom(v.t.copyRequest(fromVolume(v.id), v.size))
}

// settle makes sure that a volume may be copied: where only unused ones can be, nobody uses it then.
// It returns where the volume is, for as long as it is used.
func (v *volume) settle(target string) string {
	v.t.Helper()
	if v.t.has(InstantCopies) {
		return target
	}
	v.rest()
	return ""
}

// inUse returns where a volume can be used, be it used already or not.
func (v *volume) inUse(target string) string {
	v.t.Helper()
	if target == "" {
		return v.use()
	}
	return target
}

// copyOf are the two ways to copy a volume.
type copyOf struct {
	about string
	needs string
	// copy makes the copy with at least that size.
	copy func(v *volume, size int64) *volume
}

var waysToCopy = []copyOf{
	{"restore", snapshots, func(v *volume, size int64) *volume {
		return v.t.createFrom(v.t.copyRequest(fromSnapshot(v.t.snapshot(v).id), size))
	}},
	{"clone", clones, func(v *volume, size int64) *volume {
		return v.t.createFrom(v.t.copyRequest(fromVolume(v.id), size))
	}},
}

// copySpecs are one of each for both ways.
func copySpecs() []Spec {
	var specs []Spec
	for _, way := range waysToCopy {
		for sentence, run := range map[string]func(*T, copyOf){
			"it has what was there, and the two go their own ways": ownWays,
			"it may be larger, and is used to its end":             largerCopy,
			"it survives everything that it came from":             survivingCopy,
			"it is refused what it cannot be":                      impossibleCopy,
			"a name stands for one source":                         nameAndSource,
			"many at once are all whole":                           manyCopies,
		} {
			specs = append(specs, Spec{
				Name: way.about + ": " + sentence, needs: []string{way.needs}, run: func(t *T) { run(t, way) },
			})
		}
	}
	slices.SortFunc(specs, func(one, two Spec) int {
		if one.Name < two.Name {
			return -1
		}
		return 1
	})
	return specs
}

func ownWays(t *T, way copyOf) {
	v := t.create("source")
	target := v.use()
	t.write(target, "old")
	target = v.settle(target)
	copied := way.copy(v, v.size)
	if copied.size < v.size {
		t.Errorf("the copy has %d bytes, its source %d", copied.size, v.size)
	}
	// What the source becomes later, the copy never was.
	target = v.inUse(target)
	t.write(target, "new")
	place := copied.use()
	t.check("the copy", place, "old")
	t.absent("the copy", place, "new")
	t.check("the source", target, "new")
	// And the other way round.
	t.write(place, "copied")
	t.check("the copy, written to", place, "copied")
	t.absent("the source", target, "copied")
	copied.rest()
	v.rest()
	t.check("the copy, staged again", copied.use(), "copied")
	t.check("the source, staged again", v.use(), "new")
}

// absent makes sure that something was never written to a volume.
func (t *T) absent(about, path, seed string) {
	t.Helper()
	if err := t.tryCheck(path, seed); err == nil {
		t.Errorf("%s has what was written elsewhere (%s)", about, seed)
	}
}

func largerCopy(t *T, way copyOf) {
	v := t.create("source")
	target := v.use()
	t.write(target, "old")
	v.settle(target)
	for _, size := range []int64{v.size * 3 / 2, v.size * 2} {
		copied := way.copy(v, size)
		if copied.size < size {
			t.Errorf("%d bytes were asked for, the copy has %d", size, copied.size)
		}
		path := copied.stage()
		place := copied.publish(path, false)
		t.check("the larger copy", place, "old")
		t.checkShown("the larger copy", copied, place, path)
		// It can be used to its end, and grow on.
		t.write(place, "old")
		copied.rest()
		if t.has(growth) {
			copied.grow(size + v.size/2)
			path = copied.stage()
			place = copied.publish(path, false)
			t.check("the larger copy, grown", place, "old")
			t.checkShown("the larger copy, grown", copied, place, path)
		}
		t.ok(copied.remove(), "remove the larger copy")
	}
	// A reader that comes first does not keep it from growing.
	copied := way.copy(v, v.size*2)
	t.check("the larger copy, read-only", copied.publish(copied.stage(), true), "old")
	copied.rest()
	path := copied.stage()
	t.checkShown("the larger copy, after it was read-only", copied, copied.publish(path, false), path)
}

// survivingCopy deletes everything behind a copy of a copy.
func survivingCopy(t *T, way copyOf) {
	v := t.create("source")
	t.write(v.use(), "old")
	v.rest()
	first := way.copy(v, v.size)
	if !t.has(IndependentCopies) {
		t.check("the copy", first.use(), "old")
		return
	}
	t.ok(v.remove(), "remove the source")
	second := way.copy(first, first.size)
	third := way.copy(second, second.size)
	t.ok(first.remove(), "remove the first copy")
	t.ok(second.remove(), "remove the second copy")
	place := third.use()
	t.check("the copy of a copy of a copy", place, "old")
	t.write(place, "new")
	t.check("the copy of a copy of a copy, written to", place, "new")
}

func impossibleCopy(t *T, way copyOf) {
	v := t.create("source")
	source, unknown := fromVolume(v.id), fromVolume(v.id+"0")
	if way.needs == snapshots {
		s := t.snapshot(v)
		source, unknown = fromSnapshot(s.id), fromSnapshot(s.id+"0")
	}
	_, err := t.tryCreate(t.copyRequest(unknown, v.size))
	t.code("of what does not exist", err, codes.NotFound)
	request := t.copyRequest(source, v.size)
	request.CapacityRange = &csi.CapacityRange{LimitBytes: v.size / 2}
	_, err = t.tryCreate(request)
	t.code("smaller than its source", err, codes.OutOfRange)
	_, err = t.tryCreate(t.copyRequest(source, 1<<60))
	t.code("larger than there is", err, codes.OutOfRange, codes.ResourceExhausted)
	_, err = t.tryCreate(t.copyRequest(&csi.VolumeContentSource{}, v.size))
	t.code("of no source", err, codes.InvalidArgument)
	request = t.copyRequest(source, v.size)
	request.CapacityRange = nil
	if copied := t.createFrom(request); copied.size < v.size {
		t.Errorf("without a range the copy has %d bytes, its source %d", copied.size, v.size)
	}
	if t.has(OwnFilesystem) {
		for _, other := range t.otherFilesystems(v) {
			request = t.copyRequest(source, v.size)
			request.VolumeCapabilities = []*csi.VolumeCapability{withFilesystem(t.ordinary(), other)}
			_, err = t.tryCreate(request)
			t.code("with "+other, err, codes.InvalidArgument)
		}
	}
}

func nameAndSource(t *T, way copyOf) {
	v, other := t.create("source"), t.create("another source")
	source, second := fromVolume(v.id), fromVolume(other.id)
	if way.needs == snapshots {
		source, second = fromSnapshot(t.snapshot(v).id), fromSnapshot(t.snapshot(v).id)
	}
	request := t.copyRequest(source, v.size)
	reply := must(t, t.controller.CreateVolume, request).GetVolume()
	t.adopt(reply)
	if got := reply.GetContentSource(); !proto.Equal(got, source) {
		t.Errorf("the answer has the source %v, asked was %v", got, source)
	}
	again := must(t, t.controller.CreateVolume, request).GetVolume()
	if again.GetVolumeId() != reply.GetVolumeId() || !proto.Equal(again.GetContentSource(), source) {
		t.Errorf("the same again is %v, before it was %v", again, reply)
	}
	request.VolumeContentSource = second
	refused(t, "the same name with another source", t.controller.CreateVolume, request, codes.AlreadyExists)
	request.VolumeContentSource = nil
	refused(t, "the same name without a source", t.controller.CreateVolume, request, codes.AlreadyExists)
	plain := t.request("without a source")
	t.createFrom(plain)
	plain.VolumeContentSource = source
	refused(t, "a source for what has none", t.controller.CreateVolume, plain, codes.AlreadyExists)
	if t.has(getVolume) {
		single := must(t, t.controller.ControllerGetVolume, &csi.ControllerGetVolumeRequest{VolumeId: reply.GetVolumeId()})
		if got := single.GetVolume().GetContentSource(); got != nil && !proto.Equal(got, source) {
			t.Errorf("made with the source %v, but answered with %v", source, got)
		}
	}
}

// manyCopies makes copies of one source at the same time, while it is used if it can be.
func manyCopies(t *T, way copyOf) {
	v := t.create("source")
	target := v.use()
	t.write(target, "old")
	v.settle(target)
	source := fromVolume(v.id)
	if way.needs == snapshots {
		source = fromSnapshot(t.snapshot(v).id)
	}
	requests := make([]*csi.CreateVolumeRequest, 6)
	for i := range requests {
		requests[i] = t.copyRequest(source, v.size)
	}
	made := make([]*csi.Volume, len(requests))
	for _, err := range together(len(requests), func(i int) error {
		reply, err := insist(t.controller.CreateVolume, requests[i])
		made[i] = reply.GetVolume()
		return err
	}) {
		t.ok(err, "copy")
	}
	for _, copied := range made {
		t.check("one of many copies", t.adopt(copied).use(), "old")
	}
}
