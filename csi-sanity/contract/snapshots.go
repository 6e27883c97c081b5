package contract

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

var snapshotSpecs = []Spec{
	{Name: "snapshots: they say what they are", needs: []string{snapshots}, run: snapshotFields},
	{Name: "snapshots: a used volume is copied at one instant or not at all", needs: []string{snapshots, staging}, run: usedVolume},
	{Name: "snapshots: a name stands for one volume", needs: []string{snapshots}, run: snapshotNames},
	{Name: "snapshots: each call ten times", needs: []string{snapshots}, run: snapshotRepeats},
	{Name: "snapshots: wrong requests are refused", needs: []string{snapshots}, run: wrongSnapshots},
	{Name: "snapshots: volumes and snapshots are deleted in any order", needs: []string{snapshots, IndependentCopies}, run: anyOrder},
	{Name: "snapshots: parallel calls make one, whole or not at all", needs: []string{snapshots}, run: parallelSnapshots},
	{Name: "snapshots: every page size shows every snapshot once", needs: []string{snapshots, listSnapshots}, run: snapshotPages},
	{Name: "snapshots: lists of one volume and of one snapshot", needs: []string{snapshots, listSnapshots}, run: snapshotLists},
	{Name: "snapshots: a single one is answered as it is listed", needs: []string{snapshots, listSnapshots, getSnapshot}, run: singleSnapshot},
	{Name: "snapshots: they are where they were required", needs: []string{snapshots, snapTopology, topology}, run: snapshotTopology},
	{Name: "snapshots: of a volume before and after it has grown", needs: []string{snapshots, growth}, run: snapshotOfGrown},
}

func snapshotFields(t *T) {
	v := t.create("fields")
	// A record may keep whole seconds.
	before := time.Now().Truncate(time.Second)
	s := t.snapshot(v)
	after := time.Now()
	if s.id == "" || s.made.GetSourceVolumeId() != v.id || s.made.GetGroupSnapshotId() != "" {
		t.Errorf("of %s there is %v", v.id, s.made)
	}
	// It says how large a volume made of it has to be.
	if got := s.made.GetSizeBytes(); got != 0 && got != v.size {
		t.Errorf("the snapshot has %d bytes, the volume %d", got, v.size)
	}
	if taken := s.made.GetCreationTime().AsTime(); taken.Before(before) || taken.After(after) {
		t.Errorf("the snapshot was taken at %s, but between %s and %s", taken, before, after)
	}
}

// usedVolume takes a snapshot while a pod has the volume.
func usedVolume(t *T) {
	v := t.create("used")
	target := v.use()
	t.write(target, "old")
	request := t.snapshotRequest(v.id)
	s, err := t.trySnapshot(request)
	if t.has(InstantCopies) {
		t.ok(err, "take a snapshot of a used volume")
		t.write(target, "new")
		place := s.restore().use()
		t.check("the copy of a used volume", place, "old")
		t.absent("the copy of a used volume", place, "new")
		return
	}
	t.code("a snapshot of a used volume", err, codes.FailedPrecondition)
	_, err = t.tryCreate(t.copyRequest(fromVolume(v.id), v.size))
	if t.has(clones) {
		t.code("a clone of a used volume", err, codes.FailedPrecondition)
	}
	t.ok(t.canWrite(target), "write after a refused snapshot")
	v.rest()
	// Readers do not disturb it.
	reader := v.publish(v.stage(), true)
	t.check("a reader", reader, "old")
	v.rest()
	s = t.snapshotFrom(request)
	t.check("the copy of an unused volume", s.restore().use(), "old")
}

