package contract

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

var groupSpecs = []Spec{
	{Name: "groups: they say what they are, and so do their members", needs: []string{groups}, run: groupFields},
	{Name: "groups: members are of one moment", needs: []string{groups}, run: groupMoment},
	{Name: "groups: what cannot be of one moment is refused, and leaves nothing", needs: []string{groups, staging}, run: groupRefused},
	{Name: "groups: a member is not deleted alone", needs: []string{groups, snapshots}, run: groupMembers},
	{Name: "groups: lists of members have to be right", needs: []string{groups}, run: groupWrongLists},
	{Name: "groups: a name stands for one set of volumes", needs: []string{groups}, run: groupNames},
	{Name: "groups: wrong requests are refused", needs: []string{groups}, run: groupWrongRequests},
	{Name: "groups: volumes and groups are deleted in any order", needs: []string{groups, IndependentCopies}, run: groupAnyOrder},
	{Name: "groups: parallel calls make one, whole or not at all", needs: []string{groups}, run: groupParallel},
}

// group is a group snapshot of the driver.
type group struct {
	t    *T
	id   string
	made *csi.VolumeGroupSnapshot
}

func (t *T) groupRequest(sources ...*volume) *csi.CreateVolumeGroupSnapshotRequest {
	request := &csi.CreateVolumeGroupSnapshotRequest{Name: t.driver.name("group")}
	for _, source := range sources {
		request.SourceVolumeIds = append(request.SourceVolumeIds, source.id)
	}
	return request
}

// group takes a group snapshot, which is gone when the spec has ended.
func (t *T) group(sources ...*volume) *group {
	t.Helper()
	g, err := t.tryGroup(t.groupRequest(sources...))
	t.ok(err, "take a group snapshot")
	return g
}

func (t *T) tryGroup(request *csi.CreateVolumeGroupSnapshotRequest) (*group, error) {
	reply, err := call(t.groups.CreateVolumeGroupSnapshot, request)
	if err != nil {
		return nil, err
	}
	g := &group{t: t, id: reply.GetGroupSnapshot().GetGroupSnapshotId(), made: reply.GetGroupSnapshot()}
	t.Cleanup(func() {
		if err := g.delete(); err != nil {
			t.Errorf("clean up group %s: %v", g.id, err)
		}
	})
	return g, nil
}

func (g *group) members() []string { return idsOf(g.made.GetSnapshots()) }

func (g *group) delete() error {
	_, err := insist(g.t.groups.DeleteVolumeGroupSnapshot, &csi.DeleteVolumeGroupSnapshotRequest{
		GroupSnapshotId: g.id, SnapshotIds: g.members(),
	})
	return err
}

// of is the member that was taken of a volume.
func (g *group) of(v *volume) *snapshot {
	g.t.Helper()
	for _, made := range g.made.GetSnapshots() {
		if made.GetSourceVolumeId() == v.id {
			return &snapshot{t: g.t, id: made.GetSnapshotId(), made: made}
		}
	}
	g.t.Fatalf("the group has no member of %s: %v", v.id, g.made)
	return nil
}

func groupFields(t *T) {
	one, two := t.create("one"), t.create("two")
	before := time.Now().Truncate(time.Second)
	g := t.group(one, two)
	if g.id == "" || len(g.made.GetSnapshots()) != 2 || !g.made.GetReadyToUse() {
		t.Errorf("of two volumes there is %v", g.made)
	}
	if taken := g.made.GetCreationTime().AsTime(); taken.Before(before) || taken.After(time.Now()) {
		t.Errorf("the group was taken at %s, but after %s", taken, before)
	}
	for _, v := range []*volume{one, two} {
		member := g.of(v).made
		if member.GetGroupSnapshotId() != g.id || !member.GetReadyToUse() {
			t.Errorf("a member of %s is %v", g.id, member)
		}
		if got := member.GetSizeBytes(); got != 0 && got != v.size {
			t.Errorf("the member has %d bytes, the volume %d", got, v.size)
		}
		if !t.has(listSnapshots) {
			continue
		}
		listed := t.listedSnapshots(&csi.ListSnapshotsRequest{SourceVolumeId: v.id})
		if len(listed) != 1 || !proto.Equal(listed[0], member) {
			t.Errorf("the member %v is listed as %v", member, listed)
		}
	}
	got := must(t, t.groups.GetVolumeGroupSnapshot, &csi.GetVolumeGroupSnapshotRequest{
		GroupSnapshotId: g.id, SnapshotIds: g.members(),
	}).GetGroupSnapshot()
	if !proto.Equal(got, g.made) {
		t.Errorf("made as %v, but answered as %v", g.made, got)
	}
}

