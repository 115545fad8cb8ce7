package proxy

import (
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// A refusal is why a request is not forwarded.
type refusal struct {
	event, detail string
	status        int
	msg           string
}

// An exchange is one request on its way through the checks.
type exchange struct {
	r          *http.Request
	path       string  // canonical
	candidates []*live // bindings of the host or endpoint
	chosen     *live
	query      string
	holds      func(text string) bool // whether text holds a value or something of ours
}

// A check refuses a request or lets it pass. They run in order; each may
// rely on the ones before.
type check struct {
	name string
	run  func(*exchange) *refusal
}

// requestChecks are the plan of the proxy. A test switches one off by name to
// show that its attack then succeeds.
func requestChecks() []check {
	return []check{
		{"shape", checkShape},
		{"binding", checkBinding},
		{"mint", checkMint},
		{"foreign", checkForeign},
		{"value", checkValue},
	}
}

// checkShape refuses what can't be rebuilt safely.
func checkShape(x *exchange) *refusal {
	if x.r.Header.Get("Upgrade") != "" {
		return &refusal{EventDenied, "upgrade", http.StatusForbidden, "protocol upgrades are not forwarded"}
	}
	if x.r.Method == http.MethodTrace || x.r.Method == http.MethodConnect {
		return &refusal{EventDenied, "method", http.StatusForbidden, "this method is not forwarded"}
	}
	if len(x.r.TransferEncoding) > 0 && !slices.Equal(x.r.TransferEncoding, []string{"chunked"}) {
		return &refusal{EventDenied, "framing", http.StatusBadRequest, "unsupported transfer encoding"}
	}
	return nil
}

// checkBinding chooses the first binding whose method and path allow the
// request, preferring one whose placeholder it carries.
func checkBinding(x *exchange) *refusal {
	for _, l := range x.candidates {
		if !l.Rule.Allows(x.r.Method, x.path) {
			continue
		}
		if x.chosen == nil || (carries(x.r, l.Placeholder) && !carries(x.r, x.chosen.Placeholder)) {
			x.chosen = l
		}
	}
	if x.chosen == nil {
		return &refusal{EventDenied, "not_bound", http.StatusForbidden, "no binding of this run allows " + x.r.Method + " on this path"}
	}
	return nil
}

func checkMint(x *exchange) *refusal {
	host, _, _ := strings.Cut(x.chosen.Rule.Host, ":")
	if mints(host, x.r.Method, x.path) {
		return &refusal{EventDenied, "mint", http.StatusForbidden, "this endpoint creates credentials that outlive the run"}
	}
	return nil
}

// credentialHeaders may each carry a credential.
var credentialHeaders = []string{"Authorization", "X-Api-Key", "Api-Key", "X-Goog-Api-Key", "X-Auth-Token", "Private-Token", "Cookie", "Proxy-Authorization"}

// checkForeign demands the run's placeholder and refuses every other
// credential: an allowed host must not become a way to somebody else's account
// (B15), and the loopback port is no use to who has no placeholder (R15).
func checkForeign(x *exchange) *refusal {
	found := false
	names := append(slices.Clone(credentialHeaders), x.chosen.Rule.Header)
	for _, name := range names {
		for _, v := range x.r.Header.Values(name) {
			if !isPlaceholder(v, x.chosen.Placeholder) {
				return &refusal{EventForeignAuth, x.chosen.Rule.Host, http.StatusForbidden, "the request carries a credential that is not this run's placeholder (header " + name + ")"}
			}
			found = true
		}
	}
	query, foreign, err := canonicalQuery(x.r.URL.RawQuery, x.chosen.Placeholder)
	if err != nil {
		return &refusal{EventDenied, "query", http.StatusBadRequest, "the query is malformed"}
	}
	if foreign {
		return &refusal{EventForeignAuth, x.chosen.Rule.Host, http.StatusForbidden, "the query carries a credential that is not this run's placeholder"}
	}
	if !found && query == x.r.URL.RawQuery {
		return &refusal{EventForeignAuth, "no_placeholder", http.StatusForbidden, "the request does not carry the placeholder of " + string(x.chosen.Key)}
	}
	x.query = query
	return nil
}

// checkValue refuses a value in the URL, where it can't be masked without
// making it another request. In headers and body it is masked; see scrub.go.
func checkValue(x *exchange) *refusal {
	if x.holds(x.path + "\n" + x.query) {
		return &refusal{EventDenied, "value_in_url", http.StatusForbidden, "the URL holds a credential"}
	}
	return nil
}

// carries reports whether any credential header holds the placeholder.
func carries(r *http.Request, placeholder string) bool {
	for _, name := range credentialHeaders {
		for _, v := range r.Header.Values(name) {
			if isPlaceholder(v, placeholder) {
				return true
			}
		}
	}
	return false
}

// isPlaceholder accepts the placeholder bare, after a scheme word, or as the
// password of Basic.
func isPlaceholder(v, placeholder string) bool {
	if v == placeholder {
		return true
	}
	scheme, rest, ok := strings.Cut(v, " ")
	if !ok {
		return false
	}
	switch strings.ToLower(scheme) {
	case "bearer", "token":
		return rest == placeholder
	case "basic":
		b, err := base64.StdEncoding.DecodeString(rest)
		if err != nil {
			return false
		}
		user, password, ok := strings.Cut(string(b), ":")
		return ok && (password == placeholder || (user == placeholder && (password == "" || password == "x-oauth-basic")))
	}
	return false
}

// forward checks a request, rebuilds it with the value, and streams the
// scrubbed answer back.
func (p *Proxy) forward(w http.ResponseWriter, r *http.Request, escapedPath string, candidates []*live) {
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	default:
		refuse(w, http.StatusTooManyRequests, "too many requests under way")
		return
	}
	path, err := canonicalPath(escapedPath)
	if err != nil {
		p.deny(w, EventDenied, "", "path", http.StatusBadRequest, err.Error())
		return
	}
	x := &exchange{r: r, path: path, candidates: candidates, holds: p.holds}
	for _, c := range p.checks {
		if no := c.run(x); no != nil {
			key := ""
			if x.chosen != nil {
				key = string(x.chosen.Key)
			}
			p.deny(w, no.event, key, no.detail, no.status, no.msg)
			return
		}
	}
	ctx, cancel, ok := p.leave(r.Context(), x.chosen)
	if !ok {
		refuse(w, http.StatusServiceUnavailable, "frozen: no contact with the engine")
		return
	}
	defer cancel()
	p.cfg.Event(EventUsed, string(x.chosen.Key), x.chosen.Rule.Host)
	p.exchange(ctx, cancel, w, x)
}

