package mountinfo

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	mounts := Parse(strings.Join([]string{
		`21 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw`,
		`22 21 0:5 / /dev rw master:2 propagate_from:1 - devtmpfs devtmpfs rw`,
		`23 21 7:0 / /t/pool rw,noexec - xfs /dev/loop0 ro,noquota`,
		`24 21 7:0 /volumes/a\040b /t/staging ro - xfs /dev/loop0 rw`,
		`a line from some future kernel`,
	}, "\n"))
	if len(mounts) != 4 || mounts[3].Root != "/volumes/a b" {
		t.Fatalf("read as %+v", mounts)
	}
	pool, staging := mounts[2], mounts[3]
	if !pool.Whole() || staging.Whole() {
		t.Error("a whole filesystem is not told from a part of one")
	}
	if !pool.ReadOnly() || !staging.ReadOnly() || mounts[0].ReadOnly() {
		t.Error("read-only is not told from writable")
	}
	if !pool.Has("noexec") || !pool.Has("noquota") || pool.Has("quota") {
		t.Errorf("the options are read as %q and %q", pool.Options, pool.SuperOptions)
	}
}

func TestIsBelow(t *testing.T) {
	for path, want := range map[string]bool{"/a": true, "/a/b": true, "/ab": false, "/": false} {
		if IsBelow(path, "/a") != want {
			t.Errorf("%s is below /a: want %v", path, want)
		}
	}
	if !IsBelow("/a", "/") {
		t.Error("everything is below /")
	}
}
