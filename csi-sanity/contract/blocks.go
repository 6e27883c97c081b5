package contract

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

var blockSpecs = []Spec{
	{Name: "blocks: an image is rebuilt from what is allocated and what has changed", needs: []string{metadata, ChangedBlocks}, run: rebuild},
	{Name: "blocks: empty, sparse and full images", needs: []string{metadata, ChangedBlocks, isBlock}, run: extremes},
	{Name: "blocks: an image is rebuilt after it has grown", needs: []string{metadata, ChangedBlocks, growth}, run: rebuildGrown},
	{Name: "blocks: a stream goes on from any offset, in messages of any length", needs: []string{metadata, ChangedBlocks}, run: anyOffset},
	{Name: "blocks: wrong requests are refused", needs: []string{metadata, ChangedBlocks}, run: wrongBlocks},
	{Name: "blocks: what has no blocks is refused", needs: []string{metadata, snapshots}, run: noBlocks},
}

// extent is a range of an image, from its first byte to the one behind its last.
type extent struct{ from, to int64 }

// stream is one answer of the service, both kinds of which look alike.
type stream struct {
	capacity int64
	extents  []extent
	// longest is the most extents in one message.
	longest int
}

// message is what both kinds of messages have.
type message interface {
	GetBlockMetadataType() csi.BlockMetadataType
	GetVolumeCapacityBytes() int64
	GetBlockMetadata() []*csi.BlockMetadata
}

