// Package bitwarden is the source of static values in Bitwarden Secrets
// Manager.
//
// # Protocol
//
// It speaks the published protocol of machine accounts with the standard
// library. The credential is an access token, "0.ID.SECRET:SEED". ID and SECRET
// log in at the identity service (OAuth 2.0 client credentials, scope
// api.secrets); SEED never leaves this process: a key derived from it opens the
// organization's key, which comes with the login, and that opens secrets. A
// login lasts as long as its answer says and is then made again.
//
// A reference is the id of a secret; its field is "value" (or empty) or "note".
// Secrets Manager keeps the newest value only: its version is the time of the
// last change, and a reference that pins another one is refused.
//
// # Guarantee
//
// A MAC is checked before its ciphertext is opened, and types of encryption
// without one are refused: the servers can withhold or swap whole encrypted
// fields of one organization, not forge them. What comes back must be the
// secret and the organization that were asked for.
//
// # What it does not guarantee
//
// The encryption binds no field to its place: a server that is hostile can give
// the note, or another secret of the organization, as this one's value. A value
// that was read can't be un-issued here. Vaultwarden has no Secrets Manager and
// is not supported. Bitwarden's own client libraries are not used: their license
// does not permit it.
package bitwarden

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source"
)

// doubtAfter is how old a login has to be before a refusal costs it.
const doubtAfter = 10 * time.Second

// A Source reads the secrets of one organization. It is safe for concurrent
// use.
type Source struct {
	source.Static
	api, identity *source.Client
	token         accessToken
	organization  string
	now           func() time.Time

	mu      sync.Mutex // held across a login, so that there is one at a time
	current session
}

// A session is what a login gives.
type session struct {
	bearer, key *secret.Value
	since, ends time.Time
}

// Open makes a source and takes ownership of credential; now nil means
// time.Now. It makes no call. The error matches sealed.ErrInvalid.
func Open(cfg sealed.SourceConfig, credential *secret.Value, now func() time.Time) (*Source, error) {
	if now == nil {
		now = time.Now
	}
	s := &Source{organization: cfg.Mount, now: now}
	err := credential.Reveal(func(b []byte) (err error) {
		s.token, err = parseAccessToken(b)
		return err
	})
	if err == nil {
		s.api, err = source.NewClient(cfg.Address, cfg.CA, true)
	}
	if err == nil {
		s.identity, err = source.NewClient(cfg.Auth.Address, cfg.CA, false)
	}
	if err != nil {
		return nil, fmt.Errorf("opening source %s: %w", cfg.Name, err)
	}
	credential.Destroy() // its parts are kept
	return s, nil
}

// Mint reads one secret. The error matches sealed.ErrInvalid for a reference
// that can't be one, else sealed.ErrUnavailable, and sealed.ErrNotFound too
// when the secret is not there.
func (s *Source) Mint(ctx context.Context, ref sealed.KeyRef, _ string) (source.Minted, error) {
	got, key, err := s.read(ctx, ref)
	if err != nil {
		return source.Minted{}, err
	}
	enc := got.Value
	if ref.Field == "note" {
		enc = got.Note
	}
	plain, err := decrypt(key, enc)
	if err != nil {
		return source.Minted{}, fmt.Errorf("reading secret: %w", err)
	}
	if len(plain) == 0 {
		return source.Minted{}, fmt.Errorf("reading secret: empty: %w", sealed.ErrUnavailable)
	}
	return source.Minted{Value: secret.New(plain), Version: got.Revision}, nil
}

// Newest is the time of a secret's last change in any field, as the service
// spells it. The secret is read for it, and not decrypted. The error is as of
// Mint.
func (s *Source) Newest(ctx context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error) {
	got, _, err := s.read(ctx, ref)
	return got.Revision, err
}

// An encrypted secret, as the service sends it.
type encrypted struct {
	ID           string               `json:"id"`
	Organization string               `json:"organizationId"`
	Value        string               `json:"value"`
	Note         string               `json:"note"`
	Revision     sealed.SourceVersion `json:"revisionDate"`
}