func snapshotNames(t *T) {
	v, other := t.create("one"), t.create("two")
	ids := map[string]string{}
	for _, name := range []string{
		"../../etc", "/", ".", "new\nline", "🚢", "%s", strings.Repeat("x", stringLimit), strings.Repeat("🚢", stringLimit/4),
		// The name of a volume is free for a snapshot.
		t.request("").GetName(),
	} {
		s := t.snapshotFrom(&csi.CreateSnapshotRequest{SourceVolumeId: v.id, Name: name})
		if taken, found := ids[s.id]; found {
			t.Errorf("the names %q and %q make the same snapshot", name, taken)
		}
		ids[s.id] = name
		again := must(t, t.controller.CreateSnapshot, &csi.CreateSnapshotRequest{SourceVolumeId: v.id, Name: name})
		if !proto.Equal(again.GetSnapshot(), s.made) {
			t.Errorf("the same again is %v, before it was %v", again.GetSnapshot(), s.made)
		}
		refused(t, "the same name for another volume", t.controller.CreateSnapshot,
			&csi.CreateSnapshotRequest{SourceVolumeId: other.id, Name: name}, codes.AlreadyExists)
	}
	for _, c := range []string{"\x00", "\x07", "\x1f", "\x7f", "\u0085"} {
		refused(t, fmt.Sprintf("a name with %q", c), t.controller.CreateSnapshot,
			&csi.CreateSnapshotRequest{SourceVolumeId: v.id, Name: "x" + c}, codes.InvalidArgument)
	}
}

func snapshotRepeats(t *T) {
	v := t.create("repeats")
	request := t.snapshotRequest(v.id)
	s := t.snapshotFrom(request)
	for range repeats {
		if again := must(t, t.controller.CreateSnapshot, request).GetSnapshot(); !proto.Equal(again, s.made) {
			t.Errorf("the same again is %v, before it was %v", again, s.made)
		}
	}
	for range repeats {
		t.ok(s.delete(), "delete")
	}
	// The name is free again, for another snapshot.
	again := t.snapshotFrom(request)
	if again.id != s.id {
		t.ok(s.delete(), "delete the first one late")
	}
	t.ok(again.restore().remove(), "restore the second one")
}

func wrongSnapshots(t *T) {
	v := t.create("wrong")
	for about, wrong := range map[string]struct {
		request *csi.CreateSnapshotRequest
		code    codes.Code
	}{
		"no name":          {&csi.CreateSnapshotRequest{SourceVolumeId: v.id}, codes.InvalidArgument},
		"no volume":        {&csi.CreateSnapshotRequest{Name: "x"}, codes.InvalidArgument},
		"a long name":      {&csi.CreateSnapshotRequest{SourceVolumeId: v.id, Name: strings.Repeat("x", stringLimit+1)}, codes.InvalidArgument},
		"unknown volume":   {&csi.CreateSnapshotRequest{SourceVolumeId: v.id + "0", Name: "x"}, codes.NotFound},
		"no such volume":   {&csi.CreateSnapshotRequest{SourceVolumeId: "no-such-volume", Name: "x"}, codes.NotFound},
		"unknown settings": {&csi.CreateSnapshotRequest{SourceVolumeId: v.id, Name: "x", Parameters: map[string]string{"no-such-parameter": "x"}}, codes.InvalidArgument},
	} {
		refused(t, about, t.controller.CreateSnapshot, wrong.request, wrong.code)
	}
	refused(t, "delete no snapshot", t.controller.DeleteSnapshot, &csi.DeleteSnapshotRequest{}, codes.InvalidArgument)
	for _, id := range []string{"no-such-snapshot", v.id, "../..", "🚢"} {
		must(t, t.controller.DeleteSnapshot, &csi.DeleteSnapshotRequest{SnapshotId: id})
	}
	// The id of a volume is no snapshot's, and the other way round.
	must(t, t.controller.ValidateVolumeCapabilities, v.validation())
	s := t.snapshot(v)
	must(t, t.controller.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: s.id})
	_, err := t.tryCreate(t.copyRequest(fromVolume(s.id), v.size))
	t.code("clone a snapshot", err, codes.NotFound, codes.InvalidArgument)
	_, err = t.tryCreate(t.copyRequest(fromSnapshot(v.id), v.size))
	t.code("restore a volume", err, codes.NotFound, codes.InvalidArgument)
	t.ok(s.restore().remove(), "restore")
}

