// Package driver is what both stand-ins know of a CSI driver: where its socket is, and how to answer for it by HTTP.
package driver

import (
	"net/http"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Dial prepares a connection to the driver's socket, which need not be there yet.
func Dial(address string) (*grpc.ClientConn, error) {
	target := "unix://" + strings.TrimPrefix(address, "unix://")
	return grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// ServeHealth answers GET /healthz with what check says, for ever. An empty address serves nothing.
func ServeHealth(address string, check func(*http.Request) error) error {
	if address == "" {
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := check(r); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte("ok"))
	})
	return http.ListenAndServe(address, mux)
}
