// Command livenessprobe stands in for the official sidecar of that name, which is no Go module: it answers kubelet's
// HTTP probe with what the driver's Probe says. For tests only.
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"orlop/e2e/standins/driver"
)

var (
	csiAddress   = flag.String("csi-address", "/run/csi/socket", "the driver's socket in this container")
	healthPort   = flag.String("health-port", "9808", "port for /healthz")
	httpEndpoint = flag.String("http-endpoint", "", "address for /healthz, instead of --health-port")
	timeout      = flag.Duration("probe-timeout", time.Second, "how long the driver may take for an answer")
	_            = flag.Int("v", 0, "ignored: the official one's verbosity")
)

func main() {
	flag.Parse()
	connection, err := driver.Dial(*csiAddress)
	if err != nil {
		log.Fatal(err)
	}
	address := *httpEndpoint
	if address == "" {
		address = net.JoinHostPort("", *healthPort)
	}
	identity := csi.NewIdentityClient(connection)
	log.Fatal(driver.ServeHealth(address, func(r *http.Request) error {
		ctx, cancel := context.WithTimeout(r.Context(), *timeout)
		defer cancel()
		answer, err := identity.Probe(ctx, &csi.ProbeRequest{})
		if err == nil && answer.GetReady() != nil && !answer.GetReady().GetValue() {
			err = errors.New("the driver is not ready")
		}
		return err
	}))
}
