package sanity

import (
	"fmt"
	"slices"

	"orlop/csi-sanity/contract"
)

// missingGroup names the specs of our own suite that lack one ability.
type missingGroup struct {
	Ability, Reason string
	// In says in which configurations; nil is all of them.
	In    func(Configuration) bool
	Specs []string
}

func isBlock(c Configuration) bool         { return c.Block }
func isMounted(c Configuration) bool       { return !c.Block }
func isPartOfPool(c Configuration) bool    { return c.VolumeFilesystem == "" && !c.Block }
func hasNoFilesystem(c Configuration) bool { return c.VolumeFilesystem == "" }
func hasNoAttach(c Configuration) bool     { return !c.Attach }
func isSharedPool(c Configuration) bool    { return c.PoolFilesystem == "" }

// missingGroups are the only specs of our own suite that may be skipped, by their exact names.
var missingGroups = []missingGroup{
	{
		Ability: "mount", Reason: "A raw block volume has no mount flags.", In: isBlock,
		Specs: []string{
			"options: mount flags are in force at the target",
			"options: an unknown mount flag is refused everywhere",
			"options: a volume keeps its filesystem",
			"options: an unknown filesystem is refused",
			"health: a mount that is gone is told, by this volume alone",
			"inline: a volume comes with a pod, and goes with it",
			"inline: each call ten times, also after a kill",
			"inline: wrong requests are refused, and leave nothing",
			"inline: many pods at once",
		},
	},
	{
		Ability: contract.Inline, Reason: "Kubernetes has no inline volumes that are raw block devices.", In: isBlock,
		Specs: []string{
			"inline: a volume comes with a pod, and goes with it",
			"inline: each call ten times, also after a kill",
			"inline: wrong requests are refused, and leave nothing",
			"inline: many pods at once",
		},
	},
	{
		Ability: "controller/PUBLISH_UNPUBLISH_VOLUME", Reason: "The driver runs without --attach here.", In: hasNoAttach,
		Specs: []string{
			"attach: each call ten times, and the nodes are told",
			"attach: a volume cannot be used without it, nor deleted with it",
			"attach: wrong requests are refused",
			"attach: read-only holds on the node",
			"attach: a node has a limit, and it holds for all at once",
			"attach: it outlives a kill",
		},
	},
	{
		Ability: "controller/PUBLISH_READONLY", Reason: "The driver runs without --attach here.", In: hasNoAttach,
		Specs: []string{"attach: read-only holds on the node"},
	},
	{
		Ability: contract.OwnFilesystem, Reason: "The volume is a directory or a device: it has no filesystem of its own.",
		In: hasNoFilesystem,
		Specs: []string{
			"options: a volume keeps its filesystem",
			"options: an unknown filesystem is refused",
		},
	},
	{
		Ability: contract.SizeIsLimit, Reason: "Orlop does not hold directories to their sizes yet.", In: isPartOfPool,
		Specs: []string{"capacity: a size is a limit"},
	},
	{
		Ability: contract.ChangedBlocks, Reason: "A directory has no blocks to tell of.", In: isPartOfPool,
		Specs: []string{
			"blocks: an image is rebuilt from what is allocated and what has changed",
			"blocks: empty, sparse and full images",
			"blocks: an image is rebuilt after it has grown",
			"blocks: a stream goes on from any offset, in messages of any length",
			"blocks: wrong requests are refused",
		},
	},
	{
		Ability: "block", Reason: "A filesystem is never empty, sparse or full to the last byte.", In: isMounted,
		Specs: []string{"blocks: empty, sparse and full images"},
	},
	{
		Ability: contract.OwnPool, Reason: "Others write to the machine's own filesystem while the suite runs.", In: isSharedPool,
		Specs: []string{
			"room: it shrinks with each volume and comes back",
			"modify: a refused change is not kept",
		},
	},
}

// missing returns what may be missing in a configuration: abilities by the names of specs.
func missing(c Configuration) map[string][]string {
	all := map[string][]string{}
	for _, group := range missingGroups {
		if group.In != nil && !group.In(c) {
			continue
		}
		for _, spec := range group.Specs {
			all[spec] = append(all[spec], group.Ability)
		}
	}
	return all
}

// judgeMissing returns what is wrong with the skipped specs of a run: those that are not on the list
// or lack something else than it says, and entries of the list that ran or that there are not.
func judgeMissing(results []contract.Result, allowed map[string][]string) []string {
	var problems []string
	seen := map[string]bool{}
	for _, result := range results {
		seen[result.Name] = true
		want, got := slices.Sorted(slices.Values(allowed[result.Name])), slices.Sorted(slices.Values(result.Missing))
		skipped := result.Outcome == contract.Skipped
		switch {
		case skipped && len(want) == 0:
			problems = append(problems, fmt.Sprintf("skipped, and not on the list of allowed skips: %s (%s)", result.Name, result.Message))
		case skipped && !slices.Equal(want, got):
			problems = append(problems, fmt.Sprintf("skipped for lack of %q, but the list says %q: %s", got, want, result.Name))
		case !skipped && len(want) > 0:
			problems = append(problems, fmt.Sprintf("on the list of allowed skips, but it ran: %s", result.Name))
		}
	}
	for name := range allowed {
		if !seen[name] {
			problems = append(problems, fmt.Sprintf("on the list of allowed skips, but the suite has no such spec: %s", name))
		}
	}
	slices.Sort(problems)
	return problems
}