// turns writes a number into one volume and then into the other, again and again: at every moment
// the second one has the number of the first one, or that before it.
type turns struct {
	files [2]*os.File
	base  int64
	done  atomic.Int64
}

func openTurns(targets [2]string, block bool, flags int) (*turns, error) {
	w := &turns{}
	for i, target := range targets {
		if block {
			w.base, flags = logAt, flags&^os.O_CREATE
		} else {
			target = filepath.Join(target, "turns")
		}
		file, err := os.OpenFile(target, flags, 0o600)
		if err != nil {
			return nil, errors.Join(err, w.close())
		}
		w.files[i] = file
	}
	return w, nil
}

func (w *turns) close() error {
	var all error
	for _, file := range w.files {
		if file != nil {
			all = errors.Join(all, file.Close())
		}
	}
	return all
}

// write writes until it is stopped. Two places take turns, so that one is whole at any time.
func (w *turns) write(first int64, stop <-chan struct{}) error {
	for n := first; ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		for _, file := range w.files {
			if _, err := file.WriteAt(contentOf(n), w.base+n%2*pageSize); err != nil {
				return err
			}
			if err := file.Sync(); err != nil {
				return err
			}
		}
		w.done.Store(n)
	}
}

// read returns the numbers that both volumes have.
func (w *turns) read() ([2]int64, error) {
	var numbers [2]int64
	for i, file := range w.files {
		places, err := readPages(file, w.base, 2)
		if err != nil {
			return numbers, err
		}
		for place, data := range places {
			n := int64(binary.LittleEndian.Uint64(data))
			if n > numbers[i] && n%2 == int64(place) && slices.Equal(data, contentOf(n)) {
				numbers[i] = n
			}
		}
	}
	return numbers, nil
}

// startTurns writes into two used volumes until the function that it returns is called.
func (t *T) startTurns(targets [2]string, first int64) (*turns, func() error) {
	t.Helper()
	w, err := openTurns(targets, t.settings.Block, os.O_RDWR|os.O_CREATE)
	t.ok(err, "open the files")
	for _, file := range w.files {
		if first == 1 {
			_, err = file.WriteAt(make([]byte, 2*pageSize), w.base)
			t.ok(err, "make the file")
		}
		t.ok(file.Sync(), "flush the file")
	}
	for _, target := range targets {
		t.ok(t.flush(target), "flush")
	}
	w.done.Store(first - 1)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- w.write(first, stop) }()
	finish := sync.OnceValue(func() error {
		close(stop)
		return errors.Join(<-ended, w.close())
	})
	t.Cleanup(func() { _ = finish() })
	return w, finish
}

func groupMoment(t *T) {
	one, two := t.create("one"), t.create("two")
	targets := [2]string{one.use(), two.use()}
	w, finish := t.startTurns(targets, 1)
	for range max(1, t.rounds()/10) {
		if !t.has(InstantGroups) {
			t.ok(finish(), "write in turns")
			one.rest()
			two.rest()
		}
		before := w.done.Load()
		g := t.group(one, two)
		copies := [2]*volume{g.of(one).restore(), g.of(two).restore()}
		read, err := openTurns([2]string{copies[0].use(), copies[1].use()}, t.settings.Block, os.O_RDONLY)
		t.ok(err, "open the copies")
		numbers, err := read.read()
		t.ok(errors.Join(err, read.close()), "read the copies")
		if numbers[1] != numbers[0] && numbers[1] != numbers[0]-1 {
			t.Errorf("the copies have %d and %d, which was at no moment", numbers[0], numbers[1])
		}
		if numbers[1] < before {
			t.Errorf("the copies have %d and %d, but %d was in both before", numbers[0], numbers[1], before)
		}
		t.ok(errors.Join(copies[0].remove(), copies[1].remove()), "remove the copies")
		if !t.has(InstantGroups) {
			w, finish = t.startTurns([2]string{one.use(), two.use()}, before+1)
		}
	}
	t.ok(finish(), "write in turns")
}

