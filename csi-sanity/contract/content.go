package contract

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// bytesOf are bytes that nothing else has: they follow from the seed alone.
func bytesOf(seed string, size int) []byte {
	data := make([]byte, size)
	// Never fails.
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(data)
	return data
}

// tree is what files are written into each volume: sizes around the borders of pages, depth, and a
// name that is not ASCII.
var tree = []struct {
	path string
	size int
}{
	{"empty", 0},
	{"one", 1},
	{"page", 4096},
	{"page-and-more", 4097},
	{"a/b/c/deep", 70_001},
	{"spaß 🚢", 300},
	{"large", 2<<20 + 3},
}

// write fills a volume, at a path where a pod would see it, with contents that follow from the seed.
func (t *T) write(path, seed string) {
	t.Helper()
	t.ok(t.tryWrite(path, seed), "write to %s", path)
}

func (t *T) tryWrite(path, seed string) error {
	if t.settings.Block {
		return writeBlocks(path, seed)
	}
	return writeTree(path, seed)
}

// check compares a volume with what was written with the same seed.
func (t *T) check(about, path, seed string) {
	t.Helper()
	if err := t.tryCheck(path, seed); err != nil {
		t.Errorf("%s: %v", about, err)
	}
}

func (t *T) tryCheck(path, seed string) error {
	if t.settings.Block {
		return checkBlocks(path, seed)
	}
	return checkTree(path, seed)
}

func writeTree(directory, seed string) error {
	for _, file := range tree {
		path := filepath.Join(directory, seed, file.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := writeFile(path, bytesOf(seed+file.path, file.size)); err != nil {
			return err
		}
	}
	link := filepath.Join(directory, seed, "link")
	if err := os.Symlink("a/b/c/deep", link); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return flushFilesystem(directory)
}

// writeFile writes a file that is on the disk when it returns.
func writeFile(path string, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	return errors.Join(err, file.Sync(), file.Close())
}

func checkTree(directory, seed string) error {
	for _, file := range tree {
		path := filepath.Join(directory, seed, file.path)
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, bytesOf(seed+file.path, file.size)) {
			return fmt.Errorf("%s has other contents (%d bytes) than were written (%d)", path, len(data), file.size)
		}
		if status, err := os.Stat(path); err != nil || status.Mode().Perm() != 0o640 {
			return fmt.Errorf("%s has another mode than it was given: %v, %v", path, status.Mode(), err)
		}
	}
	if to, err := os.Readlink(filepath.Join(directory, seed, "link")); err != nil || to != "a/b/c/deep" {
		return fmt.Errorf("the symbolic link leads to %q: %v", to, err)
	}
	return nil
}

func flushFilesystem(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	defer directory.Close()
	return unix.Syncfs(int(directory.Fd()))
}

// chunk is how much is written to each place of a device.
const chunk = 64 << 10

// places are where a device of that size is written: both ends and some of the middle.
func places(size int64) []int64 {
	last := (size - chunk) / chunk * chunk
	return []int64{0, chunk, size / 3 / chunk * chunk, size / 2 / chunk * chunk, last}
}

// writeBlocks writes the places of a device, which it notes in the first one: the device may grow.
func writeBlocks(path, seed string) error {
	device, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	size, err := device.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	for _, at := range places(size) {
		data := bytesOf(fmt.Sprint(seed, at), chunk)
		if at == 0 {
			binary.LittleEndian.PutUint64(data, uint64(size))
		}
		if _, err := device.WriteAt(data, at); err != nil {
			return err
		}
	}
	return device.Sync()
}

func checkBlocks(path, seed string) error {
	device, err := os.Open(path)
	if err != nil {
		return err
	}
	defer device.Close()
	first := make([]byte, chunk)
	if _, err := device.ReadAt(first, 0); err != nil {
		return err
	}
	size := binary.LittleEndian.Uint64(first)
	if size < 2*chunk || size > 1<<50 {
		return fmt.Errorf("the first block of %s is not what was written", path)
	}
	for _, at := range places(int64(size)) {
		want, got := bytesOf(fmt.Sprint(seed, at), chunk), make([]byte, chunk)
		if at == 0 {
			binary.LittleEndian.PutUint64(want, size)
		}
		if _, err := device.ReadAt(got, at); err != nil {
			return fmt.Errorf("read %s at %d: %w", path, at, err)
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s has other contents at %d than were written", path, at)
		}
	}
	return nil
}

// discard gives blocks of a device back, where it takes them.
func discard(device *os.File, at, length int64) error {
	err := unix.Fallocate(int(device.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// canWrite tries to write, without harm to what is there, and says why it cannot.
func (t *T) canWrite(path string) error {
	if !t.settings.Block {
		probe := filepath.Join(path, ".can-write")
		if err := writeFile(probe, []byte("x")); err != nil {
			return err
		}
		return os.Remove(probe)
	}
	device, err := os.OpenFile(path, os.O_RDWR|unix.O_SYNC, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	first := make([]byte, 4096)
	if _, err := device.ReadAt(first, 0); err != nil {
		return err
	}
	_, err = device.WriteAt(first, 0)
	return err
}
