// Package contract checks what csi-sanity leaves out of the Container Storage Interface: contents,
// access modes with real reads and writes, sizes, hostile input, concurrency, kills, secrets.
//
// It speaks gRPC to any driver on this machine (client.go), and looks at what the driver did with
// the eyes of a pod: through mounts, files and devices (volume.go, content.go). Each check is a Spec
// (spec.go) that names the abilities it needs (abilities.go); what is missing skips it, and the
// report says so. Every reply of the driver, whatever it was asked for, is held to the rules that
// bind all replies (rules.go).
package contract

import (
	"fmt"
	"os"
	"strings"
)

// Settings say which driver is checked, and how.
type Settings struct {
	// Endpoint is the driver's socket, unix:///path.
	Endpoint string
	// Parameters are those of the storage class.
	Parameters map[string]string
	// Block asks for raw block volumes.
	Block bool
	// VolumeSize is that of an ordinary volume, in bytes.
	VolumeSize int64
	// Directory gets the staging and target paths. Empty: one for temporary files.
	Directory string
	// With lists facts that no driver can advertise; Facts says which there are.
	With []string
	// Abilities, unless empty, are exactly what the driver must have.
	Abilities []string
	// Log is the driver's log file, if it can be read.
	Log string
	// MayKill allows to kill the driver; somebody has to start it again at once.
	MayKill bool
	// Mutable are parameters that a volume can be given later.
	Mutable map[string]string
	// Report is a file for the results.
	Report string
	// Pool is where the driver keeps its volumes, for a benchmark that looks at the space.
	Pool string
	// Snapshots is how many are taken of a volume that is written to.
	Snapshots int
}

// The facts that Settings.With may have.
const (
	// OwnFilesystem: each mounted volume is a filesystem of its own.
	OwnFilesystem = "own-filesystem"
	// SizeIsLimit: more than the size cannot be written.
	SizeIsLimit = "size-is-limit"
	// OwnPool: nobody else uses the space that the driver gives away.
	OwnPool = "own-pool"
	// GrowsMounted: a mounted filesystem can grow; otherwise it does when it is staged again.
	GrowsMounted = "grows-mounted"
	// OneWriter: MULTI_NODE_SINGLE_WRITER allows one writable target on a node.
	OneWriter = "one-writer"
	// InstantCopies: a used volume can be copied; otherwise that is refused until nobody uses it.
	InstantCopies = "instant-copies"
	// InstantGroups: the same for several volumes together.
	InstantGroups = "instant-groups"
	// IndependentCopies: a volume and its snapshots can be deleted in any order.
	IndependentCopies = "independent-copies"
	// ChangedBlocks: the blocks of these volumes' snapshots can be told.
	ChangedBlocks = "changed-blocks"
	// Inline: NodePublishVolume makes ephemeral volumes.
	Inline = "inline"
)

// Facts are all of them.
var Facts = []string{
	OwnFilesystem, SizeIsLimit, OwnPool, GrowsMounted, OneWriter, InstantCopies, InstantGroups, IndependentCopies,
	ChangedBlocks, Inline,
}

func (s *Settings) check() error {
	path, isUnix := strings.CutPrefix(s.Endpoint, "unix://")
	if !isUnix || !strings.HasPrefix(path, "/") {
		return fmt.Errorf("the endpoint has to be unix:///path, not %q", s.Endpoint)
	}
	for _, fact := range s.With {
		if !contains(Facts, fact) {
			return fmt.Errorf("%q is no fact; there are %q", fact, Facts)
		}
	}
	if s.Directory == "" {
		directory, err := os.MkdirTemp("", "contract-")
		if err != nil {
			return err
		}
		s.Directory = directory
	}
	return os.MkdirAll(s.Directory, 0o700)
}

func (s *Settings) socket() string { return strings.TrimPrefix(s.Endpoint, "unix://") }
