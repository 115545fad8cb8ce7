package sandboxinit

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
)

// A session is a claimed run: the bound keys and the engine's answer. Its
// methods are safe for concurrent use.
type session struct {
	engine    *engine
	answerKey ed25519.PublicKey
	signKey   ed25519.PrivateKey
	hpkeKey   *secret.PrivateKey
	answer    sealed.ClaimAnswer
	tokenTTL  time.Duration
}

// A grant is one issued, confirmed credential in init's memory.
type grant struct {
	id       sealed.GrantID
	key      sealed.KeyName
	delivery sealed.Delivery
	bindings []sealed.Binding
	value    *secret.Value
	lease    string
	ttl      time.Duration
	weak     bool
}

// claim binds this process to the run. Before the answer verifies, nothing
// but the claim itself has left; a wrong answer key ends the run here.
func claim(ctx context.Context, e *engine, t sealed.TrustFile, id *identity, boot sealed.Boot, m sealed.Measurement) (*session, error) {
	answerKey, err := t.AnswerPublicKey()
	if err != nil {
		return nil, err
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making run key: %w", err)
	}
	hpkeKey, err := secret.GenerateKey()
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, 32)
	if _, err := rand.Read(nonce); err != nil {
		return nil, fmt.Errorf("making nonce: %w", err)
	}
	c := sealed.Claim{
		Run: boot.Run, Ticket: boot.Ticket, Measurement: m,
		RunKey:  base64.StdEncoding.EncodeToString(pub),
		HPKEKey: hpkeKey.Public(),
		Nonce:   base64.StdEncoding.EncodeToString(nonce),
	}
	s := &session{engine: e, answerKey: answerKey, signKey: priv, hpkeKey: hpkeKey}
	if err := s.sendClaim(ctx, c, id); err != nil {
		return nil, fmt.Errorf("claiming run %s: %w", boot.Run, err)
	}
	a := s.answer
	switch {
	case a.Run != c.Run || a.Nonce != c.Nonce:
		return nil, fmt.Errorf("claiming run %s: the answer is for another claim: %w", boot.Run, sealed.ErrInvalid)
	case a.CommandDigest != m.CommandDigest || a.InputDigest != m.InputDigest:
		return nil, fmt.Errorf("claiming run %s: command or input is not what was enqueued: %w", boot.Run, sealed.ErrDenied)
	case a.Tenant != t.Tenant || a.SPIFFEID != id.svid.ID.String():
		return nil, fmt.Errorf("claiming run %s: the answer names another identity: %w", boot.Run, sealed.ErrInvalid)
	}
	return s, nil
}

func (s *session) sendClaim(ctx context.Context, c sealed.Claim, id *identity) error {
	payload, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encoding claim: %w", err)
	}
	svidSig, err := id.sign(sealed.DomainClaim, payload)
	if err != nil {
		return err
	}
	runSig := ed25519.Sign(s.signKey, sealed.SigningBytes(sealed.DomainClaim, payload))
	req, err := json.Marshal(sealed.ClaimRequest{
		Payload: string(payload), SVID: id.chain(), SVIDSignature: svidSig,
		RunSignature: base64.StdEncoding.EncodeToString(runSig),
	})
	if err != nil {
		return fmt.Errorf("encoding claim: %w", err)
	}
	r, err := s.engine.run(ctx, "runs/"+string(c.Run)+"/claim", map[string]string{"claim": string(req)})
	if err != nil {
		return err
	}
	return s.open(r, &s.answer)
}

// open checks the engine's signature on an answer and decodes it.
func (s *session) open(r *reply, v any) error {
	text, _ := r.Data["answer"].(string)
	var signed sealed.Signed
	if err := sealed.Decode([]byte(text), sealed.MaxDocument, &signed); err != nil {
		return err
	}
	return signed.Open(sealed.DomainAnswer, s.answerKey, v)
}

// call signs a request with the run key and writes it to its path.
func (s *session) call(ctx context.Context, path string, body any) (*reply, error) {
	request, err := s.sign(body)
	if err != nil {
		return nil, err
	}
	return s.engine.run(ctx, path, map[string]string{"request": request})
}

// ask is call for a path that is read.
func (s *session) ask(ctx context.Context, path string, body any) (*reply, error) {
	request, err := s.sign(body)
	if err != nil {
		return nil, err
	}
	return s.engine.ask(ctx, path, "request", request)
}

func (s *session) sign(body any) (request string, err error) {
	signed, err := sealed.Sign(sealed.DomainRequest, body, s.signKey)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(signed)
	if err != nil {
		return "", fmt.Errorf("encoding request: %w", err)
	}
	return string(b), nil
}

func (s *session) path(rest string) string { return "runs/" + string(s.answer.Run) + "/" + rest }