// read fetches a secret and the key that opens it.
func (s *Source) read(ctx context.Context, ref sealed.KeyRef) (got encrypted, key *secret.Value, err error) {
	if err := checkRef(ref); err != nil {
		return encrypted{}, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, source.Timeout)
	defer cancel()
	in, err := s.login(ctx)
	if err != nil {
		return encrypted{}, nil, err
	}
	if err := s.get(ctx, in, "secrets/"+ref.Path, &got); err != nil {
		return encrypted{}, nil, fmt.Errorf("reading secret: %w", err)
	}
	if got.ID != ref.Path || got.Organization != s.organization || got.Revision.Validate("revisionDate") != nil {
		return encrypted{}, nil, fmt.Errorf("reading secret: the answer is about another one, or malformed: %w", sealed.ErrUnavailable)
	}
	if err := source.SameVersion(ref, got.Revision); err != nil {
		return encrypted{}, nil, fmt.Errorf("reading secret: %w", err)
	}
	return got, in.key, nil
}

// Check reports whether the credential logs in to the organization and its key
// opens. It reads no secret.
func (s *Source) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, source.Timeout)
	defer cancel()
	in, err := s.login(ctx)
	if err != nil {
		return err
	}
	var answer struct {
		Secrets []struct{} `json:"secrets"`
	}
	if err := s.get(ctx, in, "organizations/"+s.organization+"/secrets", &answer); err != nil {
		return fmt.Errorf("listing secrets: %w", err)
	}
	return nil
}

func checkRef(ref sealed.KeyRef) error {
	if !uuidRE.MatchString(ref.Path) {
		return &sealed.FieldError{Field: "ref.path", Reason: "wants the id of a secret"}
	}
	if ref.Field != "" && ref.Field != "value" && ref.Field != "note" {
		return &sealed.FieldError{Field: "ref.field", Reason: "wants value or note"}
	}
	return nil
}

func (s *Source) get(ctx context.Context, in session, path string, out any) error {
	answer, err := s.api.Do(ctx, source.Request{Method: http.MethodGet, Path: path, Bearer: in.bearer})
	if err != nil {
		return err
	}
	defer answer.Wipe()
	err = answer.Decode(out)
	if answer.Code == http.StatusUnauthorized {
		s.doubt(in)
	}
	if source.NotFound(err) {
		return fmt.Errorf("%w: %w", sealed.ErrNotFound, err)
	}
	return err
}

// doubt forgets a login that was refused, unless it is new.
func (s *Source) doubt(in session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.bearer == in.bearer && s.now().Sub(in.since) > doubtAfter {
		s.current = session{}
	}
}

// login returns the current session, or makes one.
func (s *Source) login(ctx context.Context) (session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.bearer != nil && s.now().Before(s.current.ends) {
		return s.current, nil
	}
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {"api.secrets"}, "client_id": {s.token.id}}
	if err := s.token.secret.Reveal(func(b []byte) error { form.Set("client_secret", string(b)); return nil }); err != nil {
		return session{}, err
	}
	answer, err := s.identity.Do(ctx, source.Request{
		Method: http.MethodPost, Path: "connect/token", Body: []byte(form.Encode()), Type: "application/x-www-form-urlencoded",
		Header: map[string]string{"Device-Type": "21"}, // "SDK" in the servers' list of kinds of device
	})
	if err != nil {
		return session{}, fmt.Errorf("logging in to the source: %w", err)
	}
	defer answer.Wipe()
	var got struct {
		Token   string `json:"access_token"`
		Expires int64  `json:"expires_in"`
		Payload string `json:"encrypted_payload"`
	}
	if err := answer.Decode(&got); err != nil {
		return session{}, fmt.Errorf("logging in to the source: %w", err)
	}
	bearer := secret.New([]byte(got.Token))
	if source.CheckToken(bearer, "a token") != nil || got.Expires <= 0 {
		return session{}, fmt.Errorf("logging in to the source: the answer has no token: %w", sealed.ErrUnavailable)
	}
	key, err := s.openKey(got.Payload)
	if err != nil {
		return session{}, fmt.Errorf("logging in to the source: %w", err)
	}
	s.current = session{bearer: bearer, key: key, since: s.now(), ends: s.now().Add(time.Duration(min(got.Expires, 24*3600)) * time.Second / 10 * 9)}
	return s.current, nil
}

// openKey opens the organization's key: {"encryptionKey": base64 of 64 bytes}.
func (s *Source) openKey(payload string) (*secret.Value, error) {
	plain, err := decrypt(s.token.key, payload)
	if err != nil {
		return nil, err
	}
	defer clear(plain)
	var doc struct {
		Key string `json:"encryptionKey"`
	}
	if json.Unmarshal(plain, &doc) != nil {
		return nil, errCipher
	}
	key, err := base64.StdEncoding.DecodeString(doc.Key)
	if err != nil || len(key) != keySize {
		clear(key)
		return nil, errCipher
	}
	return secret.New(key), nil
}
