package contract

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"orlop/csi-sanity/mountinfo"
)

// T is one spec while it runs.
type T struct {
	testing.TB
	*driver
	suite    *suite
	settings *Settings
	// paths are those that have to be gone in the end.
	paths []string
	// said is what the report will say of a failure.
	said []string
	// notes are for people.
	notes []string
}

// note keeps a figure for the report, which nobody asserts.
func (t *T) note(format string, about ...any) {
	t.Helper()
	t.notes = append(t.notes, fmt.Sprintf(format, about...))
	t.Logf(format, about...)
}

// Errorf is that of testing, and keeps the text for the report.
func (t *T) Errorf(format string, about ...any) {
	t.Helper()
	t.said = append(t.said, fmt.Sprintf(format, about...))
	t.TB.Errorf(format, about...)
}

// Fatalf is that of testing, and keeps the text for the report.
func (t *T) Fatalf(format string, about ...any) {
	t.Helper()
	t.said = append(t.said, fmt.Sprintf(format, about...))
	t.TB.Fatalf(format, about...)
}

// ok ends the spec unless there is no error.
func (t *T) ok(err error, about string, details ...any) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", fmt.Sprintf(about, details...), err)
	}
}

// has says whether the driver has an ability.
func (t *T) has(ability string) bool { return contains(t.suite.abilities, ability) }

// must makes a call that has to succeed.
func must[Q, R any](t *T, rpc func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) R {
	t.Helper()
	reply, err := call(rpc, request)
	if err != nil {
		t.Fatalf("%T: %v\n%v", request, err, request)
	}
	return reply
}

// refused makes a call that has to fail with one of these codes.
func refused[Q, R any](
	t *T, about string, rpc func(context.Context, Q, ...grpc.CallOption) (R, error), request Q, allowed ...codes.Code,
) {
	t.Helper()
	reply, err := call(rpc, request)
	t.code(about, err, allowed...)
	if err == nil {
		t.Logf("%s: the reply was %v", about, reply)
	}
}

// code checks the code of an answer.
func (t *T) code(about string, err error, allowed ...codes.Code) {
	t.Helper()
	if got := status.Code(err); !slices.Contains(allowed, got) {
		t.Errorf("%s: the answer is %v, but has to be %v: %v", about, got, allowed, err)
	}
}

// eventually waits for what happens in the background.
func (t *T) eventually(about string, check func() error) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", about, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// path returns a path that nothing is at, in a directory that is there. The last part is as given.
func (t *T) path(name string) string {
	t.Helper()
	parent := filepath.Join(t.settings.Directory, fmt.Sprintf("p%d", t.driver.count.Add(1)))
	t.mkdir(parent)
	path := filepath.Join(parent, name)
	t.paths = append(t.paths, path)
	return path
}

// mkdir makes a directory, which is gone when the spec has ended.
func (t *T) mkdir(path string) {
	t.Helper()
	t.ok(os.Mkdir(path, 0o700), "make a directory")
	t.paths = append(t.paths, path)
}

// clean reports what the spec has left, and takes it away: its mounts, and paths if nothing is in
// them. What is in a volume is never removed this way.
func (t *T) clean() {
	for _, left := range mountinfo.Below(t.settings.Directory) {
		t.Errorf("left behind: %s", left)
		if err := unix.Unmount(left.Point, unix.MNT_DETACH); err != nil {
			t.Errorf("%s cannot be unmounted: %v", left.Point, err)
		}
	}
	for _, path := range slices.Backward(t.paths) {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left behind: %v", err)
		}
	}
	t.paths = nil
}
