package source

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

const (
	// A renewal that failed is tried again after keepAgain, and after
	// keepRefused when it was refused.
	keepAgain   = time.Minute
	keepRefused = time.Hour
	// doubtAfter is how old a token has to be before a refusal costs it: a key
	// that the policy forbids must not make a login per request.
	doubtAfter = 10 * time.Second
)

// A login is how a source gets its token. With the method token, the
// credential is the token. With approle and jwt it is what a login costs: the
// token is got at the first call and again when it is about to end or was
// refused. A token that was replaced is left to end by itself: what was created
// with it may hang off it.
type login struct {
	path       string // of the login; empty: the credential is the token
	body       map[string]any
	field      string // of body, for the credential
	credential *secret.Value
	now        func() time.Time

	mu      sync.Mutex // held across a login, so that there is one at a time
	current *secret.Value
	since   time.Time // of current
	ends    time.Time // log in again from then on
	renewAt time.Time
	forever bool // never renew: it does not end, or can't be renewed
}

func newLogin(auth sealed.SourceAuth, credential *secret.Value, now func() time.Time) (*login, error) {
	l := &login{credential: credential, now: now}
	what := "a Vault token"
	mount := auth.Mount
	switch auth.Method {
	case "", sealed.AuthToken:
		l.current = credential
	case sealed.AuthAppRole:
		what = "the secret id of an AppRole"
		if mount == "" {
			mount = "approle"
		}
		l.path, l.field, l.body = "auth/"+mount+"/login", "secret_id", map[string]any{"role_id": auth.Role}
	case sealed.AuthJWT:
		what = "a JWT"
		if mount == "" {
			mount = "jwt"
		}
		l.path, l.field, l.body = "auth/"+mount+"/login", "jwt", map[string]any{"role": auth.Role}
	default:
		return nil, &sealed.FieldError{Field: "auth.method", Reason: "wants token, approle or jwt"}
	}
	if err := CheckToken(credential, what); err != nil {
		return nil, err
	}
	return l, nil
}

// tokenAnswer is the part of an answer that has a token in it.
type tokenAnswer struct {
	Auth struct {
		Token     string `json:"client_token"`
		Duration  int64  `json:"lease_duration"`
		Renewable bool   `json:"renewable"`
	} `json:"auth"`
}

// lasts returns how long the token of an answer lasts.
func (a tokenAnswer) lasts() time.Duration {
	const most = 10 * 365 * 24 * 3600
	return time.Duration(min(max(a.Auth.Duration, 0), most)) * time.Second
}

// token returns the token to call with. It logs in when there is none or it is
// about to end.
func (l *login) token(ctx context.Context, v *Vault) (*secret.Value, error) {
	if l.path == "" {
		return l.credential, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current != nil && (l.ends.IsZero() || l.now().Before(l.ends)) {
		return l.current, nil
	}
	body := make(map[string]any, len(l.body)+1)
	for k, val := range l.body {
		body[k] = val
	}
	if err := l.credential.Reveal(func(b []byte) error { body[l.field] = string(b); return nil }); err != nil {
		return nil, err
	}
	var answer tokenAnswer
	if err := v.call(ctx, Call{Method: http.MethodPost, Path: l.path, Body: body}, &answer); err != nil {
		return nil, fmt.Errorf("logging in to the source: %w", err)
	}
	got := secret.New([]byte(answer.Auth.Token))
	if err := CheckToken(got, "a token"); err != nil {
		return nil, fmt.Errorf("logging in to the source: the answer has no token: %w", sealed.ErrUnavailable)
	}
	l.current, l.since = got, l.now()
	l.schedule(answer)
	return got, nil
}

// schedule says when to renew and when to log in again. The caller holds mu.
func (l *login) schedule(a tokenAnswer) {
	now, lasts := l.now(), a.lasts()
	l.forever = lasts == 0 || !a.Auth.Renewable
	l.renewAt = now.Add(lasts / 2)
	l.ends = time.Time{}
	if lasts > 0 {
		l.ends = now.Add(lasts / 10 * 9)
	}
}

// doubt forgets a token that was refused, unless it is new.
func (l *login) doubt(token *secret.Value) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.path != "" && l.current == token && l.now().Sub(l.since) > doubtAfter {
		l.current = nil
	}
}

// keep renews the token when half of its time is over.
func (l *login) keep(ctx context.Context, v *Vault) error {
	l.mu.Lock()
	token := l.current
	due := token != nil && !l.forever && !l.now().Before(l.renewAt)
	if due {
		l.renewAt = l.now().Add(keepAgain)
	}
	l.mu.Unlock()
	if !due {
		return nil
	}
	var answer tokenAnswer
	err := v.call(ctx, Call{Method: http.MethodPost, Path: "auth/token/renew-self", Body: map[string]any{}, Token: token}, &answer)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case answered(err, http.StatusForbidden), answered(err, http.StatusBadRequest):
		l.renewAt = l.now().Add(keepRefused)
	case err == nil && l.current == token:
		l.schedule(answer)
	}
	if err != nil {
		return fmt.Errorf("renewing the source's token: %w", err)
	}
	return nil
}
