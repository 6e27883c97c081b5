package sanity

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// nodeID is the name of the node that the driver runs on.
const nodeID = "n1"

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 30 * time.Second
)

// driver is a running Orlop.
type driver struct {
	dir     string
	command *exec.Cmd
	// ended is closed when the process has ended; outcome is then how.
	ended   chan struct{}
	outcome error
}

func endpoint(dir string) string  { return "unix://" + filepath.Join(dir, "csi.sock") }
func driverLog(dir string) string { return filepath.Join(dir, "driver.log") }

// launchDriver starts the binary the way the quick start does. It has to be called from the thread
// that lives as long as the driver shall: the kernel ends the driver with it.
func launchDriver(binary, dir, poolPath string, flags []string) (*driver, error) {
	// It may be another start in the same run.
	log, err := os.OpenFile(driverLog(dir), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	poolFlags, err := poolFlags(dir, poolPath)
	if err != nil {
		return nil, err
	}
	arguments := append([]string{"serve",
		"--endpoint", endpoint(dir),
		"--node-id", nodeID,
		"--init-pools",
		"--root-dir", filepath.Join(dir, "root")}, append(poolFlags, flags...)...)
	command := exec.Command(binary, arguments...)
	command.Stdout, command.Stderr = log, log
	command.Env = cleanEnvironment(os.Environ())
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, err
	}
	d := &driver{dir: dir, command: command, ended: make(chan struct{})}
	go func() {
		d.outcome = command.Wait()
		close(d.ended)
	}()
	return d, nil
}

// poolFlags name the pool. One on the machine's own filesystem keeps nothing back: how full that is must
// not decide about a test.
func poolFlags(dir, poolPath string) ([]string, error) {
	if _, err := os.Stat(poolImage(dir)); err == nil {
		return []string{"--pool", "default=" + poolPath}, nil
	}
	file := filepath.Join(dir, "orlop.toml")
	text := fmt.Sprintf("[[pool]]\nname = \"default\"\npath = %q\nreserve = \"0\"\n", poolPath)
	return []string{"--config", file}, os.WriteFile(file, []byte(text), 0o600)
}

// cleanEnvironment drops what the driver would take for its own settings.
func cleanEnvironment(environment []string) []string {
	var kept []string
	for _, variable := range environment {
		if !strings.HasPrefix(variable, "ORLOP_") && !strings.HasPrefix(variable, "CSI_") {
			kept = append(kept, variable)
		}
	}
	return kept
}

func (d *driver) waitReady(ctx context.Context) error {
	connection, err := grpc.NewClient(endpoint(d.dir), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	identity := csi.NewIdentityClient(connection)
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		answer, err := probe(ctx, identity)
		if err == nil && (answer.GetReady() == nil || answer.GetReady().GetValue()) {
			return nil
		}
		select {
		case <-d.ended:
			return fmt.Errorf("the driver ended before it was ready: %w", errorOf(d.outcome))
		case <-ctx.Done():
			return fmt.Errorf("the driver is not ready after %s; the last answer was %v, %v", startTimeout, answer, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func probe(ctx context.Context, identity csi.IdentityClient) (*csi.ProbeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return identity.Probe(ctx, &csi.ProbeRequest{})
}

// stop asks the driver to end and returns an error unless it does so in time and with success.
func (d *driver) stop() error {
	select {
	case <-d.ended:
		return fmt.Errorf("the driver ended by itself: %w", errorOf(d.outcome))
	default:
	}
	if err := d.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.ended:
		if d.outcome != nil {
			return fmt.Errorf("after SIGTERM the driver ended with: %w", d.outcome)
		}
		return nil
	case <-time.After(stopTimeout):
		d.kill()
		return fmt.Errorf("the driver was still running %s after SIGTERM", stopTimeout)
	}
}

// kill ends the driver at once; it does nothing if the driver has ended.
func (d *driver) kill() {
	_ = d.command.Process.Kill()
	<-d.ended
}

func errorOf(outcome error) error {
	if outcome == nil {
		return errors.New("exit code 0")
	}
	return outcome
}
