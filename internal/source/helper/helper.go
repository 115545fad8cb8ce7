package helper

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

const (
	idleAfter    = time.Minute // without a call, the process ends
	crashSpacing = time.Minute // between two starts after a crash
)

// A Helped is a source in a helper process, which runs while it is used. It is
// safe for concurrent use.
type Helped struct {
	cfg        sealed.SourceConfig
	helper     sealed.SourceHelper
	sum        []byte
	program    string
	credential *secret.Value
	now        func() time.Time
	idle       time.Duration

	mu       sync.Mutex // held while a process starts
	current  *process
	calls    int // under way
	stopping *time.Timer
	crashed  time.Time // the last start after a crash
}

// Open makes a source that lives in the program at the path, and takes
// ownership of credential. It starts nothing. The error matches
// sealed.ErrInvalid.
func Open(cfg sealed.SourceConfig, helper sealed.SourceHelper, program string, credential *secret.Value) (*Helped, error) {
	sum, err := hex.DecodeString(helper.SHA256)
	if err != nil || len(sum) != 32 {
		return nil, fmt.Errorf("opening source %s: %w", cfg.Name, &sealed.FieldError{Field: "source_helpers", Reason: "wants a SHA-256 in hex"})
	}
	return &Helped{cfg: cfg, helper: helper, sum: sum, program: program, credential: credential, now: time.Now, idle: idleAfter}, nil
}

// Prepare implements the engine's Source.
func (h *Helped) Prepare(ctx context.Context, ref sealed.KeyRef) (string, error) {
	out, err := h.call(ctx, "Prepare", request{Ref: ref})
	return out.Handle, err
}

// Mint implements the engine's Source. Every error matches
// sealed.ErrUnavailable or sealed.ErrInvalid.
func (h *Helped) Mint(ctx context.Context, ref sealed.KeyRef, handle string) (source.Minted, error) {
	out, err := h.call(ctx, "Mint", request{Ref: ref, Handle: handle})
	if err != nil {
		return source.Minted{}, err
	}
	if len(out.Value) == 0 {
		return source.Minted{}, fmt.Errorf("calling the helper: it gave no value: %w", sealed.ErrUnavailable)
	}
	return source.Minted{Value: secret.New(out.Value), Handle: out.Handle, TTL: out.TTL, Max: out.Max, Version: out.Version}, nil
}

// Newest implements the engine's Versioned.
func (h *Helped) Newest(ctx context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error) {
	out, err := h.call(ctx, "Newest", request{Ref: ref})
	if err != nil {
		return "", err
	}
	return out.Version, nil
}

// Renew implements the engine's Renewer.
func (h *Helped) Renew(ctx context.Context, handle string) (time.Duration, error) {
	out, err := h.call(ctx, "Renew", request{Handle: handle})
	return out.TTL, err
}

// Revoke implements the engine's Source. Where nothing can be revoked it does
// not start the helper.
func (h *Helped) Revoke(ctx context.Context, handle string) error {
	if handle == "" || !h.Revocable() {
		return nil
	}
	_, err := h.call(ctx, "Revoke", request{Handle: handle})
	return err
}

// Check reports whether the helper starts and its source can be used.
func (h *Helped) Check(ctx context.Context) error {
	_, err := h.call(ctx, "Health", request{})
	return err
}

// Keep does nothing: a helper logs in when it is called.
func (*Helped) Keep(context.Context) error { return nil }

// Revocable is what the type of the source says.
func (h *Helped) Revocable() bool { return h.cfg.Revocable() }

// Close ends the process, if there is one. The source can be used again.
func (h *Helped) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stop()
}

// call makes one call to a running helper.
func (h *Helped) call(ctx context.Context, method string, r request) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, source.Timeout)
	defer cancel()
	p, err := h.begin(ctx)
	if err != nil {
		return answer{}, err
	}
	out, err := p.call(ctx, method, r)
	h.end(p, err)
	if err != nil {
		return answer{}, fromStatus(err)
	}
	if out.Version.Validate("version") != nil {
		clear(out.Value)
		return answer{}, fmt.Errorf("calling the helper: malformed version: %w", sealed.ErrUnavailable)
	}
	return out, nil
}

// begin returns a process that runs, and counts the call.
func (h *Helped) begin(ctx context.Context) (*process, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopping != nil {
		h.stopping.Stop()
	}
	if h.current != nil && h.current.exited() {
		h.stop()
		if !h.crashed.IsZero() && h.now().Sub(h.crashed) < crashSpacing {
			return nil, fmt.Errorf("starting the helper: it crashed again: %w", sealed.ErrUnavailable)
		}
		h.crashed = h.now()
	}
	if h.current == nil {
		p, err := startProcess(h.program, h.sum)
		if err != nil {
			return nil, err
		}
		if err := h.configure(ctx, p); err != nil {
			p.kill()
			return nil, err
		}
		h.current = p
	}
	h.calls++
	return h.current, nil
}

// configure sends the configuration and the login to a new process.
func (h *Helped) configure(ctx context.Context, p *process) error {
	return h.credential.Reveal(func(b []byte) error {
		if _, err := p.call(ctx, "Configure", request{Config: h.cfg, Root: h.helper.Root, Credential: b}); err != nil {
			return fmt.Errorf("configuring the helper: %w", fromStatus(err))
		}
		return nil
	})
}

// end counts a call as over. A helper that let the time run out is killed: it
// would have answered before that had it been alive.
func (h *Helped) end(p *process, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls--
	if status.Code(err) == codes.DeadlineExceeded && h.current == p {
		h.stop()
	}
	if h.calls > 0 {
		return
	}
	h.stopping = time.AfterFunc(h.idle, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.calls == 0 {
			h.stop()
		}
	})
}

// stop ends the process. The caller holds mu.
func (h *Helped) stop() {
	if h.current != nil {
		go h.current.kill()
		h.current = nil
	}
}

// encode is apart so that its bytes can be wiped.
func encode(r request) ([]byte, error) {
	doc, err := json.Marshal(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "malformed request")
	}
	return doc, nil
}