func anyOrder(t *T) {
	v := t.create("first of all")
	t.write(v.use(), "old")
	v.rest()
	first, second := t.snapshot(v), t.snapshot(v)
	restored := first.restore()
	t.ok(first.delete(), "delete a snapshot that was restored")
	t.check("the restored volume without its snapshot", restored.use(), "old")
	restored.rest()
	t.ok(v.remove(), "delete a volume that has a snapshot")
	late := second.restore()
	t.check("restored when the volume was gone", late.use(), "old")
	third := t.snapshot(restored)
	t.ok(restored.remove(), "delete the restored volume")
	t.ok(second.delete(), "delete the second snapshot")
	t.check("a snapshot of a restored volume that is gone", third.restore().use(), "old")
	if t.has(listSnapshots) {
		if listed := t.listedSnapshots(&csi.ListSnapshotsRequest{SourceVolumeId: v.id}); len(listed) != 0 {
			t.Errorf("of a volume without snapshots there are %v", listed)
		}
	}
}

func parallelSnapshots(t *T) {
	v := t.create("parallel")
	t.write(v.use(), "old")
	v.rest()
	request := t.snapshotRequest(v.id)
	ids := make([]string, 12)
	t.okOrAborted("create", together(len(ids), func(i int) error {
		reply, err := call(t.controller.CreateSnapshot, request)
		ids[i] = reply.GetSnapshot().GetSnapshotId()
		return err
	}))
	s := t.snapshotFrom(request)
	for _, id := range ids {
		if id != "" && id != s.id {
			t.Errorf("one name made the snapshots %s and %s", s.id, id)
		}
	}
	// Some end it, others begin with it, and some use its volume.
	restores := make([]*csi.CreateVolumeRequest, 4)
	for i := range restores {
		restores[i] = t.copyRequest(fromSnapshot(s.id), v.size)
	}
	volumes := make([]*csi.Volume, len(restores))
	for _, err := range together(2*len(restores), func(i int) error {
		if i%2 == 1 {
			_, err := call(t.controller.DeleteSnapshot, &csi.DeleteSnapshotRequest{SnapshotId: s.id})
			return err
		}
		reply, err := call(t.controller.CreateVolume, restores[i/2])
		volumes[i/2] = reply.GetVolume()
		return err
	}) {
		t.code("restore while it is deleted", err, codes.OK, codes.Aborted, codes.NotFound)
	}
	for _, made := range volumes {
		if made != nil {
			t.check("restored while the snapshot was deleted", t.adopt(made).use(), "old")
		}
	}
	t.ok(s.delete(), "delete")
}

// listedSnapshots takes all pages of a list.
func (t *T) listedSnapshots(request *csi.ListSnapshotsRequest) []*csi.Snapshot {
	t.Helper()
	request = proto.CloneOf(request)
	var all []*csi.Snapshot
	for {
		reply := must(t, t.controller.ListSnapshots, request)
		if most := int(request.GetMaxEntries()); most > 0 && len(reply.GetEntries()) > most {
			t.Errorf("at most %d entries were asked for, and there are %d", most, len(reply.GetEntries()))
		}
		for _, entry := range reply.GetEntries() {
			all = append(all, entry.GetSnapshot())
		}
		request.StartingToken = reply.GetNextToken()
		if request.StartingToken == "" {
			return all
		}
		if len(reply.GetEntries()) == 0 {
			t.Fatalf("an empty page says that there is another one")
		}
	}
}

func idsOf(listed []*csi.Snapshot) []string {
	var ids []string
	for _, s := range listed {
		ids = append(ids, s.GetSnapshotId())
	}
	return ids
}