// groupRefused asks for groups of used volumes, where they show no single moment.
func groupRefused(t *T) {
	one, two, other := t.create("one"), t.create("two"), t.create("three")
	t.write(one.use(), "one")
	t.write(two.use(), "two")
	request := t.groupRequest(one, two, other)
	g, err := t.tryGroup(request)
	if t.has(InstantGroups) {
		t.ok(err, "take a group of used volumes")
		t.check("a used member", g.of(two).restore().use(), "two")
		return
	}
	t.code("a group of used volumes", err, codes.FailedPrecondition)
	for _, v := range []*volume{one, two, other} {
		if t.has(listSnapshots) {
			if left := t.listedSnapshots(&csi.ListSnapshotsRequest{SourceVolumeId: v.id}); len(left) > 0 {
				t.Errorf("a refused group has left %v", left)
			}
		}
	}
	one.rest()
	_, err = t.tryGroup(request)
	t.code("a group with one used volume", err, codes.FailedPrecondition)
	two.rest()
	g, err = t.tryGroup(request)
	t.ok(err, "take a group of unused volumes")
	t.check("an unused member", g.of(one).restore().use(), "one")
	t.check("another unused member", g.of(two).restore().use(), "two")
}

func groupMembers(t *T) {
	v := t.create("member")
	t.write(v.use(), "old")
	v.rest()
	g := t.group(v)
	refused(t, "delete a member", t.controller.DeleteSnapshot,
		&csi.DeleteSnapshotRequest{SnapshotId: g.members()[0]}, codes.InvalidArgument)
	t.check("the member that was not deleted", g.of(v).restore().use(), "old")
	t.ok(g.delete(), "delete the group")
	must(t, t.controller.DeleteSnapshot, &csi.DeleteSnapshotRequest{SnapshotId: g.members()[0]})
	if t.has(getSnapshot) {
		refused(t, "a member of a deleted group", t.controller.GetSnapshot,
			&csi.GetSnapshotRequest{SnapshotId: g.members()[0]}, codes.NotFound)
	}
	for range repeats {
		t.ok(g.delete(), "delete the group again")
	}
	refused(t, "a deleted group", t.groups.GetVolumeGroupSnapshot,
		&csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: g.id, SnapshotIds: g.members()}, codes.NotFound)
}

func groupWrongLists(t *T) {
	one, two := t.create("one"), t.create("two")
	g, other := t.group(one, two), t.group(one)
	members, foreign := g.members(), other.members()[0]
	for about, list := range map[string][]string{
		"one of two":           members[:1],
		"one too many":         append(slices.Clone(members), foreign),
		"one of another group": {members[0], foreign},
		"unknown":              {members[0], "no-such-snapshot"},
	} {
		refused(t, "get with "+about, t.groups.GetVolumeGroupSnapshot,
			&csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: g.id, SnapshotIds: list}, codes.InvalidArgument)
		refused(t, "delete with "+about, t.groups.DeleteVolumeGroupSnapshot,
			&csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: g.id, SnapshotIds: list}, codes.InvalidArgument)
	}
	slices.Reverse(members)
	must(t, t.groups.GetVolumeGroupSnapshot, &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: g.id, SnapshotIds: members})
	refused(t, "get no group", t.groups.GetVolumeGroupSnapshot, &csi.GetVolumeGroupSnapshotRequest{}, codes.InvalidArgument)
	refused(t, "delete no group", t.groups.DeleteVolumeGroupSnapshot, &csi.DeleteVolumeGroupSnapshotRequest{}, codes.InvalidArgument)
	must(t, t.groups.DeleteVolumeGroupSnapshot, &csi.DeleteVolumeGroupSnapshotRequest{
		GroupSnapshotId: "no-such-group", SnapshotIds: members,
	})
}

