// Command csi-node-driver-registrar stands in for the official sidecar of that name, which is no Go module: it tells
// kubelet of a driver's socket. For tests only.
package main

import (
	"context"
	"errors"
	"flag"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"orlop/e2e/standins/driver"
)

var (
	csiAddress       = flag.String("csi-address", "/run/csi/socket", "the driver's socket in this container")
	registrationPath = flag.String("kubelet-registration-path", "", "the driver's socket as kubelet sees it")
	registrationDir  = flag.String("plugin-registration-path", "/registration", "where kubelet looks for plugins")
	timeout          = flag.Duration("timeout", time.Second, "how long the driver may take for an answer")
	httpEndpoint     = flag.String("http-endpoint", "", "address for /healthz")
	_                = flag.Int("v", 0, "ignored: the official one's verbosity")
)

// registrar is what kubelet asks when it finds the socket.
type registrar struct {
	registration.UnimplementedRegistrationServer
	name string
}

func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: "CSIPlugin", Name: r.name, Endpoint: *registrationPath, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (r *registrar) NotifyRegistrationStatus(
	_ context.Context, status *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	if !status.GetPluginRegistered() {
		// A new start is a new try.
		log.Fatalf("kubelet did not register %s: %s", r.name, status.GetError())
	}
	log.Printf("kubelet has registered %s", r.name)
	return &registration.RegistrationStatusResponse{}, nil
}

func main() {
	flag.Parse()
	if *registrationPath == "" {
		log.Fatal("--kubelet-registration-path is missing")
	}
	name := driverName()
	socket := filepath.Join(*registrationDir, name+"-reg.sock")
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		err := driver.ServeHealth(*httpEndpoint, func(*http.Request) error { _, err := os.Stat(socket); return err })
		if err != nil {
			log.Fatal(err)
		}
	}()
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, &registrar{name: name})
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() { <-stop; server.Stop() }()
	if err := server.Serve(listener); err != nil {
		log.Fatal(err)
	}
}

// driverName asks until the driver answers.
func driverName() string {
	connection, err := driver.Dial(*csiAddress)
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	for {
		ctx, cancel := context.WithTimeout(context.Background(), *timeout)
		info, err := csi.NewIdentityClient(connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
		cancel()
		if err == nil {
			return info.GetName()
		}
		log.Printf("the driver does not answer at %s yet: %v", *csiAddress, err)
		time.Sleep(time.Second)
	}
}
