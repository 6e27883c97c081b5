package contract

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// The shape of a database: pages that are changed in place, and a log in which each change is on the
// disk before that. A page is a change's number and what follows from it, so no torn page passes.
const (
	pageSize = 4096
	pages    = 64
	// logSlots is the length of the log, which is written round and round.
	logSlots = 128
	// checkpoint is after how many changes the pages are flushed: long before their log is overwritten.
	checkpoint = 32
	// logAt and pagesAt are the places on a raw device.
	logAt   = 4 << 20
	pagesAt = logAt + logSlots*pageSize
)

// database is a writer that promises what databases promise.
type database struct {
	log, data         *os.File
	logBase, dataBase int64
	// started is the last change that was begun, acknowledged the last one that is on the disk.
	started, acknowledged atomic.Int64
	// stall is the longest time, in nanoseconds, between two acknowledged changes.
	stall atomic.Int64
	// finish stops the writer; it may be called again.
	finish func() error
}

func openDatabase(target string, block bool, flags int) (*database, error) {
	d := &database{}
	if block {
		file, err := os.OpenFile(target, flags&^os.O_CREATE, 0)
		if err != nil {
			return nil, err
		}
		d.log, d.data, d.logBase, d.dataBase = file, file, logAt, pagesAt
		return d, nil
	}
	var err error
	if d.log, err = os.OpenFile(filepath.Join(target, "log"), flags, 0o600); err != nil {
		return nil, err
	}
	if d.data, err = os.OpenFile(filepath.Join(target, "pages"), flags, 0o600); err != nil {
		return nil, errors.Join(err, d.log.Close())
	}
	return d, nil
}

func (d *database) close() error {
	if d.log == d.data {
		return d.log.Close()
	}
	return errors.Join(d.log.Close(), d.data.Close())
}

// startDatabase makes a database in a volume, or goes on after a change, until it is stopped.
func (t *T) startDatabase(target string, last int64) *database {
	t.Helper()
	d, err := openDatabase(target, t.settings.Block, os.O_RDWR|os.O_CREATE)
	t.ok(err, "open the database")
	if last == 0 {
		empty := make([]byte, pageSize)
		for slot := range int64(logSlots) {
			_, err = d.log.WriteAt(empty, d.logBase+slot*pageSize)
			t.ok(err, "make the log")
		}
		for page := range int64(pages) {
			_, err = d.data.WriteAt(empty, d.dataBase+page*pageSize)
			t.ok(err, "make the pages")
		}
		t.ok(errors.Join(d.log.Sync(), d.data.Sync(), t.flush(target)), "make the database")
	}
	d.started.Store(last)
	d.acknowledged.Store(last)
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- d.write(last, stop) }()
	d.finish = sync.OnceValue(func() error {
		close(stop)
		return errors.Join(<-ended, d.close())
	})
	t.Cleanup(func() { _ = d.finish() })
	return d
}

// flush flushes the names of files.
func (t *T) flush(target string) error {
	if t.settings.Block {
		return nil
	}
	return flushFilesystem(target)
}

func (d *database) write(last int64, stop <-chan struct{}) error {
	before := time.Now()
	for change := last + 1; ; change++ {
		select {
		case <-stop:
			return nil
		default:
		}
		d.started.Store(change)
		page := pageOf(change)
		data := contentOf(change)
		if _, err := d.log.WriteAt(data, d.logBase+change%logSlots*pageSize); err != nil {
			return err
		}
		if err := d.log.Sync(); err != nil {
			return err
		}
		d.acknowledged.Store(change)
		now := time.Now()
		d.stall.Store(max(d.stall.Load(), int64(now.Sub(before))))
		before = now
		if _, err := d.data.WriteAt(data, d.dataBase+page*pageSize); err != nil {
			return err
		}
		if change%checkpoint == 0 {
			if err := d.data.Sync(); err != nil {
				return err
			}
		}
	}
}

// pageOf is which page a change changes, and contentOf what it writes there.
func pageOf(change int64) int64 {
	return int64(rand.New(rand.NewPCG(uint64(change), 0)).IntN(pages))
}

func contentOf(change int64) []byte {
	data := make([]byte, pageSize)
	random := rand.New(rand.NewPCG(uint64(change), 1))
	for at := 8; at < pageSize; at += 8 {
		binary.LittleEndian.PutUint64(data[at:], random.Uint64())
	}
	binary.LittleEndian.PutUint64(data, uint64(change))
	return data
}

// recover reads a copy of a database as one does after a crash: the log over the pages. It returns
// the last change, before which none may be missing and of which nothing may be torn.
func (d *database) recover() (int64, error) {
	log, err := readPages(d.log, d.logBase, logSlots)
	if err != nil {
		return 0, err
	}
	inPlace, err := readPages(d.data, d.dataBase, pages)
	if err != nil {
		return 0, err
	}
	last := int64(0)
	logged := map[int64]bool{}
	for slot, data := range log {
		change := int64(binary.LittleEndian.Uint64(data))
		// Anything else was being written at that moment.
		if change > 0 && change%logSlots == int64(slot) && bytes.Equal(data, contentOf(change)) {
			logged[change] = true
			last = max(last, change)
		}
	}
	// The slot of the oldest one may be what was being written.
	for change := max(1, last-logSlots+2); change <= last; change++ {
		if !logged[change] {
			return last, fmt.Errorf("the log ends with change %d, but lacks %d, which was on the disk before that", last, change)
		}
	}
	for page, data := range inPlace {
		if err := checkPage(int64(page), data, last, logged); err != nil {
			return last, err
		}
	}
	return last, nil
}

// checkPage compares a page that the log does not repair with what it had to be after all changes.
func checkPage(page int64, data []byte, last int64, logged map[int64]bool) error {
	for change := last; change > 0; change-- {
		if pageOf(change) != page {
			continue
		}
		if logged[change] || bytes.Equal(data, contentOf(change)) {
			return nil
		}
		return fmt.Errorf("page %d has not its last change %d of %d, but change %d",
			page, change, last, binary.LittleEndian.Uint64(data))
	}
	if !bytes.Equal(data, make([]byte, pageSize)) {
		return fmt.Errorf("page %d was never written, but is not empty", page)
	}
	return nil
}

func readPages(file *os.File, base int64, count int) ([][]byte, error) {
	data := make([]byte, count*pageSize)
	if _, err := io.ReadFull(io.NewSectionReader(file, base, int64(len(data))), data); err != nil {
		return nil, err
	}
	var all [][]byte
	for at := 0; at < len(data); at += pageSize {
		all = append(all, data[at:at+pageSize])
	}
	return all, nil
}

// checkDatabase recovers a copy that was taken between two moments of the writer.
func (t *T) checkDatabase(target string, acknowledged, started int64) {
	t.Helper()
	d, err := openDatabase(target, t.settings.Block, os.O_RDONLY)
	t.ok(err, "open the copy of the database")
	defer d.close()
	last, err := d.recover()
	if err != nil {
		t.Errorf("the copy of the database is broken: %v", err)
	}
	if last < acknowledged {
		t.Errorf("the copy ends with change %d, but %d was on the disk before it was taken", last, acknowledged)
	}
	if last > started {
		t.Errorf("the copy has change %d, but only %d was begun when it was there", last, started)
	}
}
