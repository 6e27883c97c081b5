package sanity

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// keeper runs the driver and starts it again when it was killed, as a node does.
type keeper struct {
	mutex    sync.Mutex
	current  *driver
	stopping bool
	// kills is how often the driver was killed, and failed why it could not be started again.
	kills  int
	failed error
	// done is closed when nothing is started any more.
	done chan struct{}
}

// startDriver launches the driver and waits until it is ready.
func startDriver(ctx context.Context, binary, dir, poolPath string, flags ...string) (*keeper, error) {
	launch := func() (*driver, error) { return launchDriver(binary, dir, poolPath, flags) }
	k := &keeper{done: make(chan struct{})}
	launched := make(chan error, 1)
	go func() {
		// Each driver ends with the thread that started it, so this one stays until the last is gone.
		runtime.LockOSThread()
		defer close(k.done)
		d, err := launch()
		k.current = d
		launched <- err
		if err == nil {
			k.watch(launch)
		}
	}()
	if err := <-launched; err != nil {
		return nil, err
	}
	if err := k.current.waitReady(ctx); err != nil {
		k.kill()
		return nil, err
	}
	return k, nil
}

// watch starts the driver again each time it was killed.
func (k *keeper) watch(launch func() (*driver, error)) {
	for {
		<-k.current.ended
		k.mutex.Lock()
		again := !k.stopping && wasKilled(k.current.outcome)
		if again {
			k.kills++
			// Whoever killed it waits until it is ready, or kills it again before that.
			d, err := launch()
			if err == nil {
				k.current = d
			} else {
				k.failed = fmt.Errorf("start the driver again after it was killed: %w", err)
				again = false
			}
		}
		k.mutex.Unlock()
		if !again {
			return
		}
	}
}

func wasKilled(outcome error) bool {
	var exit *exec.ExitError
	if !errors.As(outcome, &exit) {
		return false
	}
	status, known := exit.Sys().(syscall.WaitStatus)
	return known && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// stop asks the driver to end and returns an error unless it does so in time and with success, or
// if it could not be kept running before.
func (k *keeper) stop() error {
	d, failed := k.last()
	if failed != nil {
		return failed
	}
	err := d.stop()
	<-k.done
	return err
}

// kill ends the driver at once; it does nothing if the driver has ended.
func (k *keeper) kill() {
	d, _ := k.last()
	d.kill()
	<-k.done
}

// last lets nothing be started any more.
func (k *keeper) last() (*driver, error) {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	k.stopping = true
	return k.current, k.failed
}

// killed returns how often the driver was killed.
func (k *keeper) killed() int {
	k.mutex.Lock()
	defer k.mutex.Unlock()
	return k.kills
}
