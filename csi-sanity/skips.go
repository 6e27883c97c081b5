package sanity

import (
	"fmt"
	"slices"
)

// skipGroup names the specs that one missing ability keeps from running.
type skipGroup struct {
	Reason string
	// Specs maps a container of the suite to the specs in it.
	Specs map[string][]string
}

const (
	controller = "Controller Service [Controller Server] "
	node       = "Node Service "
)

// allowedSkips are the only specs that a configuration may skip, by their exact names. A spec that
// starts to run has to leave this list, so the list can only tell the truth.
func allowedSkips(c Configuration) []skipGroup {
	if c.Attach {
		return everywhere
	}
	return append(slices.Clone(everywhere), withoutAttach)
}

// withoutAttach is what a driver that was not started with --attach does not do.
var withoutAttach = skipGroup{
	Reason: "The driver runs without --attach here.",
	Specs: map[string][]string{
		controller + "ControllerPublishVolume": {
			"should fail when no node id is provided",
			"should fail when no volume capability is provided",
			"should fail when no volume id is provided",
			"should fail when publishing more volumes than the node max attach limit",
			"should fail when the node does not exist",
			"should fail when the volume does not exist",
			"should fail when the volume is already published but is incompatible",
		},
		controller + "ControllerUnpublishVolume": {
			"should fail when no volume id is provided",
		},
		controller + "volume lifecycle": {
			"should be idempotent",
			"should work",
		},
	},
}

// everywhere is skipped in every configuration.
var everywhere = []skipGroup{
	{
		Reason: "The suite itself has this spec switched off (pending).",
		Specs: map[string][]string{
			controller + "ListVolumes": {
				"pagination should detect volumes added between pages and accept tokens when the last volume from a page is deleted",
			},
		},
	},
}

// skipReasons returns the list as one map from a spec's full name to the reason.
func skipReasons(groups []skipGroup) map[string]string {
	reasons := map[string]string{}
	for _, group := range groups {
		for container, specs := range group.Specs {
			for _, spec := range specs {
				reasons[container+" "+spec] = group.Reason
			}
		}
	}
	return reasons
}

// judgeSkips returns what is wrong with the skipped specs of a run: those that are not on the list,
// and entries of the list that ran or that the suite does not have.
func judgeSkips(results []SpecResult, reasons map[string]string) []string {
	var problems []string
	seen := map[string]bool{}
	for _, spec := range results {
		seen[spec.Name] = true
		_, allowed := reasons[spec.Name]
		switch {
		case spec.Outcome == Skipped && !allowed:
			problems = append(problems, fmt.Sprintf("skipped, and not on the list of allowed skips: %s (%s)", spec.Name, spec.Message))
		case spec.Outcome != Skipped && allowed:
			problems = append(problems, fmt.Sprintf("on the list of allowed skips, but it ran: %s", spec.Name))
		}
	}
	for name := range reasons {
		if !seen[name] {
			problems = append(problems, fmt.Sprintf("on the list of allowed skips, but the suite has no such spec: %s", name))
		}
	}
	slices.Sort(problems)
	return problems
}