// receive takes a whole stream and holds it to the rules of all streams.
func receive(from int64, next func() (message, error)) (*stream, error) {
	s := &stream{}
	var kind csi.BlockMetadataType
	behind := int64(0)
	for {
		m, err := next()
		if err == io.EOF {
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		if kind == csi.BlockMetadataType_UNKNOWN {
			kind, s.capacity = m.GetBlockMetadataType(), m.GetVolumeCapacityBytes()
		}
		if m.GetBlockMetadataType() != kind || kind == csi.BlockMetadataType_UNKNOWN || m.GetVolumeCapacityBytes() != s.capacity {
			return nil, fmt.Errorf("a message has type %v and capacity %d, one before it %v and %d",
				m.GetBlockMetadataType(), m.GetVolumeCapacityBytes(), kind, s.capacity)
		}
		s.longest = max(s.longest, len(m.GetBlockMetadata()))
		for _, tuple := range m.GetBlockMetadata() {
			e := extent{tuple.GetByteOffset(), tuple.GetByteOffset() + tuple.GetSizeBytes()}
			switch {
			case tuple.GetSizeBytes() <= 0 || e.from < behind || e.to > s.capacity:
				return nil, fmt.Errorf("the extent %+v comes after one that ends at %d, of %d bytes", e, behind, s.capacity)
			case e.to <= from:
				return nil, fmt.Errorf("the extent %+v ends before the offset %d", e, from)
			case kind == csi.BlockMetadataType_FIXED_LENGTH && len(s.extents) > 0 && e.to-e.from != s.extents[0].to-s.extents[0].from:
				return nil, fmt.Errorf("the extent %+v is not as long as those before it", e)
			}
			behind = e.to
			s.extents = append(s.extents, e)
		}
	}
}

// allocated asks what is allocated in a snapshot, or with a base what has changed since then.
func (t *T) blocks(base, target *snapshot, from int64, most int32) (*stream, error) {
	ctx, cancel := t.deadline()
	defer cancel()
	var next func() (message, error)
	if base == nil {
		opened, err := t.metadata.GetMetadataAllocated(ctx, &csi.GetMetadataAllocatedRequest{
			SnapshotId: target.id, StartingOffset: from, MaxResults: most,
		})
		if err != nil {
			return nil, err
		}
		next = func() (message, error) { return opened.Recv() }
	} else {
		opened, err := t.metadata.GetMetadataDelta(ctx, &csi.GetMetadataDeltaRequest{
			BaseSnapshotId: base.id, TargetSnapshotId: target.id, StartingOffset: from, MaxResults: most,
		})
		if err != nil {
			return nil, err
		}
		next = func() (message, error) { return opened.Recv() }
	}
	s, err := receive(from, next)
	if err == nil && most > 0 && s.longest > int(most) {
		return nil, fmt.Errorf("a message has %d extents, at most %d were asked for", s.longest, most)
	}
	return s, err
}

// image is the contents of a snapshot, as a device that a volume made of it shows.
func (t *T) image(s *snapshot) *os.File {
	t.Helper()
	request := t.copyRequest(fromSnapshot(s.id), s.made.GetSizeBytes())
	raw := *t.settings
	raw.Block = true
	// One reader is enough, and a volume for writing could be made otherwise.
	request.VolumeCapabilities = []*csi.VolumeCapability{raw.capability(t.ordinary().GetAccessMode().GetMode())}
	v := t.createFrom(request)
	device, err := os.Open(v.publish(v.stage(), true))
	t.ok(err, "open the image")
	t.Cleanup(func() { _ = device.Close() })
	return device
}

// rebuilds makes an image from an older one and extents of the newer one, and compares it with the
// newer one, byte for byte from an offset on.
func rebuilds(older, newer *os.File, s *stream, begin int64) error {
	size, err := newer.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if s.capacity != 0 && s.capacity != size {
		return fmt.Errorf("the stream tells of %d bytes, the image has %d", s.capacity, size)
	}
	const window = 1 << 20
	rest := s.extents
	for at := begin; at < size; at += window {
		length := min(window, size-at)
		built, want := make([]byte, length), make([]byte, length)
		if older != nil {
			// Behind its end an older image is empty.
			if _, err := older.ReadAt(built, at); err != nil && err != io.EOF {
				return err
			}
		}
		if _, err := newer.ReadAt(want, at); err != nil && err != io.EOF {
			return err
		}
		for len(rest) > 0 && rest[0].from < at+length {
			from, to := max(rest[0].from, at), min(rest[0].to, at+length)
			if _, err := newer.ReadAt(built[from-at:to-at], from); err != nil && err != io.EOF {
				return err
			}
			if rest[0].to > at+length {
				break
			}
			rest = rest[1:]
		}
		if !bytes.Equal(built, want) {
			return fmt.Errorf("the image that was rebuilt differs between %d and %d", at, at+length)
		}
	}
	return nil
}

// checkRebuild asks for blocks and rebuilds the image with them.
func (t *T) checkRebuild(about string, base, target *snapshot, older, newer *os.File) *stream {
	t.Helper()
	s, err := t.blocks(base, target, 0, 0)
	t.ok(err, "%s", about)
	if err := rebuilds(older, newer, s, 0); err != nil {
		t.Errorf("%s: %v", about, err)
	}
	return s
}

// change writes something new to a volume, takes some of it back, and gives blocks back.
func (t *T) change(v *volume, round int) {
	t.Helper()
	target := v.use()
	if !t.settings.Block {
		t.write(target, fmt.Sprint("round ", round))
		t.ok(os.RemoveAll(target+fmt.Sprint("/round ", round-2)), "remove an older round")
		v.rest()
		return
	}
	device, err := os.OpenFile(target, os.O_RDWR, 0)
	t.ok(err, "open the device")
	random := bytesOf(fmt.Sprint("change ", round), 1<<16)
	for i, at := range []int64{0, 4096, 65536 + 512, 1 << 20, v.size / 2, v.size - 4096} {
		// Of odd lengths, over borders of blocks; some of it as it was.
		if i%3 != round%3 {
			_, err = device.WriteAt(random[:4096+512*i], min(at, v.size-8192))
			t.ok(err, "write")
		}
	}
	zeros := make([]byte, 1<<16)
	_, err = device.WriteAt(zeros, 2<<20)
	t.ok(errors.Join(err, device.Sync(), discard(device, int64(round)<<20, 128<<10), device.Close()), "write")
	v.rest()
}

func rebuild(t *T) {
	v := t.create("rebuilt")
	var taken []*snapshot
	var images []*os.File
	rounds := 2
	if t.settings.Block {
		// Holes come and go from the third one on.
		rounds = 4
	}
	for round := range rounds {
		t.change(v, round)
		taken = append(taken, t.snapshot(v))
		images = append(images, t.image(taken[round]))
		t.checkRebuild(fmt.Sprintf("allocated in %d", round), nil, taken[round], nil, images[round])
	}
	for base := range taken {
		for target := range taken {
			about := fmt.Sprintf("from %d to %d", base, target)
			if base > target {
				// The contract has the target after the base; a driver may refuse the rest.
				s, err := t.blocks(taken[base], taken[target], 0, 0)
				t.code(about, err, codes.OK, codes.InvalidArgument)
				if err == nil {
					t.ok(rebuilds(images[base], images[target], s, 0), "%s", about)
				}
				continue
			}
			s := t.checkRebuild(about, taken[base], taken[target], images[base], images[target])
			if base == target && len(s.extents) > 0 {
				t.Errorf("between a snapshot and itself there are %d changes", len(s.extents))
			}
		}
	}
}

// extremes looks at images of which nothing, a little or everything was written.
func extremes(t *T) {
	v := t.create("extremes")
	empty := t.snapshot(v)
	s := t.checkRebuild("an empty image", nil, empty, nil, t.image(empty))
	if len(s.extents) > 0 {
		t.note("of an empty image %d extents are told", len(s.extents))
	}
	device, err := os.OpenFile(v.use(), os.O_RDWR, 0)
	t.ok(err, "open the device")
	_, err = device.WriteAt(bytesOf("one", 4096), v.size/2)
	t.ok(errors.Join(err, device.Sync(), device.Close()), "write one block")
	v.rest()
	sparse := t.snapshot(v)
	t.checkRebuild("a sparse image", nil, sparse, nil, t.image(sparse))
	t.checkRebuild("a sparse image since it was empty", empty, sparse, t.image(empty), t.image(sparse))
	device, err = os.OpenFile(v.use(), os.O_RDWR, 0)
	t.ok(err, "open the device")
	data := bytesOf("full", 1<<20)
	for at := int64(0); at < v.size; at += int64(len(data)) {
		_, err = device.WriteAt(data, at)
		t.ok(err, "fill the device")
	}
	t.ok(errors.Join(device.Sync(), device.Close()), "fill the device")
	v.rest()
	full := t.snapshot(v)
	s = t.checkRebuild("a full image", nil, full, nil, t.image(full))
	told := int64(0)
	for _, e := range s.extents {
		told += e.to - e.from
	}
	if told != v.size {
		t.Errorf("of a full image of %d bytes %d are told", v.size, told)
	}
	t.checkRebuild("a full image since it was sparse", sparse, full, t.image(sparse), t.image(full))
}

func rebuildGrown(t *T) {
	v := t.create("grown")
	t.change(v, 0)
	small := t.snapshot(v)
	v.grow(v.size * 3 / 2)
	between := t.snapshot(v)
	t.change(v, 1)
	large := t.snapshot(v)
	images := map[*snapshot]*os.File{small: t.image(small), between: t.image(between), large: t.image(large)}
	for about, pair := range map[string][2]*snapshot{
		"grown alone": {small, between}, "grown and written": {small, large}, "written after it has grown": {between, large},
	} {
		t.checkRebuild(about, pair[0], pair[1], images[pair[0]], images[pair[1]])
	}
	t.checkRebuild("allocated after it has grown", nil, large, nil, images[large])
}

// anyOffset asks again from inside and between the extents of a whole answer.
func anyOffset(t *T) {
	v := t.create("offsets")
	t.change(v, 0)
	base := t.snapshot(v)
	t.change(v, 1)
	target := t.snapshot(v)
	newer := t.image(target)
	for _, kind := range []struct {
		about string
		base  *snapshot
		older *os.File
	}{{"allocated", nil, nil}, {"changed", base, t.image(base)}} {
		whole, err := t.blocks(kind.base, target, 0, 0)
		t.ok(err, "%s", kind.about)
		if len(whole.extents) == 0 {
			t.Fatalf("%s: nothing is told of a volume that was written", kind.about)
		}
		for _, most := range []int32{1, 2, 3, 1000} {
			s, err := t.blocks(kind.base, target, 0, most)
			t.ok(err, "%s, %d at once", kind.about, most)
			if want, got := whole.joined(0), s.joined(0); !slices.Equal(want, got) {
				t.Errorf("%s, %d at once: told is %v, otherwise %v", kind.about, most, got, want)
			}
		}
		offsets := []int64{1, 511, 4096, v.size / 2, v.size - 1, v.size}
		for _, e := range whole.extents[:min(len(whole.extents), 6)] {
			offsets = append(offsets, e.from, e.from+1, (e.from+e.to)/2, e.to-1, e.to)
		}
		for _, offset := range offsets {
			s, err := t.blocks(kind.base, target, offset, 0)
			t.ok(err, "%s, from %d", kind.about, offset)
			if slices.Equal(whole.joined(offset), s.joined(offset)) {
				continue
			}
			// It may tell less of what is in the middle of a block, as long as that is enough.
			t.ok(rebuilds(kind.older, newer, s, offset), "%s, from %d", kind.about, offset)
		}
	}
}

// joined is which bytes an answer tells from an offset on, however it cuts them.
func (s *stream) joined(from int64) []extent {
	var all []extent
	for _, e := range s.extents {
		e.from = max(e.from, from)
		switch last := len(all) - 1; {
		case e.from >= e.to:
		case last >= 0 && all[last].to == e.from:
			all[last].to = e.to
		default:
			all = append(all, e)
		}
	}
	return all
}

func wrongBlocks(t *T) {
	v, other := t.create("wrong"), t.create("another")
	s, foreign := t.snapshot(v), t.snapshot(other)
	unknown, none := &snapshot{id: s.id + "0"}, &snapshot{}
	for about, wrong := range map[string]struct {
		base, target *snapshot
		from         int64
		most         int32
		code         codes.Code
	}{
		"no snapshot":                    {nil, none, 0, 0, codes.InvalidArgument},
		"an unknown snapshot":            {nil, unknown, 0, 0, codes.NotFound},
		"a volume":                       {nil, &snapshot{id: v.id}, 0, 0, codes.NotFound},
		"a negative offset":              {nil, s, -1, 0, codes.OutOfRange},
		"an offset behind the end":       {nil, s, v.size + 1, 0, codes.OutOfRange},
		"a negative count":               {nil, s, 0, -1, codes.InvalidArgument},
		"no base":                        {none, s, 0, 0, codes.InvalidArgument},
		"no target":                      {s, none, 0, 0, codes.InvalidArgument},
		"an unknown base":                {unknown, s, 0, 0, codes.NotFound},
		"an unknown target":              {s, unknown, 0, 0, codes.NotFound},
		"snapshots of two volumes":       {foreign, s, 0, 0, codes.InvalidArgument},
		"changed, a negative offset":     {s, s, -1, 0, codes.OutOfRange},
		"changed, behind the end":        {s, s, v.size + 1, 0, codes.OutOfRange},
		"changed, with a negative count": {s, s, 0, -1, codes.InvalidArgument},
	} {
		_, err := t.blocks(wrong.base, wrong.target, wrong.from, wrong.most)
		t.code(about, err, wrong.code)
	}
	t.ok(s.delete(), "delete")
	_, err := t.blocks(nil, s, 0, 0)
	t.code("a deleted snapshot", err, codes.NotFound)
}

// noBlocks asks for the blocks of a directory.
func noBlocks(t *T) {
	s := t.snapshot(t.create("a directory"))
	_, err := t.blocks(nil, s, 0, 0)
	_, changed := t.blocks(s, s, 0, 0)
	if t.has(ChangedBlocks) {
		t.ok(errors.Join(err, changed), "ask for the blocks of a volume that has some")
		return
	}
	t.code("allocated blocks", err, codes.FailedPrecondition, codes.InvalidArgument)
	t.code("changed blocks", changed, codes.FailedPrecondition, codes.InvalidArgument)
}