func snapshotPages(t *T) {
	one, two := t.create("one"), t.create("two")
	made := map[string]bool{}
	for range 4 {
		made[t.snapshot(one).id], made[t.snapshot(two).id] = true, true
	}
	all := idsOf(t.listedSnapshots(&csi.ListSnapshotsRequest{}))
	for id := range made {
		if count := len(slices.DeleteFunc(slices.Clone(all), func(other string) bool { return other != id })); count != 1 {
			t.Errorf("the snapshot %s is listed %d times", id, count)
		}
	}
	for size := int32(1); int(size) <= len(all)+1; size++ {
		if paged := idsOf(t.listedSnapshots(&csi.ListSnapshotsRequest{MaxEntries: size})); !slices.Equal(paged, all) {
			t.Errorf("in pages of %d there are %v, at once %v", size, paged, all)
		}
	}
	mine := idsOf(t.listedSnapshots(&csi.ListSnapshotsRequest{SourceVolumeId: one.id}))
	for size := int32(1); size <= 5; size++ {
		paged := idsOf(t.listedSnapshots(&csi.ListSnapshotsRequest{SourceVolumeId: one.id, MaxEntries: size}))
		if !slices.Equal(paged, mine) || len(mine) != 4 {
			t.Errorf("of one volume there are %v in pages of %d, at once %v", paged, size, mine)
		}
	}
	// The token outlives the snapshot that it leads to.
	first := must(t, t.controller.ListSnapshots, &csi.ListSnapshotsRequest{MaxEntries: 3})
	rest := len(all) - len(first.GetEntries())
	for _, entry := range first.GetEntries() {
		if made[entry.GetSnapshot().GetSnapshotId()] {
			must(t, t.controller.DeleteSnapshot, &csi.DeleteSnapshotRequest{SnapshotId: entry.GetSnapshot().GetSnapshotId()})
		}
	}
	next := t.listedSnapshots(&csi.ListSnapshotsRequest{StartingToken: first.GetNextToken()})
	if len(next) != rest {
		t.Errorf("after a page was deleted, the next ones have %d snapshots, not %d", len(next), rest)
	}
}

func snapshotLists(t *T) {
	one, two := t.create("one"), t.create("two")
	s, other := t.snapshot(one), t.snapshot(two)
	for about, list := range map[string]struct {
		request *csi.ListSnapshotsRequest
		want    []string
	}{
		"of one volume":              {&csi.ListSnapshotsRequest{SourceVolumeId: one.id}, []string{s.id}},
		"of the other volume":        {&csi.ListSnapshotsRequest{SourceVolumeId: two.id}, []string{other.id}},
		"one snapshot":               {&csi.ListSnapshotsRequest{SnapshotId: s.id}, []string{s.id}},
		"one snapshot of its volume": {&csi.ListSnapshotsRequest{SnapshotId: s.id, SourceVolumeId: one.id}, []string{s.id}},
		"one of another volume":      {&csi.ListSnapshotsRequest{SnapshotId: s.id, SourceVolumeId: two.id}, nil},
		"of an unknown volume":       {&csi.ListSnapshotsRequest{SourceVolumeId: one.id + "0"}, nil},
		"of no such volume":          {&csi.ListSnapshotsRequest{SourceVolumeId: "no-such-volume"}, nil},
		"an unknown snapshot":        {&csi.ListSnapshotsRequest{SnapshotId: s.id + "0"}, nil},
		"no such snapshot":           {&csi.ListSnapshotsRequest{SnapshotId: "no-such-snapshot"}, nil},
	} {
		if got := idsOf(t.listedSnapshots(list.request)); !slices.Equal(got, list.want) {
			t.Errorf("%s: listed are %v, not %v", about, got, list.want)
		}
	}
	for _, token := range []string{"none of yours", "-1", "0", "../x", "🚢"} {
		refused(t, fmt.Sprintf("the token %q", token), t.controller.ListSnapshots,
			&csi.ListSnapshotsRequest{StartingToken: token}, codes.Aborted)
	}
	refused(t, "a negative count", t.controller.ListSnapshots, &csi.ListSnapshotsRequest{MaxEntries: -1}, codes.InvalidArgument)
}

