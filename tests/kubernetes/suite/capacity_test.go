package suite

import "testing"

// TestNoRoom leaves a claim that cannot fit pending and says why, and places one that fits.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.claim("huge", "hostpath", "500Gi")
	s.pod("waits", []volume{claimed("huge", "/data")})
	s.event("waits", "not have enough free storage")
	if phase := s.get("pvc/huge", ".status.phase"); phase != "Pending" {
		t.Errorf("the claim is %s", phase)
	}
	s.claim("fits", "hostpath", "64Mi")
	s.run("runs", "fits")
	s.write("runs", "/data/file", 1)
}