// exchange sends the rebuilt request and copies the answer.
func (p *Proxy) exchange(ctx context.Context, cancel context.CancelFunc, w http.ResponseWriter, x *exchange) {
	out, err := p.rebuild(ctx, w, x)
	if err != nil {
		refuse(w, http.StatusBadGateway, "the request could not be rebuilt")
		return
	}
	resp, err := p.transport.RoundTrip(out)
	// The outgoing headers are the only copy of the value outside secret.Value.
	out.Header = nil
	if err != nil {
		msg := "the upstream did not answer"
		if ctx.Err() != nil {
			msg = "the request was cut: the credential was revoked, or contact with the engine is lost"
		}
		refuse(w, http.StatusBadGateway, msg)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := decoded(resp)
	if err != nil {
		refuse(w, http.StatusBadGateway, "the upstream answered in an encoding that can't be scrubbed")
		return
	}
	p.answer(w, resp, body, cancel)
}

// droppedHeaders are hop-by-hop (RFC 9110 §7.6.1), or tell an origin or a
// cache to treat the request as another.
var droppedHeaders = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect",
	"Forwarded", "Via", "Accept-Encoding", "X-Http-Method-Override", "X-Http-Method", "X-Method-Override", "X-Original-Url", "X-Rewrite-Url", "Content-Length", "Host"}

// rebuild makes the outgoing request from what was checked, and nothing else.
// What the agent wrote is scrubbed.
func (p *Proxy) rebuild(ctx context.Context, w http.ResponseWriter, x *exchange) (*http.Request, error) {
	rule := x.chosen.Rule
	u := &url.URL{Scheme: "https", Host: rule.HostPort(), Path: x.path, RawQuery: x.query}
	body, length, err := p.scrubBody(w, x.r)
	if err != nil {
		return nil, err
	}
	out, err := http.NewRequestWithContext(ctx, x.r.Method, u.String(), body)
	if err != nil {
		return nil, fmt.Errorf("rebuilding request: %w", err)
	}
	out.ContentLength = length
	out.Host = rule.Host
	drop := append(slices.Clone(droppedHeaders), credentialHeaders...)
	for _, v := range x.r.Header.Values("Connection") {
		for name := range strings.SplitSeq(v, ",") {
			drop = append(drop, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	for name, values := range x.r.Header {
		if slices.Contains(drop, name) || strings.HasPrefix(name, "X-Forwarded-") || strings.HasPrefix(name, "Proxy-") || strings.HasPrefix(name, "Sec-") {
			continue
		}
		out.Header[name] = slices.Clone(values)
	}
	p.scrubHeader(out.Header)
	out.Header.Set("Accept-Encoding", "identity")
	err = x.chosen.Value.Reveal(func(v []byte) error {
		if len(v) == 0 {
			return errors.New("the value has been dropped")
		}
		out.Header.Set(rule.Header, strings.Replace(rule.Format, "{}", string(v), 1))
		return nil
	})
	return out, err
}

// decoded returns the body in clear: an origin may ignore Accept-Encoding.
func decoded(resp *http.Response) (io.Reader, error) {
	switch strings.ToLower(resp.Header.Get("Content-Encoding")) {
	case "", "identity":
		return resp.Body, nil
	case "gzip":
		resp.Header.Del("Content-Encoding")
		return gzip.NewReader(resp.Body)
	}
	return nil, errors.New("unknown content encoding")
}
