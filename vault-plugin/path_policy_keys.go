package vaultplugin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// Who may sign a policy. A set that adds or changes a key has to be signed by a
// key that is already trusted, or to be confirmed by a second person; a set that
// only removes keys needs neither, because it can only make fewer bundles
// acceptable. Where the mount asks no second person, the first set is free and
// every later one has to be signed.
//
// What is signed, and how: sealed.PolicyKeysMessage. version is the keys_version of
// the set after the change, keys the exact text of the field.

func (b *backend) pathPolicyKeys() *framework.Path {
	return &framework.Path{
		Pattern:      "config/policy-keys",
		DisplayAttrs: display("policy-keys"),
		Fields: map[string]*framework.FieldSchema{
			"keys":      {Type: framework.TypeString, Description: "JSON object: key id to PEM public key (ECDSA P-256). Replaces the set."},
			"signed_by": {Type: framework.TypeString, Description: "Id of the trusted key that signed the set."},
			"signature": {Type: framework.TypeString, Description: "Signature of the set, base64."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   b.op("Read the policy keys.", b.policyKeysRead),
			logical.UpdateOperation: b.op("Replace the policy keys.", b.policyKeysWrite),
		},
		HelpSynopsis:    "The public keys that policy bundles are verified against.",
		HelpDescription: "Adding or changing a key needs a signature by a key of the set before, or a second person (proposals/policy-key). Removing a key makes its bundles unusable at once.",
	}
}

func (b *backend) policyKeysRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	keys, err := loadPolicyKeys(ctx, req.Storage)
	if err != nil || keys.Version == 0 {
		return nil, err
	}
	doc, err := json.Marshal(keys.Keys)
	if err != nil {
		return nil, fmt.Errorf("encoding policy keys: %w", err)
	}
	return map[string]any{"keys": string(doc), "version": keys.Version}, nil
}

// A policyKeySet is a set of keys as it was sent: doc is what is signed.
type policyKeySet struct{ doc, signedBy, signature string }

func (b *backend) policyKeysWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	return b.putPolicyKeys(ctx, req, policyKeySet{text(d, "keys"), text(d, "signed_by"), text(d, "signature")}, nil)
}

func (b *backend) putPolicyKeys(ctx context.Context, req *logical.Request, set policyKeySet, yes *consent) (map[string]any, error) {
	cfg, err := b.config(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	keys, err := parsePolicyKeys(set.doc)
	if err != nil {
		return nil, err
	}
	b.policy.changing.Lock()
	defer b.policy.changing.Unlock()
	old, err := loadPolicyKeys(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	next := policyKeys{Version: old.Version + 1, Keys: keys}
	w := widening{kind: sealed.ProposalPolicyKey, version: old.Version, before: policyKeysText(old), after: textOf(keys), widens: keySetWidens(old.Keys, keys)}
	needed := old.Version > 0 && cfg.SecondPersonOff && yes == nil // nobody else is asked
	if len(w.widens) > 0 && (needed || set.signedBy != "" || set.signature != "") {
		signed := sealed.PolicyKeysMessage(cfg.Tenant, next.Version, set.doc)
		if err := verifyPolicyKeys(old.Keys, set.signedBy, set.signature, signed); err != nil {
			return nil, err
		}
		w.widens = nil // whoever is trusted already vouches for it
	}
	if answer, err := b.gate(ctx, req, w, yes); answer != nil || err != nil {
		return answer, err
	}
	body := map[string]any{"version": next.Version, "key_ids": slices.Sorted(maps.Keys(keys)), "signed_by": sealed.CleanReason(set.signedBy)}
	if err := b.change(ctx, req, "policy_keys.changed", yes.sign(body)); err != nil {
		return nil, err
	}
	defer b.nouns.bundles.drop()
	if err := put(ctx, req.Storage, storePolicyKeys, next); err != nil {
		return nil, err
	}
	return map[string]any{"version": next.Version}, nil
}

// parsePolicyKeys accepts 1 to 16 named P-256 keys. An empty set is refused:
// after it the next one would be free again.
func parsePolicyKeys(doc string) (map[string]string, error) {
	var keys map[string]string
	if err := sealed.Decode([]byte(doc), 64<<10, &keys); err != nil {
		return nil, err
	}
	if len(keys) == 0 || len(keys) > 16 {
		return nil, invalid("keys", "wants 1 to 16 keys")
	}
	for id, text := range keys {
		if _, err := sealed.ParseName("keys", id); err != nil {
			return nil, err
		}
		if _, err := parsePolicyKey(text); err != nil {
			return nil, invalid("keys."+id, "wants one PEM public key, ECDSA P-256")
		}
	}
	return keys, nil
}

func parsePolicyKey(text string) (*ecdsa.PublicKey, error) {
	block, rest := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" || len(rest) > 0 {
		return nil, sealed.ErrInvalid
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, sealed.ErrInvalid
	}
	pub, ok := key.(*ecdsa.PublicKey)
	if !ok || pub.Curve != elliptic.P256() {
		return nil, sealed.ErrInvalid
	}
	return pub, nil
}

func verifyPolicyKeys(trusted map[string]string, signedBy, signature string, message []byte) error {
	pub, err := parsePolicyKey(trusted[signedBy])
	if err != nil {
		return invalid("signed_by", "adding or changing a key needs a signature by a trusted key")
	}
	sig, err := base64.StdEncoding.DecodeString(signature)
	sum := sha256.Sum256(message)
	if err != nil || !ecdsa.VerifyASN1(pub, sum[:], sig) {
		return invalid("signature", "does not verify")
	}
	return nil
}
