package sandboxinit

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sandboxinit/proxy"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/workspace"
)

// Version is what init reports of itself in the claim.
const Version = "0.1.0"

// openProxy starts the delivery proxy on a loopback port of the sandbox and
// writes the run's CA, together with the upstream roots, for the agent.
func (r *runner) openProxy(ctx context.Context, token string) error {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(r.trust.UpstreamRoots)) {
		return fmt.Errorf("reading trust file: upstream_roots holds no certificate: %w", sealed.ErrInvalid)
	}
	a := r.session.answer
	control := &requests{keys: r.keys, pending: map[sealed.KeyName]sealed.ApprovalID{}}
	p, err := proxy.New(proxy.Config{
		Dial: r.relay.Dial, Roots: roots, Network: a.Network, Allow: a.Allow, Set: r.set,
		Event: func(typ, key, detail string) {
			r.events.add(sealed.RunEvent{Type: typ, Key: sealed.KeyName(key), Detail: detail})
		},
		Redacted: r.traffic.add, Control: control.handler(), ControlToken: token, Hosts: boundHosts(a.Keys),
	})
	if err != nil {
		return err
	}
	if r.port, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
		return fmt.Errorf("opening the proxy: %w", err)
	}
	r.proxy = p
	go func() {
		if err := p.Serve(ctx, r.port); err != nil && ctx.Err() == nil {
			r.abort("the proxy has stopped")
		}
	}()
	ca := append(append([]byte{}, p.CA()...), r.trust.UpstreamRoots...)
	if err := os.WriteFile(caFile, ca, 0o444); err != nil {
		return fmt.Errorf("writing the run's CA: %w", err)
	}
	return nil
}

// boundHosts lists the hosts of every key that this run may come to use, so
// that the run's CA can be constrained to them.
func boundHosts(keys []sealed.ClaimKey) []string {
	var out []string
	for _, k := range keys {
		for _, b := range k.Bindings {
			out = append(out, b.HostPort())
		}
	}
	return out
}

// finish does step 9: nothing of the agent runs any more when the workspace
// is scanned and the record is signed. What could not be reported or given
// back is a warning in the record, not a failure of the run: the engine ends
// grants, leases and token by itself once the record is in.
func (r *runner) finish(ctx context.Context, status int, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	killAll()
	if err := r.agent.drain(drainLimit); err != nil { // the streams are closed all the same
		r.warnings = append(r.warnings, sealed.CleanReason(err.Error()))
	}
	rec := &recorder{
		session: r.session, measured: r.measured, logKey: r.trust.LogKey, started: r.started,
		grants: r.keys.close(), exit: status, reason: reason, subjects: map[string]string{}, input: r.input.digest,
	}
	rec.counts = slices.Concat(r.input.counts, r.stdout.w.Counts(), r.stderr.w.Counts(), r.traffic.all())
	for _, c := range rec.counts {
		r.events.add(r.hit(c))
	}
	flagged := r.scanWorkspace(rec)
	r.masks = r.lookBack(rec, lookTime, func(stream string) look { return lookWith(r.set, stream) })
	r.events.settle()
	if err := r.events.flush(ctx); err != nil {
		r.warnings = append(r.warnings, "events not reported: "+sealed.CleanReason(err.Error()))
	}
	rec.warnings = r.warnings
	record, err := rec.sign(ctx)
	if err == nil {
		err = r.session.finish(ctx, record, status)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("finishing run: %w", err), r.session.engine.revokeToken(ctx))
	}
	_ = r.session.engine.revokeToken(ctx) // it is periodic: unused, it ends by itself
	msg := sealed.RelayControl{Type: "finished", Exit: status, Message: reason, Record: string(record), Digests: rec.subjects, Quarantine: flagged, Masks: r.masks}
	// What lies in this process when it exits is lost: wait until it was read.
	return errors.Join(r.control.Send(msg), r.relay.Flush(ctx))
}

// hit makes the event of a redaction. What is ours (ticket, token,
// placeholders) is no key of the run: its label goes into the detail.
func (r *runner) hit(c redact.Count) sealed.RunEvent {
	e := sealed.RunEvent{Type: "redact.hit", Key: sealed.KeyName(c.Key), Detail: string(c.Form), Stream: c.Stream, Count: c.N}
	if _, ok := r.keys.find(e.Key); !ok {
		e.Key, e.Detail = "", c.Key+" "+string(c.Form)
	}
	return e
}

// scanWorkspace looks for values in the files that would go back to the host,
// and removes what holds one: no copy of a value stays on the host's disk. It
// returns the paths, so that their absence is not taken for a deletion. A scan
// that fails keeps everything from the host: fail closed.
func (r *runner) scanWorkspace(rec *recorder) []string {
	counts := map[redact.Count]int{}
	hits, err := workspace.Scan(workspaceDir, func(src io.Reader) (bool, error) {
		found, bad, err := scanContent(src, r.set)
		for _, c := range found {
			n := c.N
			c.N, c.Stream = 0, "workspace"
			counts[c] += n
		}
		return bad, err
	})
	for c, n := range counts {
		c.N = n
		rec.counts = append(rec.counts, c)
	}
	if err != nil {
		r.warnings = append(r.warnings, "workspace could not be scanned: "+sealed.CleanReason(err.Error()))
		return []string{"."}
	}
	flagged := r.removeHits(hits)
	if d, err := workspace.Digest(workspaceDir); err == nil {
		rec.subjects["workspace"] = string(d)
	}
	return flagged
}

// removeHits deletes flagged files. A path whose name holds a value is not
// told to the host; its parent is.
func (r *runner) removeHits(hits []string) []string {
	var flagged []string
	for _, h := range hits {
		r.events.add(sealed.RunEvent{Type: "workspace.quarantined", Detail: "value"})
		if err := os.RemoveAll(filepath.Join(workspaceDir, h)); err != nil {
			return []string{"."}
		}
		for string(redact.Bytes([]byte(h), r.set)) != h {
			h = path.Dir(h)
		}
		if !slices.Contains(flagged, h) {
			flagged = append(flagged, h)
		}
	}
	return flagged
}

// abandon ends a claimed run whose agent never started: grants and token are
// given back, the engine closes the run.
func (r *runner) abandon(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	if r.keys != nil && r.proxy != nil {
		r.keys.close()
	}
	rec := &recorder{
		session: r.session, measured: r.measured, logKey: r.trust.LogKey, started: r.started,
		exit: exitStatus(cause), reason: "failed to start", subjects: map[string]string{}, warnings: r.warnings,
		input: r.input.digest, counts: r.input.counts,
	}
	if r.keys != nil {
		rec.grants = r.keys.history
	}
	record, err := rec.sign(ctx)
	if err == nil {
		err = r.session.finish(ctx, record, rec.exit)
	}
	return errors.Join(err, r.session.engine.revokeToken(ctx))
}
