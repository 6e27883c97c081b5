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
		Reason: "Orlop does not take snapshots yet.",
		Specs: map[string][]string{
			controller + "CreateVolume": {
				"should create volume from an existing source snapshot",
				"should fail when the volume source snapshot is not found",
			},
			"CreateSnapshot [Controller Server]": {
				"should fail when no name is provided",
				"should fail when no source volume id is provided",
				"should fail when requesting to create a snapshot with already existing name and different source volume ID",
				"should succeed when creating snapshot with maximum-length name",
				"should succeed when requesting to create a snapshot with already existing name and same source volume ID",
			},
			"DeleteSnapshot [Controller Server]": {
				"should fail when no snapshot id is provided",
				"should return appropriate values (no optional values added)",
				"should succeed when an invalid snapshot id is used",
			},
			"GetSnapshot [Controller Server]": {
				"should return an error",
				"should return an error when the specified snapshot id does not exist",
				"should return snapshot that match the specified snapshot id",
			},
			"ListSnapshots [Controller Server]": {
				"check the presence of new snapshots in the snapshot list",
				"should return appropriate values (no optional values added)",
				"should return empty when the specified snapshot id does not exist",
				"should return empty when the specified source volume id does not exist",
				"should return next token when a limited number of entries are requested",
				"should return snapshots that match the specified snapshot id",
				"should return snapshots that match the specified source volume id",
			},
		},
	},
	{
		Reason: "Orlop's snapshots have no topology of their own yet.",
		Specs: map[string][]string{
			"CreateSnapshot [Controller Server]": {
				"should succeed when creating a snapshot with accessibility requirements",
			},
		},
	},
	{
		Reason: "Orlop does not clone volumes yet.",
		Specs: map[string][]string{
			controller + "CreateVolume": {
				"should create volume from an existing source volume",
				"should fail when the volume source volume is not found",
			},
		},
	},
	{
		Reason: "Orlop does not take group snapshots yet.",
		Specs: map[string][]string{
			"GroupController Service [GroupController Server] GroupControllerGetCapabilities": {
				"should return appropriate capabilities",
			},
			"GroupController Service [GroupController VolumeGroupSnapshots] CreateVolumeGroupSnapshot": {
				"should fail when no name is provided",
			},
			"GroupController Service [GroupController VolumeGroupSnapshots] DeleteVolumeGroupSnapshot": {
				"should fail when no volume id is provided",
				"should succeed when an invalid volume id is used",
			},
			"GroupController Service [GroupController VolumeGroupSnapshots] GetVolumeGroupSnapshot": {
				"should fail when an invalid volume id is used",
				"should fail when no volume id is provided",
			},
		},
	},
	{
		Reason: "Orlop does not modify volumes yet.",
		Specs: map[string][]string{
			controller + "CreateVolume": {
				"should create volume with a volume attribute class",
				"should not create volume with an invalid volume attribute class",
			},
			"ModifyVolume [Controller Server]": {
				"should fail if no volume id is given",
				"should fail if specified mutable parameters are not supported by the volume",
				"should fail if volume does not exist",
				"should fail to modify a volume created with a volume attribute class if new mutable parameters are not supported by volume",
				"should modify a volume created with a volume attribute class",
				"should modify a volume created without a volume attribute class",
			},
		},
	},
	{
		Reason: "Orlop does not report health yet.",
		Specs: map[string][]string{
			"ControllerGetVolumeHealth [Controller Server]": {
				"should fail when no volume id is provided",
				"should return health for a valid volume",
			},
			"ControllerListVolumeHealth [Controller Server]": {
				"should return appropriate response",
			},
			node + "NodeGetStorageHealth": {
				"should return appropriate response",
			},
			node + "NodeGetVolumeHealth": {
				"should fail when no volume id is provided",
				"should return health for a valid volume",
			},
		},
	},
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
