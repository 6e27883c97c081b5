package contract

import (
	"context"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Abilities that the settings bring, beside the facts.
const (
	isMount    = "mount"
	isBlock    = "block"
	mayKill    = "may-kill"
	hasLog     = "log"
	hasMutable = "mutable-parameters"
)

// Abilities that a driver advertises, as far as specs name them.
const (
	topology       = "plugin/VOLUME_ACCESSIBILITY_CONSTRAINTS"
	groups         = "plugin/GROUP_CONTROLLER_SERVICE"
	metadata       = "plugin/SNAPSHOT_METADATA_SERVICE"
	snapTopology   = "plugin/SNAPSHOT_ACCESSIBILITY_CONSTRAINTS"
	onlineGrowth   = "plugin/ONLINE"
	attachments    = "controller/PUBLISH_UNPUBLISH_VOLUME"
	attachReadOnly = "controller/PUBLISH_READONLY"
	listVolumes    = "controller/LIST_VOLUMES"
	publishedNodes = "controller/LIST_VOLUMES_PUBLISHED_NODES"
	getCapacity    = "controller/GET_CAPACITY"
	snapshots      = "controller/CREATE_DELETE_SNAPSHOT"
	listSnapshots  = "controller/LIST_SNAPSHOTS"
	getSnapshot    = "controller/GET_SNAPSHOT"
	clones         = "controller/CLONE_VOLUME"
	growth         = "controller/EXPAND_VOLUME"
	getVolume      = "controller/GET_VOLUME"
	modify         = "controller/MODIFY_VOLUME"
	volumeHealth   = "controller/GET_VOLUME_HEALTH"
	listHealth     = "controller/LIST_VOLUME_HEALTH"
	newModes       = "controller/SINGLE_NODE_MULTI_WRITER"
	staging        = "node/STAGE_UNSTAGE_VOLUME"
	stats          = "node/GET_VOLUME_STATS"
	nodeGrowth     = "node/EXPAND_VOLUME"
	nodeNewModes   = "node/SINGLE_NODE_MULTI_WRITER"
	nodeHealth     = "node/GET_VOLUME_HEALTH"
	storageHealth  = "node/GET_STORAGE_HEALTH"
)

// modeAbility is the ability to make volumes for an access mode.
func modeAbility(mode Mode) string { return "mode/" + mode.String() }

// readAbilities asks the driver what it can do.
func readAbilities(ctx context.Context, d *driver, s *Settings) ([]string, error) {
	found := slices.Clone(s.With)
	for ability, there := range map[string]bool{
		isMount: !s.Block, isBlock: s.Block, mayKill: s.MayKill, hasLog: s.Log != "", hasMutable: len(s.Mutable) > 0,
	} {
		if there {
			found = append(found, ability)
		}
	}
	plugin, err := d.identity.GetPluginCapabilities(ctx, &csi.GetPluginCapabilitiesRequest{})
	if err != nil {
		return nil, err
	}
	for _, capability := range plugin.GetCapabilities() {
		if service := capability.GetService(); service != nil {
			found = append(found, "plugin/"+service.GetType().String())
		}
		if expansion := capability.GetVolumeExpansion(); expansion != nil {
			found = append(found, "plugin/"+expansion.GetType().String())
		}
	}
	controller, err := d.controller.ControllerGetCapabilities(ctx, &csi.ControllerGetCapabilitiesRequest{})
	if err != nil {
		return nil, err
	}
	for _, capability := range controller.GetCapabilities() {
		found = append(found, "controller/"+capability.GetRpc().GetType().String())
	}
	node, err := d.node.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
	if err != nil {
		return nil, err
	}
	for _, capability := range node.GetCapabilities() {
		found = append(found, "node/"+capability.GetRpc().GetType().String())
	}
	modes, err := readModes(ctx, d, s, contains(found, newModes) && contains(found, nodeNewModes))
	if err != nil {
		return nil, err
	}
	found = append(found, modes...)
	slices.Sort(found)
	return slices.Compact(found), nil
}

// readModes tries which access modes the driver makes volumes for. It is allowed to refuse some.
func readModes(ctx context.Context, d *driver, s *Settings, withNew bool) ([]string, error) {
	var found []string
	for _, mode := range allModes {
		if isNew := mode == singleWriter || mode == multiWriter; isNew && !withNew {
			continue
		}
		made, err := d.controller.CreateVolume(ctx, &csi.CreateVolumeRequest{
			Name:               d.name("mode " + mode.String()),
			CapacityRange:      &csi.CapacityRange{RequiredBytes: s.VolumeSize},
			VolumeCapabilities: []*csi.VolumeCapability{s.capability(mode)},
			Parameters:         s.Parameters,
		})
		switch {
		case status.Code(err) == codes.InvalidArgument:
			continue
		case err != nil:
			return nil, fmt.Errorf("make a volume of mode %s: %w", mode, err)
		}
		found = append(found, modeAbility(mode))
		_, err = d.controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: made.GetVolume().GetVolumeId()})
		if err != nil {
			return nil, err
		}
	}
	return found, nil
}

// judgeAbilities compares what was found with what had to be there.
func judgeAbilities(found, wanted []string) []string {
	var problems []string
	if len(wanted) == 0 {
		return nil
	}
	for _, ability := range wanted {
		if !contains(found, ability) {
			problems = append(problems, "the driver lacks the ability "+ability)
		}
	}
	for _, ability := range found {
		if !contains(wanted, ability) {
			problems = append(problems, "the driver has an ability that was not expected: "+ability)
		}
	}
	return problems
}

func contains(list []string, word string) bool { return slices.Contains(list, word) }
