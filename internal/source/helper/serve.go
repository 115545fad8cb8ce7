package helper

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// watchParent is how often a helper looks whether the engine is there.
const watchParent = time.Second

// An Opener makes the source that a helper serves, and owns credential. root
// is sealed.SourceHelper.Root.
type Opener func(cfg sealed.SourceConfig, root string, credential *secret.Value) (Source, error)

// Serve is the main of a helper. It returns when the engine has hung up, and
// ends the process when the engine is gone. A crash prints no stack, which
// could hold a value.
func Serve(open Opener) {
	debug.SetTraceback("none")
	go dieWithParent(os.Getppid())
	plugin.Serve(&plugin.ServeConfig{
		HandshakeConfig: handshake(),
		Plugins:         plugin.PluginSet{pluginName: &wire{server: &server{open: open}}},
		Logger:          hclog.NewNullLogger(),
		GRPCServer: func(opts []grpc.ServerOption) *grpc.Server {
			return grpc.NewServer(append(opts, grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))...)
		},
	})
}

// dieWithParent ends the process when another one has become its parent. The
// kernel does so at once where it can; this is for where it can't.
func dieWithParent(parent int) {
	for range time.Tick(watchParent) {
		if os.Getppid() != parent {
			os.Exit(1)
		}
	}
}

// A server holds the one source of a helper.
type server struct {
	open Opener

	mu     sync.Mutex
	source Source
}

// methods are those of the protocol.
func methods() map[string]func(*server, context.Context, request) (answer, error) {
	return map[string]func(*server, context.Context, request) (answer, error){
		"Configure": (*server).configure,
		"Health": with(func(ctx context.Context, s Source, _ request) (answer, error) {
			return answer{}, s.Check(ctx)
		}),
		"Prepare": with(func(ctx context.Context, s Source, r request) (answer, error) {
			handle, err := s.Prepare(ctx, r.Ref)
			return answer{Handle: handle}, err
		}),
		"Mint": with(mint),
		"Newest": with(func(ctx context.Context, s Source, r request) (answer, error) {
			v, err := s.Newest(ctx, r.Ref)
			return answer{Version: v}, err
		}),
		"Renew": with(func(ctx context.Context, s Source, r request) (answer, error) {
			ttl, err := s.Renew(ctx, r.Handle)
			return answer{TTL: ttl}, err
		}),
		"Revoke": with(func(ctx context.Context, s Source, r request) (answer, error) {
			return answer{}, s.Revoke(ctx, r.Handle)
		}),
	}
}

// with calls a method with the configured source.
func with(do func(context.Context, Source, request) (answer, error)) func(*server, context.Context, request) (answer, error) {
	return func(s *server, ctx context.Context, r request) (answer, error) {
		s.mu.Lock()
		src := s.source
		s.mu.Unlock()
		if src == nil {
			return answer{}, fmt.Errorf("the helper is not configured: %w", sealed.ErrUnavailable)
		}
		return do(ctx, src, r)
	}
}

func (s *server) configure(_ context.Context, r request) (answer, error) {
	credential := secret.New(r.Credential)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.source != nil {
		credential.Destroy()
		return answer{}, fmt.Errorf("the helper is configured already: %w", sealed.ErrUnavailable)
	}
	src, err := s.open(r.Config, r.Root, credential)
	if err != nil {
		credential.Destroy()
		return answer{}, err
	}
	s.source = src
	return answer{}, nil
}

func mint(ctx context.Context, s Source, r request) (out answer, err error) {
	m, err := s.Mint(ctx, r.Ref, r.Handle)
	if err != nil {
		return answer{}, err
	}
	defer m.Value.Destroy()
	out = answer{Handle: m.Handle, TTL: m.TTL, Max: m.Max, Version: m.Version}
	return out, m.Value.Reveal(func(b []byte) error {
		out.Value = append([]byte(nil), b...)
		return nil
	})
}