// issue fetches one credential and confirms it. Before confirm has answered,
// the value is not used; on any doubt it is destroyed. When the answer of
// creds is lost the same idempotency key resumes the same grant, once.
func (s *session) issue(ctx context.Context, key sealed.KeyName, delivery sealed.Delivery) (*grant, error) {
	idem, err := sealed.NewULID(time.Now(), nil)
	if err != nil {
		return nil, err
	}
	req := sealed.CredsRequest{Run: s.answer.Run, Path: s.path("creds/" + string(key)), Idempotency: idem, Delivery: delivery}
	r, err := s.ask(ctx, req.Path, req)
	if errors.Is(err, sealed.ErrUnavailable) && ctx.Err() == nil {
		r, err = s.ask(ctx, req.Path, req)
	}
	if err != nil {
		return nil, fmt.Errorf("issuing %s: %w", key, err)
	}
	g, epoch, err := s.openGrant(r, key, delivery)
	if err != nil {
		return nil, fmt.Errorf("issuing %s: %w", key, err)
	}
	if err := s.confirm(ctx, g, epoch); err != nil {
		g.value.Destroy()
		return nil, fmt.Errorf("confirming %s: %w", key, err)
	}
	return g, nil
}

func (s *session) openGrant(r *reply, key sealed.KeyName, delivery sealed.Delivery) (*grant, uint64, error) {
	var a sealed.CredsAnswer
	if err := s.open(r, &a); err != nil {
		return nil, 0, err
	}
	if a.Run != s.answer.Run || a.Key != key || a.Delivery != delivery || r.LeaseID == "" {
		return nil, 0, fmt.Errorf("the answer is for another request: %w", sealed.ErrInvalid)
	}
	v, err := s.hpkeKey.Open(secret.Context{Run: string(a.Run), Grant: string(a.Grant), Key: string(a.Key)}, a.Ciphertext)
	if err != nil {
		return nil, 0, err
	}
	return &grant{
		id: a.Grant, key: a.Key, delivery: a.Delivery, bindings: a.Bindings, value: v,
		lease: r.LeaseID, ttl: time.Duration(a.TTL) * time.Second, weak: a.AllowWeak,
	}, a.Epoch, nil
}

func (s *session) confirm(ctx context.Context, g *grant, epoch uint64) error {
	req := sealed.ConfirmRequest{Run: s.answer.Run, Path: s.path("confirm"), Grant: g.id, LeaseID: g.lease, Epoch: epoch}
	r, err := s.call(ctx, req.Path, req)
	if err != nil {
		return err
	}
	var a sealed.ConfirmAnswer
	if err := s.open(r, &a); err != nil {
		return err
	}
	if a.Run != req.Run || a.Grant != g.id {
		return fmt.Errorf("the answer is for another grant: %w", sealed.ErrInvalid)
	}
	return nil
}

func (s *session) watch(ctx context.Context, epoch uint64, wait time.Duration) (sealed.WatchAnswer, error) {
	req := sealed.WatchRequest{Run: s.answer.Run, Path: s.path("watch"), Epoch: epoch, Wait: sealed.Duration(wait)}
	var a sealed.WatchAnswer
	r, err := s.ask(ctx, req.Path, req)
	if err != nil {
		return a, err
	}
	if err = s.open(r, &a); err == nil && a.Run != req.Run {
		err = fmt.Errorf("the answer is for another run: %w", sealed.ErrInvalid)
	}
	return a, err
}

func (s *session) more(ctx context.Context, key sealed.KeyName, reason string) (sealed.MoreAnswer, error) {
	req := sealed.MoreRequest{Run: s.answer.Run, Path: s.path("requests"), Key: key, Reason: sealed.CleanReason(reason)}
	var a sealed.MoreAnswer
	r, err := s.call(ctx, req.Path, req)
	if err != nil {
		return a, err
	}
	err = s.open(r, &a)
	return a, err
}

func (s *session) head(ctx context.Context, oldSize int64) (sealed.HeadAnswer, error) {
	req := sealed.HeadRequest{Run: s.answer.Run, Path: s.path("head"), OldSize: oldSize}
	var a sealed.HeadAnswer
	r, err := s.call(ctx, req.Path, req)
	if err != nil {
		return a, err
	}
	err = s.open(r, &a)
	return a, err
}

func (s *session) finish(ctx context.Context, record []byte, exit int) error {
	req := sealed.FinishRequest{Run: s.answer.Run, Path: s.path("finish"), Record: string(record), Exit: exit}
	_, err := s.call(ctx, req.Path, req)
	return err
}

// hand stores a sealed.RedactedInput with the engine.
func (s *session) hand(ctx context.Context, document string) error {
	req := sealed.EventsRequest{Run: s.answer.Run, Path: s.path("events"), Events: []sealed.RunEvent{}, Input: document}
	_, err := s.call(ctx, req.Path, req)
	return err
}

func (s *session) report(ctx context.Context, events []sealed.RunEvent) error {
	req := sealed.EventsRequest{Run: s.answer.Run, Path: s.path("events"), Events: events}
	_, err := s.call(ctx, req.Path, req)
	return err
}
