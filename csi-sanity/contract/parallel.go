package contract

import (
	"errors"
	"math/rand/v2"
	"os"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"orlop/csi-sanity/mountinfo"
)

var parallelSpecs = []Spec{
	{Name: "parallel: creations of one name make one volume", run: parallelCreations},
	{Name: "parallel: calls for one volume succeed or are ABORTED", run: parallelCalls},
	{Name: "parallel: lives of many volumes do not touch", run: parallelLives},
	{Name: "parallel: a storm on few volumes leaves nothing", run: storm},
}

// together runs something many times at once and returns what each said.
func together(count int, run func(int) error) []error {
	results := make([]error, count)
	var all sync.WaitGroup
	for i := range count {
		all.Go(func() { results[i] = run(i) })
	}
	all.Wait()
	return results
}

// okOrAborted checks that nothing else was answered, and that somebody succeeded.
func (t *T) okOrAborted(about string, results []error) {
	t.Helper()
	succeeded := false
	for _, err := range results {
		t.code(about, err, codes.OK, codes.Aborted)
		succeeded = succeeded || err == nil
	}
	if !succeeded {
		t.Errorf("%s: all of %d were aborted", about, len(results))
	}
}

func parallelCreations(t *T) {
	request := t.request("parallel")
	ids := make([]string, 16)
	t.okOrAborted("create", together(len(ids), func(i int) error {
		reply, err := call(t.controller.CreateVolume, request)
		ids[i] = reply.GetVolume().GetVolumeId()
		return err
	}))
	v := t.createFrom(request)
	for _, id := range ids {
		if id != "" && id != v.id {
			t.Errorf("one name made the volumes %s and %s", v.id, id)
		}
	}
}

func parallelCalls(t *T) {
	v := t.create("parallel")
	path, target := t.path("staging"), t.path("target")
	t.ok(v.attach(), "attach")
	t.ok(v.tryStage(path), "stage once, to make the path")
	t.ok(v.unstage(path), "unstage")
	for range 3 {
		t.ok(v.tryStage(path), "stage")
		t.okOrAborted("stage", together(8, func(int) error {
			_, err := call(t.node.NodeStageVolume, v.stageRequest(path))
			return err
		}))
		t.ok(v.tryPublish(path, target, false), "publish")
		t.okOrAborted("publish", together(8, func(int) error {
			_, err := call(t.node.NodePublishVolume, v.publishRequest(path, target, false))
			return err
		}))
		if got := len(mountinfo.Below(target)); got != 1 {
			t.Errorf("parallel calls made %d mounts at the target", got)
		}
		t.okOrAborted("unpublish", together(8, func(int) error {
			_, err := call(t.node.NodeUnpublishVolume, &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: target})
			return err
		}))
		t.ok(v.unpublish(target), "unpublish")
		t.okOrAborted("unstage", together(8, func(int) error {
			_, err := call(t.node.NodeUnstageVolume, &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: path})
			return err
		}))
		t.ok(v.unstage(path), "unstage")
	}
	t.ok(v.detach(), "detach")
	t.okOrAborted("delete", together(8, func(int) error {
		_, err := call(t.controller.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: v.id})
		return err
	}))
}

func parallelLives(t *T) {
	lives := make([]*life, 12)
	for i := range lives {
		lives[i] = t.newLife("life")
	}
	for _, err := range together(len(lives), func(i int) error { return lives[i].run() }) {
		if err != nil {
			t.Errorf("%v", err)
		}
	}
}

// storm lets many callers do anything to few volumes.
func storm(t *T) {
	volumes := make([]*stormy, 3)
	for i := range volumes {
		life := t.newLife("storm")
		life.repeat = true
		volumes[i] = &stormy{life: life}
	}
	for _, err := range together(8, func(worker int) error {
		random := rand.New(rand.NewPCG(uint64(worker), 1))
		var broken error
		for range 60 {
			err := volumes[random.IntN(len(volumes))].anything(random)
			switch status.Code(err) {
			case codes.OK, codes.Aborted, codes.NotFound, codes.FailedPrecondition:
			default:
				broken = errors.Join(broken, err)
			}
		}
		return broken
	}) {
		if err != nil {
			t.Errorf("%v", err)
		}
	}
	for _, s := range volumes {
		// What it became is of no account; that it can still have a life and an end is.
		for _, id := range s.ids {
			v := &volume{t: t, id: id, targets: []string{s.life.target}, stagings: []string{s.life.staging}}
			if t.has(attachments) {
				v.published = map[string]string{}
			}
			t.ok(v.remove(), "clean up after the storm")
		}
		if t.has(staging) {
			// The driver may have removed it, and may have left it.
			t.ok(os.MkdirAll(s.life.staging, 0o700), "make the staging path")
		}
		t.ok(s.life.run(), "a life after the storm")
	}
}

// stormy is a volume that many callers work on.
type stormy struct {
	life  *life
	mutex sync.Mutex
	// ids are all that the name ever had; the last one is the current one.
	ids []string
}

func (s *stormy) current() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if len(s.ids) == 0 {
		return "none-yet"
	}
	return s.ids[len(s.ids)-1]
}

// anything makes one call.
func (s *stormy) anything(random *rand.Rand) error {
	t, l := s.life.t, s.life
	v := &volume{t: t, id: s.current(), capability: l.request.GetVolumeCapabilities()[0]}
	var err error
	switch random.IntN(8) {
	case 0, 1:
		reply, failed := call(t.controller.CreateVolume, l.request)
		if failed == nil {
			s.mutex.Lock()
			if id := reply.GetVolume().GetVolumeId(); !contains(s.ids, id) {
				s.ids = append(s.ids, id)
			}
			s.mutex.Unlock()
		}
		err = failed
	case 2:
		_, err = call(t.controller.DeleteVolume, &csi.DeleteVolumeRequest{VolumeId: v.id})
	case 3, 4:
		err = v.tryStage(l.staging)
	case 5:
		_, err = call(t.node.NodePublishVolume, v.publishRequest(l.staging, l.target, false))
	case 6:
		_, err = call(t.node.NodeUnpublishVolume, &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: l.target})
	case 7:
		if t.has(staging) {
			_, err = call(t.node.NodeUnstageVolume, &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: l.staging})
		}
	}
	return err
}
