// Package helper runs a kind of source in a process of its own.
//
// # Idea
//
// Cloud SDKs link a hundred modules that the engine must not carry: they would
// run beside every credential of the mount. So such a source is a small program
// beside the plug-in, and this package is both ends of the line to it: Open in
// the engine, Serve in the program.
//
// # Protocol
//
// HashiCorp's go-plugin over gRPC on a Unix socket in a private directory, with
// mutual TLS between exactly these two processes (AutoMTLS). One service,
// sealed.source.v1.Helper, has the methods Configure, Health, Prepare, Mint,
// Newest, Renew and Revoke; each takes and returns a google.protobuf.BytesValue that
// holds JSON (request, answer). Configure comes first, once per process, with
// the source's login.
//
// # Guarantee
//
// The program is the file whose SHA-256 the engine's configuration names: it is
// executed from the very descriptor that was hashed. It gets an environment
// from scratch. It dies with the engine, when it was idle for a minute, and
// when it does not answer in time. A call is 3 s, an answer at most 2 MiB. One
// process serves one source of one mount. A process that crashed is started
// again at the next call, once a minute at most; a call is never made twice.
//
// # What it does not guarantee
//
// The program is trusted with the values of its source: the pin says which
// program it is, not that it is good. It runs under the engine's uid. Where
// there is no /proc the file is executed by its path.
package helper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/source"
)

const (
	serviceName = "sealed.source.v1.Helper"
	pluginName  = "source"
	maxMessage  = 2 << 20
	// A helper gives up this long before the engine does, so that an engine
	// that waits to the end knows that the helper itself hangs.
	headStart = 200 * time.Millisecond
)

// handshake is no secret: it keeps people from starting a helper by hand.
func handshake() plugin.HandshakeConfig {
	return plugin.HandshakeConfig{ProtocolVersion: 1, MagicCookieKey: "SEALED_SOURCE_HELPER", MagicCookieValue: "7f0e1c5b"}
}

// A request is what every method takes.
type request struct {
	Config     sealed.SourceConfig `json:"config,omitzero"`
	Root       string              `json:"root,omitempty"`
	Credential []byte              `json:"credential,omitempty"`
	Ref        sealed.KeyRef       `json:"ref,omitzero"`
	Handle     string              `json:"handle,omitempty"`
}

// An answer is what every method returns.
type answer struct {
	Handle string        `json:"handle,omitempty"`
	Value  []byte        `json:"value,omitempty"`
	TTL    time.Duration `json:"ttl,omitempty"`
	Max    time.Duration `json:"max,omitempty"`
	// Version is of the value, or the newest.
	Version sealed.SourceVersion `json:"version,omitempty"`
}

// A Source is what a helper serves.
type Source interface {
	Prepare(ctx context.Context, ref sealed.KeyRef) (handle string, err error)
	Mint(ctx context.Context, ref sealed.KeyRef, handle string) (source.Minted, error)
	// Newest is the newest version, or the one that ref pins; none: not told.
	Newest(ctx context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error)
	Renew(ctx context.Context, handle string) (time.Duration, error)
	Revoke(ctx context.Context, handle string) error
	Check(ctx context.Context) error
}

// toStatus turns a source's error into one for the line. Its text is ours: a
// source never repeats what an upstream said.
func toStatus(err error) error {
	code := codes.Unavailable
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sealed.ErrInvalid):
		code = codes.InvalidArgument
	case errors.Is(err, sealed.ErrNotFound):
		code = codes.NotFound
	case !errors.Is(err, sealed.ErrUnavailable):
		return status.Error(codes.Internal, "the helper failed")
	}
	return status.Error(code, err.Error())
}

// fromStatus turns what came over the line into an error of the engine.
func fromStatus(err error) error {
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("calling the helper: %w", sealed.ErrUnavailable)
	}
	text := sealed.CleanReason(st.Message())
	switch st.Code() {
	case codes.InvalidArgument:
		return fmt.Errorf("%s: %w", text, sealed.ErrInvalid)
	case codes.NotFound:
		return fmt.Errorf("%s: %w: %w", text, sealed.ErrNotFound, sealed.ErrUnavailable)
	case codes.DeadlineExceeded:
		return fmt.Errorf("calling the helper: timed out: %w", sealed.ErrUnavailable)
	case codes.Canceled:
		return fmt.Errorf("calling the helper: canceled: %w", sealed.ErrUnavailable)
	case codes.Unavailable:
		return fmt.Errorf("%s: %w", text, sealed.ErrUnavailable)
	}
	return fmt.Errorf("calling the helper: it failed: %w", sealed.ErrUnavailable)
}

// wire joins the two ends in go-plugin's terms. The engine's end has no server.
type wire struct {
	plugin.NetRPCUnsupportedPlugin
	server *server
}

func (w *wire) GRPCServer(_ *plugin.GRPCBroker, s *grpc.Server) error {
	s.RegisterService(service(), w.server)
	return nil
}

func (w *wire) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

// service describes the methods to gRPC.
func service() *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: serviceName, HandlerType: (*any)(nil)}
	for name, method := range methods() {
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: name, Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in wrapperspb.BytesValue
			if err := dec(&in); err != nil {
				return nil, err
			}
			defer clear(in.Value)
			var req request
			if json.Unmarshal(in.Value, &req) != nil {
				return nil, status.Error(codes.InvalidArgument, "malformed request")
			}
			if d, ok := ctx.Deadline(); ok {
				var cancel context.CancelFunc
				ctx, cancel = context.WithDeadline(ctx, d.Add(-headStart))
				defer cancel()
			}
			out, err := method(srv.(*server), ctx, req)
			if err != nil {
				return nil, toStatus(err)
			}
			defer clear(out.Value)
			doc, err := json.Marshal(out)
			if err != nil {
				return nil, status.Error(codes.Internal, "the helper failed")
			}
			return wrapperspb.Bytes(doc), nil
		}})
	}
	return desc
}