func singleSnapshot(t *T) {
	v := t.create("single")
	s := t.snapshot(v)
	listed := t.listedSnapshots(&csi.ListSnapshotsRequest{SnapshotId: s.id})
	single := must(t, t.controller.GetSnapshot, &csi.GetSnapshotRequest{SnapshotId: s.id}).GetSnapshot()
	if len(listed) != 1 || !proto.Equal(listed[0], single) {
		t.Errorf("listed as %v, but answered as %v", listed, single)
	}
	refused(t, "an unknown snapshot", t.controller.GetSnapshot, &csi.GetSnapshotRequest{SnapshotId: s.id + "0"}, codes.NotFound)
	refused(t, "no snapshot", t.controller.GetSnapshot, &csi.GetSnapshotRequest{}, codes.InvalidArgument)
	refused(t, "a volume", t.controller.GetSnapshot, &csi.GetSnapshotRequest{SnapshotId: v.id}, codes.NotFound)
	t.ok(s.delete(), "delete")
	refused(t, "a deleted snapshot", t.controller.GetSnapshot, &csi.GetSnapshotRequest{SnapshotId: s.id}, codes.NotFound)
}

func snapshotTopology(t *T) {
	v := t.create("topology")
	here := t.suite.node.GetAccessibleTopology()
	for about, requirement := range map[string]*csi.TopologyRequirement{
		"required here":              {Requisite: []*csi.Topology{here}},
		"required here or elsewhere": {Requisite: []*csi.Topology{elsewhere(here), here}},
		"preferred here":             {Preferred: []*csi.Topology{here}},
	} {
		request := t.snapshotRequest(v.id)
		request.AccessibilityRequirements = requirement
		s := t.snapshotFrom(request)
		if t.has(getSnapshot) {
			s.made = must(t, t.controller.GetSnapshot, &csi.GetSnapshotRequest{SnapshotId: s.id}).GetSnapshot()
		}
		reachable := slices.ContainsFunc(s.made.GetAccessibleTopology(), func(term *csi.Topology) bool {
			return covers(term, here.GetSegments())
		})
		if !reachable {
			t.Errorf("%s: this node is not among %v", about, s.made.GetAccessibleTopology())
		}
		for _, term := range s.made.GetAccessibleTopology() {
			checkSegments(t, term)
		}
	}
	request := t.snapshotRequest(v.id)
	request.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: []*csi.Topology{elsewhere(here)}}
	refused(t, "required elsewhere", t.controller.CreateSnapshot, request, codes.ResourceExhausted)
}

// snapshotOfGrown takes snapshots of a volume before and after it has grown.
func snapshotOfGrown(t *T) {
	v := t.create("grown")
	t.write(v.use(), "small")
	v.rest()
	small := t.snapshot(v)
	v.grow(v.size * 3 / 2)
	// Not even the filesystem has grown yet.
	between := t.snapshot(v)
	target := v.use()
	t.write(target, "large")
	v.rest()
	large := t.snapshot(v)
	for about, c := range map[string]struct {
		s    *snapshot
		size int64
		seed string
	}{
		"before it has grown":         {small, t.settings.VolumeSize, "small"},
		"between volume and contents": {between, v.size, "small"},
		"after it has grown":          {large, v.size, "large"},
	} {
		if got := c.s.made.GetSizeBytes(); got != 0 && got < c.size {
			t.Errorf("%s: the snapshot has %d bytes, not %d", about, got, c.size)
		}
		restored := c.s.restore()
		path := restored.stage()
		place := restored.publish(path, false)
		t.check(about, place, c.seed)
		t.checkShown(about, restored, place, path)
	}
	request := t.copyRequest(fromSnapshot(large.id), 0)
	request.CapacityRange = &csi.CapacityRange{LimitBytes: t.settings.VolumeSize}
	_, err := t.tryCreate(request)
	t.code("restore the large one into a small one", err, codes.OutOfRange)
}
