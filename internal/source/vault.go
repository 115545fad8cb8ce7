package source

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// A Vault is a client for one mount of an upstream Vault. It is safe for
// concurrent use.
type Vault struct {
	client    *Client
	mount     string
	namespace string
	login     *login
}

// NewVault makes a client from a valid configuration and takes ownership of
// credential, which is what cfg.Auth.Method says: a token, the secret id of an
// AppRole, or a JWT. It makes no call. reuse is that of NewClient; now nil
// means time.Now.
func NewVault(cfg sealed.SourceConfig, credential *secret.Value, reuse bool, now func() time.Time) (*Vault, error) {
	client, err := NewClient(cfg.Address, cfg.CA, reuse)
	if err != nil {
		return nil, fmt.Errorf("opening source %s: %w", cfg.Name, err)
	}
	if now == nil {
		now = time.Now
	}
	l, err := newLogin(cfg.Auth, credential, now)
	if err != nil {
		return nil, fmt.Errorf("opening source %s: %w", cfg.Name, err)
	}
	return &Vault{client: client, mount: strings.Trim(cfg.Mount, "/"), namespace: cfg.Namespace, login: l}, nil
}

// A Call is one request. Path is below /v1/, unescaped.
type Call struct {
	Method string
	Path   string
	Query  url.Values
	Body   any           // nil: none
	Token  *secret.Value // nil: the source's own
}

// MountPath returns the path of something below the mount. It refuses a ref
// that a server could take for another path.
func (v *Vault) MountPath(prefix, ref string) (string, error) {
	if err := CheckPath(ref); err != nil {
		return "", err
	}
	return v.mount + "/" + prefix + ref, nil
}

// Do makes one call, and before it a login where one is due, and decodes a
// successful answer into out, if that is not nil. Every error matches
// sealed.ErrUnavailable; an answer that is not a success is a *StatusError. A
// call that failed is not made again.
func (v *Vault) Do(ctx context.Context, c Call, out any) error {
	if c.Token != nil {
		return v.call(ctx, c, out)
	}
	token, err := v.login.token(ctx, v)
	if err != nil {
		return err
	}
	c.Token = token
	err = v.call(ctx, c, out)
	if answered(err, http.StatusForbidden) {
		v.login.doubt(token) // the next call logs in again
	}
	return err
}

// call makes one request. A nil token is none.
func (v *Vault) call(ctx context.Context, c Call, out any) error {
	req, err := v.request(c)
	if err != nil {
		return err
	}
	answer, err := v.client.Do(ctx, req)
	if err != nil {
		return err
	}
	defer answer.Wipe()
	if out != nil {
		err = answer.Decode(out)
	} else {
		err = answer.OK()
	}
	var status *StatusError
	if errors.As(err, &status) {
		status.InvalidAccessor = bytes.Contains(answer.Body, []byte(`"invalid accessor"`))
	}
	return err
}

func (v *Vault) request(c Call) (Request, error) {
	r := Request{Method: c.Method, Path: "v1/" + c.Path, Query: c.Query, Header: map[string]string{"X-Vault-Request": "true"}}
	if c.Body != nil {
		doc, err := json.Marshal(c.Body)
		if err != nil {
			return r, fmt.Errorf("encoding request to the source: %w", sealed.ErrUnavailable)
		}
		r.Body, r.Type = doc, "application/json"
	}
	if v.namespace != "" {
		r.Header["X-Vault-Namespace"] = v.namespace
	}
	if c.Token == nil {
		return r, nil
	}
	return r, c.Token.Reveal(func(b []byte) error {
		r.Header["X-Vault-Token"] = string(b)
		return nil
	})
}

// Keep renews the source's own token when that is due, and makes no call when
// it is not. Somebody has to call it about every minute, or a token with a
// period ends.
func (v *Vault) Keep(ctx context.Context) error { return v.login.keep(ctx, v) }

// CheckMount reports whether the token sees a mount of a type at the client's
// mount path. It reads no value.
func (v *Vault) CheckMount(ctx context.Context, wantType string) error {
	var answer struct {
		Data struct {
			Type    string            `json:"type"`
			Options map[string]string `json:"options"`
		} `json:"data"`
	}
	if err := v.Do(ctx, Call{Method: http.MethodGet, Path: "sys/internal/ui/mounts/" + v.mount}, &answer); err != nil {
		return err
	}
	if wantType == "" {
		return nil
	}
	if answer.Data.Type != wantType {
		return fmt.Errorf("checking mount: it is of another type than %s: %w", wantType, sealed.ErrUnavailable)
	}
	if wantType == "kv" && answer.Data.Options["version"] != "2" {
		return fmt.Errorf("checking mount: it is not KV version 2: %w", sealed.ErrUnavailable)
	}
	return nil
}