func groupNames(t *T) {
	one, two := t.create("one"), t.create("two")
	request := t.groupRequest(one, two)
	g, err := t.tryGroup(request)
	t.ok(err, "take a group")
	for range repeats {
		slices.Reverse(request.SourceVolumeIds)
		again := must(t, t.groups.CreateVolumeGroupSnapshot, request).GetGroupSnapshot()
		if again.GetGroupSnapshotId() != g.id || !slices.Equal(slices.Sorted(slices.Values(idsOf(again.GetSnapshots()))), slices.Sorted(slices.Values(g.members()))) {
			t.Errorf("the same again is %v, before it was %v", again, g.made)
		}
	}
	request.SourceVolumeIds = request.SourceVolumeIds[:1]
	refused(t, "the same name for one of them", t.groups.CreateVolumeGroupSnapshot, request, codes.AlreadyExists)
	// The name is free for a snapshot, and for a group when this one is gone.
	if t.has(snapshots) {
		t.snapshotFrom(&csi.CreateSnapshotRequest{SourceVolumeId: one.id, Name: request.GetName()})
	}
	t.ok(g.delete(), "delete")
	again, err := t.tryGroup(request)
	t.ok(err, "take another group of that name")
	if again.id != g.id {
		t.ok(g.delete(), "delete the first one late")
	}
	t.ok(again.of(&volume{id: request.GetSourceVolumeIds()[0]}).restore().remove(), "restore of the second one")
}

func groupWrongRequests(t *T) {
	v := t.create("wrong")
	for about, wrong := range map[string]struct {
		request *csi.CreateVolumeGroupSnapshotRequest
		code    codes.Code
	}{
		"no name":             {&csi.CreateVolumeGroupSnapshotRequest{SourceVolumeIds: []string{v.id}}, codes.InvalidArgument},
		"no volumes":          {&csi.CreateVolumeGroupSnapshotRequest{Name: "x"}, codes.InvalidArgument},
		"a volume without id": {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: []string{v.id, ""}}, codes.InvalidArgument},
		"an unknown volume":   {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: []string{v.id, v.id + "0"}}, codes.NotFound},
		"unknown settings":    {&csi.CreateVolumeGroupSnapshotRequest{Name: "x", SourceVolumeIds: []string{v.id}, Parameters: map[string]string{"no-such-parameter": "x"}}, codes.InvalidArgument},
	} {
		refused(t, about, t.groups.CreateVolumeGroupSnapshot, wrong.request, wrong.code)
	}
	if t.has(listSnapshots) {
		if left := t.listedSnapshots(&csi.ListSnapshotsRequest{SourceVolumeId: v.id}); len(left) > 0 {
			t.Errorf("refused groups have left %v", left)
		}
	}
}

func groupAnyOrder(t *T) {
	one, two := t.create("one"), t.create("two")
	t.write(one.use(), "one")
	t.write(two.use(), "two")
	one.rest()
	two.rest()
	g := t.group(one, two)
	t.ok(one.remove(), "delete a source")
	first := g.of(one).restore()
	t.check("of a source that is gone", first.use(), "one")
	t.ok(two.remove(), "delete the other source")
	second := g.of(two).restore()
	t.ok(g.delete(), "delete the group")
	t.check("of a group that is gone", second.use(), "two")
	t.check("of a group that is gone", first.inUse(first.targets[0]), "one")
}

func groupParallel(t *T) {
	one, two := t.create("one"), t.create("two")
	request := t.groupRequest(one, two)
	ids := make([]string, 10)
	t.okOrAborted("create", together(len(ids), func(i int) error {
		reply, err := call(t.groups.CreateVolumeGroupSnapshot, request)
		ids[i] = reply.GetGroupSnapshot().GetGroupSnapshotId()
		return err
	}))
	g, err := t.tryGroup(request)
	t.ok(err, "create")
	for _, id := range ids {
		if id != "" && id != g.id {
			t.Errorf("one name made the groups %s and %s", g.id, id)
		}
	}
	if t.has(listSnapshots) {
		if listed := t.listedSnapshots(&csi.ListSnapshotsRequest{SourceVolumeId: one.id}); len(listed) != 1 {
			t.Errorf("parallel calls made the members %v", listed)
		}
	}
	t.okOrAborted("delete", together(8, func(int) error {
		_, err := call(t.groups.DeleteVolumeGroupSnapshot, &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: g.id, SnapshotIds: g.members()})
		return err
	}))
}
