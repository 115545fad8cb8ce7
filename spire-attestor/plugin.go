package spireattestor

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	workloadattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sealed.dev/sealed/internal/sealed"
)

var _ pluginsdk.NeedsLogger = (*Plugin)(nil)

// Plugin is the Attestor as a SPIRE agent plugin. The zero value is ready to
// be served; it attests nothing until it is configured. The SPIRE agent must
// run in the host's pid namespace, and as root unless allow_user_init is set.
type Plugin struct {
	workloadattestorv1.UnimplementedWorkloadAttestorServer
	configv1.UnimplementedConfigServer

	log hclog.Logger

	mu       sync.Mutex
	attestor *Attestor
	socket   string
	stop     func() // ends the registry on socket and waits for it
}

// SetLogger is called by SPIRE's plugin framework before anything else.
func (p *Plugin) SetLogger(log hclog.Logger) { p.log = log }

// Attest answers with the selectors of a process, with none for a process that
// is in no sandbox, and with PermissionDenied for one that is and must not
// have an identity. SPIRE logs the latter and goes on with the selectors of
// other plugins, so every entry of Sealed's must require one of these.
func (p *Plugin) Attest(ctx context.Context, req *workloadattestorv1.AttestRequest) (*workloadattestorv1.AttestResponse, error) {
	p.mu.Lock()
	a := p.attestor
	p.mu.Unlock()
	if a == nil {
		return nil, status.Error(codes.FailedPrecondition, "not configured")
	}
	selectors, err := a.Attest(ctx, int(req.Pid))
	if err != nil {
		return nil, grpcError(err)
	}
	return &workloadattestorv1.AttestResponse{SelectorValues: selectors}, nil
}

// Validate checks a configuration without applying it.
func (p *Plugin) Validate(_ context.Context, req *configv1.ValidateRequest) (*configv1.ValidateResponse, error) {
	if _, err := ParseConfig(req.HclConfiguration); err != nil {
		return &configv1.ValidateResponse{Valid: false, Notes: []string{err.Error()}}, nil
	}
	return &configv1.ValidateResponse{Valid: true}, nil
}

// Configure applies a configuration. A refused one leaves the old in force. A
// second one keeps the sandboxes that are registered, unless the socket moves:
// then they are dropped.
func (p *Plugin) Configure(_ context.Context, req *configv1.ConfigureRequest) (*configv1.ConfigureResponse, error) {
	cfg, err := ParseConfig(req.HclConfiguration)
	if err != nil {
		return nil, grpcError(err)
	}
	if p.log != nil {
		cfg.Log = slog.New(hclogHandler{log: p.log})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.attestor == nil {
		if p.attestor, err = New(cfg); err != nil {
			return nil, grpcError(err)
		}
	}
	if cfg.RegistrySocket != p.socket {
		if err := p.listen(cfg); err != nil {
			return nil, grpcError(err)
		}
	}
	if err := p.attestor.Reconfigure(cfg); err != nil {
		return nil, grpcError(err)
	}
	return &configv1.ConfigureResponse{}, nil
}

// listen moves the registry to cfg's socket; the caller holds p.mu.
func (p *Plugin) listen(cfg Config) error {
	l, err := ListenRegistry(cfg.RegistrySocket)
	if err != nil {
		return err
	}
	if p.stop != nil {
		p.stop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	a := p.attestor
	go func() {
		defer close(done)
		if err := a.Serve(ctx, l); err != nil {
			a.config().Log.Error("registry ended", "error", err)
		}
	}()
	p.socket = cfg.RegistrySocket
	p.stop = func() { cancel(); <-done }
	return nil
}

// grpcError is the one mapping of errors at the plugin's edge.
func grpcError(err error) error {
	switch {
	case errors.Is(err, sealed.ErrDenied):
		return status.Error(codes.PermissionDenied, err.Error())
	case errors.Is(err, sealed.ErrInvalid):
		return status.Error(codes.InvalidArgument, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}

// hclogHandler hands slog records to the logger that SPIRE provides.
type hclogHandler struct {
	log   hclog.Logger
	attrs []any
}

func (h hclogHandler) Enabled(_ context.Context, l slog.Level) bool {
	return h.log.GetLevel() <= hclogLevel(l)
}

func (h hclogHandler) Handle(_ context.Context, r slog.Record) error {
	args := slices.Clone(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		args = append(args, a.Key, a.Value.Resolve().String())
		return true
	})
	h.log.Log(hclogLevel(r.Level), r.Message, args...)
	return nil
}

func (h hclogHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	args := slices.Clone(h.attrs)
	for _, a := range attrs {
		args = append(args, a.Key, a.Value.Resolve().String())
	}
	return hclogHandler{log: h.log, attrs: args}
}

// WithGroup flattens: this package uses no groups.
func (h hclogHandler) WithGroup(string) slog.Handler { return h }

func hclogLevel(l slog.Level) hclog.Level {
	switch {
	case l < slog.LevelInfo:
		return hclog.Debug
	case l < slog.LevelWarn:
		return hclog.Info
	case l < slog.LevelError:
		return hclog.Warn
	}
	return hclog.Error
}
