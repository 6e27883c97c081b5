package sanity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"orlop/csi-sanity/mountinfo"
)

// stageOne makes and stages a volume of the configuration and tells what is mounted at the staging
// path or below: the suite itself would not notice an ext4 where an xfs was asked for.
func stageOne(ctx context.Context, c Configuration, dir string) (map[string]int, error) {
	connection, err := grpc.NewClient(endpoint(dir), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	controller, node := csi.NewControllerClient(connection), csi.NewNodeClient(connection)
	capability := capabilityOf(c)
	created, err := controller.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name:               "what-is-staged",
		CapacityRange:      &csi.CapacityRange{RequiredBytes: c.VolumeSize},
		VolumeCapabilities: []*csi.VolumeCapability{capability},
		Parameters:         c.Parameters,
	})
	if err != nil {
		return nil, fmt.Errorf("make a volume to stage: %w", err)
	}
	id, path := created.GetVolume().GetVolumeId(), filepath.Join(dir, "stage-one")
	if err := os.Mkdir(path, 0o700); err != nil {
		return nil, err
	}
	if c.Attach {
		_, err := controller.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
			VolumeId: id, NodeId: nodeID, VolumeCapability: capability,
		})
		if err != nil {
			return nil, fmt.Errorf("attach a volume to stage: %w", err)
		}
	}
	_, err = node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: path, VolumeCapability: capability,
	})
	seen := map[string]int{}
	for _, m := range mountinfo.Current() {
		if mountinfo.IsBelow(m.Point, path) {
			seen[kind(m)]++
		}
	}
	_, unstaged := node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: path})
	var detached error
	if c.Attach {
		_, detached = controller.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: nodeID})
	}
	_, deleted := controller.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: id})
	return seen, errors.Join(err, unstaged, detached, deleted, os.Remove(path))
}

// capabilityOf asks for what the configuration's volumes are used as.
func capabilityOf(c Configuration) *csi.VolumeCapability {
	capability := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{
		Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER,
	}}
	if c.Block {
		capability.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		capability.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{}}
	}
	return capability
}

// judgeStaging compares what was seen at the staging path with what the configuration asked for.
func judgeStaging(c Configuration, seen map[string]int, poolPath string, mounts []mount) []string {
	want := c.VolumeFilesystem
	if c.Block {
		want = "part of " + filesystemOf("/dev", mounts)
	} else if want == "" {
		want = "part of " + filesystemOf(poolPath, mounts)
	}
	if seen[want] > 0 && len(seen) == 1 {
		return nil
	}
	var texts []string
	for kind, times := range seen {
		texts = append(texts, fmt.Sprintf("%s (%d times)", kind, times))
	}
	return []string{fmt.Sprintf("a staged volume had to be %s, but what was seen is %q", want, texts)}
}
