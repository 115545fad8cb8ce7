package vaultplugin

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"

	"github.com/hashicorp/vault/sdk/logical"
	"golang.org/x/mod/sumdb/note"

	"sealed.dev/sealed/internal/sealed"
)

// engineKeys are the mount's own keys. The private halves leave this struct
// for signing only.
type engineKeys struct {
	answer       ed25519.PrivateKey // signs what sealed-init obeys
	answerPublic string             // base64 std
	logSigner    note.Signer        // signs the log's checkpoints
	logVerifier  string             // note verifier key
}

// storedKeys is the seal-wrapped form. Tenant names whom they were made for.
type storedKeys struct {
	Tenant      sealed.Name `json:"tenant"`
	AnswerSeed  []byte      `json:"answer_seed"`
	LogSigner   string      `json:"log_signer"`
	LogVerifier string      `json:"log_verifier"`
}

// engineKeys returns the mount's keys, or sealed.ErrUnavailable before the
// first write to config.
func (b *backend) engineKeys(ctx context.Context, s logical.Storage) (*engineKeys, error) {
	return b.nouns.keys.get("", func() (*engineKeys, error) {
		var row storedKeys
		ok, err := get(ctx, s, storeKeys, &row)
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, fmt.Errorf("loading keys: the mount is not configured: %w", sealed.ErrUnavailable)
		}
		return row.open()
	})
}

// open parses stored keys. Its errors name the field and nothing of the key.
func (r storedKeys) open() (*engineKeys, error) {
	if len(r.AnswerSeed) != ed25519.SeedSize {
		return nil, fmt.Errorf("decoding stored %s: malformed answer key", storeKeys)
	}
	signer, err := note.NewSigner(r.LogSigner)
	if err != nil {
		return nil, fmt.Errorf("decoding stored %s: malformed log key", storeKeys)
	}
	verifier, err := note.NewVerifier(r.LogVerifier)
	if err != nil || verifier.Name() != signer.Name() || verifier.KeyHash() != signer.KeyHash() {
		return nil, fmt.Errorf("decoding stored %s: log keys do not belong together", storeKeys)
	}
	k := &engineKeys{answer: ed25519.NewKeyFromSeed(r.AnswerSeed), logSigner: signer, logVerifier: r.LogVerifier}
	k.answerPublic = base64.StdEncoding.EncodeToString(k.answer.Public().(ed25519.PublicKey))
	return k, nil
}

// makeKeys makes the mount's keys unless they exist: a first configuration
// that was interrupted goes on with the same ones. Keys of another tenant are
// refused, because the log's origin names the tenant.
func (b *backend) makeKeys(ctx context.Context, s logical.Storage, tenant sealed.Name) error {
	var row storedKeys
	ok, err := get(ctx, s, storeKeys, &row)
	if err != nil {
		return err
	}
	if ok {
		if row.Tenant != tenant {
			return &sealed.FieldError{Field: "tenant", Reason: "the keys of this mount were made for another tenant"}
		}
		return nil
	}
	if row, err = newKeys(b.rand, tenant); err != nil {
		return err
	}
	defer b.nouns.keys.drop()
	return put(ctx, s, storeKeys, row)
}

// newKeys makes an Ed25519 answer key and a note key for the log, whose origin
// is sealed.dev/log/<tenant>/<8 hex digits>: random, so that a mount that is
// made again under the same name is another log.
func newKeys(rnd io.Reader, tenant sealed.Name) (storedKeys, error) {
	var suffix [4]byte
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(rnd, suffix[:]); err != nil {
		return storedKeys{}, fmt.Errorf("making keys: %w", err)
	}
	if _, err := io.ReadFull(rnd, seed); err != nil {
		return storedKeys{}, fmt.Errorf("making keys: %w", err)
	}
	origin := "sealed.dev/log/" + string(tenant) + "/" + hex.EncodeToString(suffix[:])
	signer, verifier, err := note.GenerateKey(rnd, origin)
	if err != nil {
		return storedKeys{}, fmt.Errorf("making keys: %w", err)
	}
	return storedKeys{Tenant: tenant, AnswerSeed: seed, LogSigner: signer, LogVerifier: verifier}, nil
}
