package contract

import (
	"errors"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// writerSpecs copy volumes while a database writes to them. Where used volumes cannot be copied, it
// is stopped for each copy, as the driver's message asks for.
var writerSpecs = []Spec{
	{Name: "writers: a database runs across many snapshots, and each is one moment of it", needs: []string{snapshots}, run: databaseSnapshots},
	{Name: "writers: a database is cloned while it runs", needs: []string{clones}, run: databaseClones},
	{Name: "writers: snapshots of a database outlive kills of the driver", needs: []string{snapshots, mayKill}, run: databaseKills},
}

// running is a database in a volume.
type running struct {
	t *T
	v *volume
	*database
}

func (t *T) runDatabase() *running {
	t.Helper()
	r := &running{t: t, v: t.create("database")}
	r.database = t.startDatabase(r.v.use(), 0)
	return r
}

// copying lets the volume be copied, and says between which changes that was.
func (r *running) copying(work func()) (acknowledged, started int64) {
	r.t.Helper()
	if !r.t.has(InstantCopies) {
		r.t.ok(r.finish(), "stop the database")
		r.v.rest()
	}
	acknowledged = r.acknowledged.Load()
	work()
	started = r.started.Load()
	if !r.t.has(InstantCopies) {
		stall := r.stall.Load()
		r.database = r.t.startDatabase(r.v.use(), started)
		r.stall.Store(stall)
	}
	return acknowledged, started
}

// rounds are how many copies are taken: many where the writer goes on meanwhile.
func (t *T) rounds() int {
	if t.has(InstantCopies) {
		return t.settings.Snapshots
	}
	return max(3, t.settings.Snapshots/20)
}

func databaseSnapshots(t *T) {
	r := t.runDatabase()
	count := t.rounds()
	longest := time.Duration(0)
	for range count {
		var s *snapshot
		acknowledged, started := r.copying(func() {
			begin := time.Now()
			s = t.snapshot(r.v)
			longest = max(longest, time.Since(begin))
		})
		restored := s.restore()
		t.checkDatabase(restored.use(), acknowledged, started)
		t.ok(restored.remove(), "remove the restored volume")
	}
	t.ok(r.finish(), "write")
	t.note("%d snapshots beside a writer of %d flushed changes: the longest call took %s", count, r.acknowledged.Load(), round(longest))
	if t.has(InstantCopies) {
		t.note("the writer's longest stall was %s", round(time.Duration(r.stall.Load())))
	}
}

// round leaves what people read of a time.
func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

func databaseClones(t *T) {
	r := t.runDatabase()
	for range max(1, t.rounds()/10) {
		var cloned *volume
		acknowledged, started := r.copying(func() { cloned = r.v.clone() })
		t.checkDatabase(cloned.use(), acknowledged, started)
		t.ok(cloned.remove(), "remove the clone")
	}
	t.ok(r.finish(), "write")
}

// databaseKills kills the driver while it takes snapshots: each call that is repeated until it ends
// well has made one that is whole, and the writer is never held up for good.
func databaseKills(t *T) {
	r := t.runDatabase()
	for range max(1, t.rounds()/10) {
		request := t.snapshotRequest(r.v.id)
		var made *csi.CreateSnapshotResponse
		acknowledged, started := r.copying(func() {
			killed := make(chan error, 1)
			go func() { killed <- t.kill() }()
			var err error
			made, err = insist(t.controller.CreateSnapshot, request)
			t.ok(err, "take a snapshot")
			t.ok(<-killed, "kill the driver")
			t.ok(t.waitReady(), "wait for the driver")
		})
		s := t.snapshotFrom(request)
		if id := made.GetSnapshot().GetSnapshotId(); s.id != id {
			t.Errorf("before the kill the name stood for %s, after it for %s", id, s.id)
		}
		restored := s.restore()
		t.checkDatabase(restored.use(), acknowledged, started)
		t.ok(restored.remove(), "remove the restored volume")
		before := r.acknowledged.Load()
		t.eventually("the writer goes on", func() error {
			if t.has(InstantCopies) && r.acknowledged.Load() == before {
				return errors.New("nothing was acknowledged since")
			}
			return nil
		})
	}
	t.ok(r.finish(), "write")
}
