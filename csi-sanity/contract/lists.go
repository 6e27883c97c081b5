package contract

import (
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

var listSpecs = []Spec{
	{Name: "lists: every page size shows every volume once, in one order", needs: []string{listVolumes}, run: everyPageSize},
	{Name: "lists: a token outlives the volumes around it", needs: []string{listVolumes}, run: tokensOutlive},
	{Name: "lists: wrong tokens and counts are refused", needs: []string{listVolumes}, run: wrongTokens},
	{Name: "lists: a single volume is answered as it is listed", needs: []string{listVolumes, getVolume}, run: singleAsListed},
}

// list returns all volumes of the driver by their ids.
func (t *T) list() map[string]*csi.Volume {
	t.Helper()
	listed := map[string]*csi.Volume{}
	for _, entry := range must(t, t.controller.ListVolumes, &csi.ListVolumesRequest{}).GetEntries() {
		listed[entry.GetVolume().GetVolumeId()] = entry.GetVolume()
	}
	return listed
}

// pages lists everything in pages of a size and returns the ids in their order.
func (t *T) pages(size int32) []string {
	t.Helper()
	var ids []string
	token := ""
	for {
		reply := must(t, t.controller.ListVolumes, &csi.ListVolumesRequest{MaxEntries: size, StartingToken: token})
		entries := reply.GetEntries()
		if size > 0 && len(entries) > int(size) {
			t.Errorf("at most %d entries were asked for, and there are %d", size, len(entries))
		}
		for _, entry := range entries {
			ids = append(ids, entry.GetVolume().GetVolumeId())
		}
		token = reply.GetNextToken()
		if token == "" {
			return ids
		}
		if len(entries) == 0 {
			t.Fatalf("an empty page says that there is another one")
		}
	}
}

// some makes volumes and returns their ids.
func (t *T) some(count int) map[string]*volume {
	t.Helper()
	made := map[string]*volume{}
	for i := range count {
		v := t.create(fmt.Sprint("listed ", i))
		made[v.id] = v
	}
	return made
}

func everyPageSize(t *T) {
	made := t.some(7)
	all := t.pages(0)
	for id := range made {
		if count := len(slices.DeleteFunc(slices.Clone(all), func(other string) bool { return other != id })); count != 1 {
			t.Errorf("the volume %s is listed %d times", id, count)
		}
	}
	for size := int32(1); int(size) <= len(all)+1; size++ {
		if paged := t.pages(size); !slices.Equal(paged, all) {
			t.Errorf("in pages of %d there are %v, at once %v", size, paged, all)
		}
	}
}

func tokensOutlive(t *T) {
	made := t.some(6)
	first := must(t, t.controller.ListVolumes, &csi.ListVolumesRequest{MaxEntries: 2})
	token := first.GetNextToken()
	if token == "" {
		t.Fatalf("there are more than 2 volumes, but no token")
	}
	seen := map[string]bool{}
	for _, entry := range first.GetEntries() {
		id := entry.GetVolume().GetVolumeId()
		seen[id] = true
		// The last one of the page is where the token leads to.
		if made[id] != nil {
			t.ok(made[id].delete(), "delete a listed volume")
			delete(made, id)
		}
	}
	added := t.create("added between two pages")
	reply := must(t, t.controller.ListVolumes, &csi.ListVolumesRequest{StartingToken: token})
	for _, entry := range reply.GetEntries() {
		id := entry.GetVolume().GetVolumeId()
		if seen[id] {
			t.Errorf("%s is listed twice", id)
		}
		seen[id] = true
	}
	for id := range made {
		if !seen[id] {
			t.Errorf("%s was there all the time, but no page shows it", id)
		}
	}
	if t.list()[added.id] == nil {
		t.Errorf("a new list does not have what was added between two pages")
	}
}

func wrongTokens(t *T) {
	v := t.create("token")
	for _, token := range []string{"none of yours", "-1", "0", "999999999999", "../x", v.id + "x", "🚢"} {
		refused(t, fmt.Sprintf("the token %q", token), t.controller.ListVolumes,
			&csi.ListVolumesRequest{StartingToken: token}, codes.Aborted)
	}
	refused(t, "a negative count", t.controller.ListVolumes, &csi.ListVolumesRequest{MaxEntries: -1}, codes.InvalidArgument)
}

func singleAsListed(t *T) {
	v := t.create("single")
	single := must(t, t.controller.ControllerGetVolume, &csi.ControllerGetVolumeRequest{VolumeId: v.id}).GetVolume()
	listed := t.list()[v.id]
	if !proto.Equal(single, listed) {
		t.Errorf("listed as %v, but answered as %v", listed, single)
	}
	refused(t, "an unknown volume", t.controller.ControllerGetVolume, &csi.ControllerGetVolumeRequest{VolumeId: v.id + "0"}, codes.NotFound)
	refused(t, "no volume", t.controller.ControllerGetVolume, &csi.ControllerGetVolumeRequest{}, codes.InvalidArgument)
	t.ok(v.delete(), "delete")
	refused(t, "a deleted volume", t.controller.ControllerGetVolume, &csi.ControllerGetVolumeRequest{VolumeId: v.id}, codes.NotFound)
	if t.list()[v.id] != nil {
		t.Errorf("a deleted volume is still listed")
	}
}
