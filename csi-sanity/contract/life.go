package contract

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
)

// life is a volume from its creation to its end, as one of many callers has it. It says what went
// wrong instead of ending the spec.
type life struct {
	t               *T
	request         *csi.CreateVolumeRequest
	staging, target string
	// repeat makes calls until they are through, instead of once.
	repeat bool
	// begins is the seed of what is in the volume from the beginning, if something is.
	begins string
}

func (t *T) newLife(about string) *life {
	t.Helper()
	l := &life{t: t, request: t.request(about), staging: t.path("staging"), target: t.path("target")}
	if t.has(staging) {
		t.mkdir(l.staging)
	}
	return l
}

// step makes one call of a life.
func step[Q, R any](l *life, rpc func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) (R, error) {
	if l.repeat {
		return insist(rpc, request)
	}
	return call(rpc, request)
}

// run lives the life.
func (l *life) run() error {
	made, err := step(l, l.t.controller.CreateVolume, l.request)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	v := &volume{
		t: l.t, id: made.GetVolume().GetVolumeId(), context: made.GetVolume().GetVolumeContext(),
		capability: l.request.GetVolumeCapabilities()[0],
	}
	err = l.use(v)
	if err == nil {
		err = l.fill(v.id)
	}
	return errors.Join(err, v.withdraw(), v.delete())
}

// use attaches, stages and publishes the volume.
func (l *life) use(v *volume) error {
	t := l.t
	if t.has(attachments) {
		reply, err := step(l, t.controller.ControllerPublishVolume, v.attachRequest())
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		v.attachedWith(reply)
	}
	if t.has(staging) {
		v.stagings = []string{l.staging}
		// The driver may have removed it at the end of a life before this one.
		if err := os.MkdirAll(l.staging, 0o700); err != nil {
			return err
		}
		if _, err := step(l, t.node.NodeStageVolume, v.stageRequest(l.staging)); err != nil {
			return fmt.Errorf("stage: %w", err)
		}
	}
	v.targets = []string{l.target}
	if _, err := step(l, t.node.NodePublishVolume, v.publishRequest(l.staging, l.target, false)); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// fill looks at what is in the volume, and writes something of its own.
func (l *life) fill(seed string) error {
	if l.begins != "" {
		if err := l.t.tryCheck(l.target, l.begins); err != nil {
			return fmt.Errorf("check what it begins with: %w", err)
		}
	}
	if err := l.t.tryWrite(l.target, seed); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if err := l.t.tryCheck(l.target, seed); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	return nil
}
