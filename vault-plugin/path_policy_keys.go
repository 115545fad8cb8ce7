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
	"strconv"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// Who may sign a policy. The first set of keys is free: whoever configures the
// mount brings it. Afterwards a set that adds or changes a key has to be signed
// by a key that is already trusted; a set that only removes keys does not,
// because it can only make fewer bundles acceptable.
//
// The signature is ECDSA P-256 with SHA-256, ASN.1, base64 std, over
// sealed.SigningBytes(sealed.DomainTrust, tenant ‖ "\n" ‖ version ‖ "\n" ‖ keys)
// where version is the decimal keys_version of the set after the change and
// keys the exact text of the field. With tenant and version in it, a signed set
// can't be replayed on another mount or after it was superseded.

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
		HelpDescription: "The first set is free; adding or changing a key later needs a signature by a key of the set before. Removing a key makes its bundles unusable at once.",
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

func (b *backend) policyKeysWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	cfg, err := b.config(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	doc := text(d, "keys")
	keys, err := parsePolicyKeys(doc)
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
	if old.Version > 0 && !narrows(old.Keys, keys) {
		signed := policyKeysMessage(cfg.Tenant, next.Version, doc)
		if err := verifyPolicyKeys(old.Keys, text(d, "signed_by"), text(d, "signature"), signed); err != nil {
			return nil, err
		}
	}
	body := map[string]any{"version": next.Version, "key_ids": slices.Sorted(maps.Keys(keys)), "signed_by": sealed.CleanReason(text(d, "signed_by"))}
	if err := b.change(ctx, req, "policy_keys.changed", body); err != nil {
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

// narrows reports whether every key of now was there before, unchanged.
func narrows(was, now map[string]string) bool {
	for id, pem := range now {
		if was[id] != pem {
			return false
		}
	}
	return true
}

func policyKeysMessage(tenant sealed.Name, version int, doc string) []byte {
	return sealed.SigningBytes(sealed.DomainTrust, []byte(string(tenant)+"\n"+strconv.Itoa(version)+"\n"+doc))
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
