package contract

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// rpcTimeout is how long one call may take, as kubelet has it.
const rpcTimeout = 2 * time.Minute

// driver is the connection to the driver that is checked.
type driver struct {
	connection *grpc.ClientConn
	identity   csi.IdentityClient
	controller csi.ControllerClient
	node       csi.NodeClient
	groups     csi.GroupControllerClient
	metadata   csi.SnapshotMetadataClient
	// run makes the names of this run differ from those of all others.
	run   string
	count atomic.Int64

	mutex sync.Mutex
	// violations are broken rules that no spec has reported yet.
	violations []string
	// secret, unless empty, is put into each request that can carry secrets, and must not come back.
	secret string
}

func connect(endpoint string) (*driver, error) {
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	d := &driver{run: hex.EncodeToString(random[:])}
	connection, err := grpc.NewClient(endpoint,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(d.unary),
		grpc.WithStreamInterceptor(d.stream),
		// A driver that was killed is back soon.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond},
			MinConnectTimeout: time.Second,
		}),
	)
	if err != nil {
		return nil, err
	}
	d.connection = connection
	d.identity = csi.NewIdentityClient(connection)
	d.controller = csi.NewControllerClient(connection)
	d.node = csi.NewNodeClient(connection)
	d.groups = csi.NewGroupControllerClient(connection)
	d.metadata = csi.NewSnapshotMetadataClient(connection)
	return d, nil
}

// name makes a name that no other call of this run or of another one makes.
func (d *driver) name(about string) string {
	return fmt.Sprintf("contract %s %s %d", d.run, about, d.count.Add(1))
}

func (d *driver) unary(
	ctx context.Context, method string, request, reply any, connection *grpc.ClientConn, invoke grpc.UnaryInvoker,
	options ...grpc.CallOption,
) error {
	d.addSecrets(request)
	err := invoke(ctx, method, request, reply, connection, options...)
	d.look(method, reply, err)
	return err
}

func (d *driver) stream(
	ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string, open grpc.Streamer,
	options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	stream, err := open(ctx, description, connection, method, options...)
	if err != nil {
		d.look(method, nil, err)
		return nil, err
	}
	return &watchedStream{ClientStream: stream, driver: d, method: method}, nil
}

type watchedStream struct {
	grpc.ClientStream
	driver *driver
	method string
}

func (s *watchedStream) SendMsg(request any) error {
	s.driver.addSecrets(request)
	return s.ClientStream.SendMsg(request)
}

func (s *watchedStream) RecvMsg(reply any) error {
	err := s.ClientStream.RecvMsg(reply)
	if err != io.EOF {
		s.driver.look(s.method, reply, err)
	}
	return err
}

// look holds one reply to the rules that bind all of them.
func (d *driver) look(method string, reply any, err error) {
	var broken []string
	if err != nil {
		broken = brokenByError(err)
	} else if message, ok := reply.(proto.Message); ok {
		broken = brokenByReply(message)
	}
	d.mutex.Lock()
	defer d.mutex.Unlock()
	if d.secret != "" && strings.Contains(fmt.Sprint(reply, err), d.secret) {
		broken = append(broken, "a secret comes back in the answer")
	}
	for _, rule := range broken {
		d.violations = append(d.violations, method+": "+rule)
	}
}

// takeViolations returns the broken rules since the last call.
func (d *driver) takeViolations() []string {
	d.mutex.Lock()
	defer d.mutex.Unlock()
	taken := d.violations
	d.violations = nil
	return taken
}

// deadline is the time for one call, for those that are made by hand.
func (d *driver) deadline() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), rpcTimeout)
}

// call makes one call with a deadline of its own: a test's context ends before its cleanups run.
func call[Q, R any](rpc func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) (R, error) {
	ctx, cancel := context.WithTimeout(context.Background(), rpcTimeout)
	defer cancel()
	return rpc(ctx, request)
}

// insist repeats a call as a CO does for as long as the answer is that it may succeed later.
func insist[Q, R any](rpc func(context.Context, Q, ...grpc.CallOption) (R, error), request Q) (R, error) {
	for end := time.Now().Add(rpcTimeout); ; time.Sleep(10 * time.Millisecond) {
		reply, err := call(rpc, request)
		if !isPassing(err) || time.Now().After(end) {
			return reply, err
		}
	}
}

// isPassing says whether an error is one that goes away without anybody doing anything.
func isPassing(err error) bool {
	code := status.Code(err)
	return code == codes.Aborted || code == codes.Unavailable || code == codes.DeadlineExceeded
}
