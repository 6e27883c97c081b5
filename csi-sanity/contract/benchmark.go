package contract

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is copied in a benchmark: an image of 1 GiB, of which 100 MiB were written.
const (
	copiedSize = 1 << 30
	copiedData = 100 << 20
)

// cost is what copies took, all together.
type cost struct {
	time  time.Duration
	bytes int64
}

// Benchmark prints how long copies take, and how much of the pool's space. Nothing is judged.
func Benchmark(b *testing.B, s Settings) {
	s.VolumeSize = copiedSize
	suite, err := newSuite(b, s)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = suite.driver.connection.Close() })
	t := &T{TB: b, suite: suite, driver: suite.driver, settings: &suite.settings}
	b.Cleanup(t.clean)
	v := t.create("copied")
	target := v.use()
	t.ok(writeMuch(target, s.Block), "write")
	v.settle(target)
	costs := map[string]*cost{"snapshot": {}, "restore": {}, "clone": {}}
	for range b.N {
		taken := t.costs(costs["snapshot"], func() func() error { return t.snapshot(v).delete })
		t.ok(taken(), "delete")
		kept := t.snapshot(v)
		restored := t.costs(costs["restore"], func() func() error { return kept.restore().remove })
		cloned := t.costs(costs["clone"], func() func() error { return v.clone().remove })
		t.ok(errors.Join(restored(), cloned(), kept.delete()), "delete")
	}
	for what, sum := range costs {
		b.ReportMetric(float64(sum.time.Microseconds())/1e3/float64(b.N), what+"-ms/op")
		if s.Pool != "" {
			b.ReportMetric(float64(sum.bytes)/1024/float64(b.N), what+"-KiB/op")
		}
	}
	// All together says nothing.
	b.ReportMetric(0, "ns/op")
}

// costs adds what a copy costs, and returns how it is removed.
func (t *T) costs(sum *cost, copy func() func() error) func() error {
	before := t.used()
	begin := time.Now()
	remove := copy()
	sum.time += time.Since(begin)
	sum.bytes += t.used() - before
	return remove
}

// used is how much of the pool's filesystem is taken once everything is on its disk. What is removed
// in the background has to be gone before.
func (t *T) used() int64 {
	if t.settings.Pool == "" {
		return 0
	}
	last := int64(-1)
	for {
		t.ok(flushFilesystem(t.settings.Pool), "flush the pool")
		var space unix.Statfs_t
		t.ok(unix.Statfs(t.settings.Pool, &space), "statfs")
		now := int64(space.Blocks-space.Bfree) * space.Bsize
		if now == last {
			return now
		}
		last = now
		time.Sleep(50 * time.Millisecond)
	}
}

func writeMuch(target string, block bool) error {
	flags := os.O_RDWR
	if !block {
		target, flags = filepath.Join(target, "much"), flags|os.O_CREATE
	}
	file, err := os.OpenFile(target, flags, 0o600)
	if err != nil {
		return err
	}
	data := bytesOf("much", 1<<20)
	for at := int64(0); at < copiedData; at += int64(len(data)) {
		if _, err := file.WriteAt(data, at); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	return errors.Join(file.Sync(), file.Close())
}
