package opabundle

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/bundle"
)

// resign replaces .signatures.json; a nil doc drops it.
func resign(t testing.TB, signed []byte, doc any) []byte {
	t.Helper()
	files, err := readArchive(signed, Limits{}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	files, _, _ = without(files, signaturesName)
	if doc != nil {
		b, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file{signaturesName, b})
	}
	return archive(t, files...)
}

// payloadOf returns the true payload of a signed bundle, to be signed falsely.
func payloadOf(t testing.TB, signed []byte) jwtPayload {
	t.Helper()
	files, err := readArchive(signed, Limits{}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	_, data, _ := without(files, signaturesName)
	token, err := parseSignatures(data)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var p jwtPayload
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func token(t testing.TB, header, payload any, sign func(input []byte) []byte) string {
	t.Helper()
	h, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	p, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	enc := base64.RawURLEncoding
	input := enc.EncodeToString(h) + "." + enc.EncodeToString(p)
	return input + "." + enc.EncodeToString(sign([]byte(input)))
}

func TestSignatureAttacks(t *testing.T) {
	k, other := newKey(t), newKey(t)
	good := k.sign(t, buildDefault(t))
	payload := payloadOf(t, good)
	one := func(tok string) any { return map[string]any{"signatures": []string{tok}} }
	es256 := func(h any, p any, key testKey) string {
		return token(t, h, p, func(in []byte) []byte {
			sum := sha256.Sum256(in)
			r, s, err := ecdsa.Sign(rand.Reader, key.signer.(*ecdsa.PrivateKey), sum[:])
			if err != nil {
				t.Fatal(err)
			}
			return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		})
	}
	hs256 := func(in []byte) []byte {
		m := hmac.New(sha256.New, []byte(k.public))
		m.Write(in)
		return m.Sum(nil)
	}
	header := jwtHeader{Alg: "ES256", Kid: "k1"}
	valid := es256(header, payload, k)
	scoped := map[string]any{"files": payload.Files, "scope": "write"}
	missing := jwtPayload{Files: payload.Files[1:]}
	extra := jwtPayload{Files: append(slices.Clone(payload.Files), bundle.NewFile("sealed/x.rego", "00", "SHA-256"))}
	weak := jwtPayload{Files: slices.Clone(payload.Files)}
	weak.Files[0].Algorithm = "MD5"
	tests := map[string]struct {
		raw  []byte
		want error
	}{
		"E06 unsigned":                   {buildDefault(t), ErrUnsigned},
		"E07 stripped":                   {resign(t, good, nil), ErrUnsigned},
		"E07 no signatures":              {resign(t, good, map[string]any{}), ErrUnsigned},
		"E07 empty list":                 {resign(t, good, map[string]any{"signatures": []string{}}), ErrUnsigned},
		"E07 empty key id":               {resign(t, good, one(es256(jwtHeader{Alg: "ES256"}, payload, k))), ErrSignature},
		"E07 key id in the payload only": {resign(t, good, one(es256(map[string]any{"alg": "ES256"}, jwtPayload{Files: payload.Files, KeyID: "k1"}, k))), ErrSignature},
		"two signatures":                 {resign(t, good, map[string]any{"signatures": []string{valid, valid}}), ErrSignature},
		"plugin":                         {resign(t, good, map[string]any{"signatures": []string{valid}, "plugin": "mine"}), ErrSignature},
		"E08 unknown key id":             {resign(t, good, one(es256(jwtHeader{Alg: "ES256", Kid: "k2"}, payload, k))), ErrSignature},
		"E08 other key":                  {resign(t, good, one(es256(header, payload, other))), ErrSignature},
		"E08 HS256 with the public key":  {resign(t, good, one(token(t, jwtHeader{Alg: "HS256", Kid: "k1"}, payload, hs256))), ErrSignature},
		"E08 HMAC called ES256":          {resign(t, good, one(token(t, header, payload, hs256))), ErrSignature},
		"E08 none":                       {resign(t, good, one(token(t, jwtHeader{Alg: "none", Kid: "k1"}, payload, func([]byte) []byte { return nil }))), ErrSignature},
		"E08 zero signature":             {resign(t, good, one(token(t, header, payload, func([]byte) []byte { return make([]byte, 64) }))), ErrSignature},
		"E08 key in the header":          {resign(t, good, one(es256(map[string]any{"alg": "ES256", "kid": "k1", "jwk": map[string]any{}}, payload, k))), ErrSignature},
		"E08 critical header":            {resign(t, good, one(es256(map[string]any{"alg": "ES256", "kid": "k1", "crit": []string{"b64"}, "b64": false}, payload, k))), ErrSignature},
		"E08 scope":                      {resign(t, good, one(es256(header, scoped, k))), ErrSignature},
		"E08 file not listed":            {resign(t, good, one(es256(header, missing, k))), ErrSignature},
		"E08 listed file missing":        {resign(t, good, one(es256(header, extra, k))), ErrSignature},
		"E08 weak hash":                  {resign(t, good, one(es256(header, weak, k))), ErrSignature},
		"not a JWT":                      {resign(t, good, one("x")), ErrSignature},
		"E16 policy changed":             {tamper(t, good, "sealed/authz/authz.rego", func(b []byte) []byte { return append(b, '\n') }), ErrSignature},
		"E16 manifest changed":           {tamper(t, good, manifestName, func(b []byte) []byte { return bytes.Replace(b, []byte(`"sequence":7`), []byte(`"sequence":8`), 1) }), ErrSignature},
		"E16 file added":                 {archive(t, append(mustRead(t, good), file{"sealed/extra.rego", []byte("package sealed.extra\n")})...), ErrSignature},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Open(context.Background(), tc.raw, k.options()); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
	t.Run("control: the same tools make a bundle that opens", func(t *testing.T) {
		if _, err := Open(context.Background(), resign(t, good, one(valid)), k.options()); err != nil {
			t.Error(err)
		}
	})
	t.Run("control: the plugin that opa sign names is no other verifier", func(t *testing.T) {
		if _, err := Open(context.Background(), resign(t, good, map[string]any{"signatures": []string{valid}, "plugin": "_default"}), k.options()); err != nil {
			t.Error(err)
		}
	})
	t.Run("control: without the check the stripped bundle loads", func(t *testing.T) {
		limits := Limits{}.withDefaults()
		if _, err := load(context.Background(), mustRead(t, resign(t, good, nil)), nil, limits); err != nil {
			t.Error(err)
		}
		changed := tamper(t, resign(t, good, nil), manifestName, func(b []byte) []byte { return bytes.Replace(b, []byte(`"sequence":7`), []byte(`"sequence":8`), 1) })
		if b, err := load(context.Background(), mustRead(t, changed), nil, limits); err != nil || b.Ref().Sequence != 8 {
			t.Errorf("%v, %v", b, err)
		}
	})
}

func mustRead(t testing.TB, raw []byte) []file {
	t.Helper()
	files, err := readArchive(raw, Limits{}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func tamper(t testing.TB, raw []byte, name string, change func([]byte) []byte) []byte {
	t.Helper()
	files := mustRead(t, raw)
	for i, f := range files {
		if f.name == name {
			files[i].data = change(bytes.Clone(f.data))
			if bytes.Equal(files[i].data, f.data) {
				t.Fatalf("%s: nothing changed", name)
			}
		}
	}
	return archive(t, files...)
}

func TestKeys(t *testing.T) {
	k := newKey(t)
	good := k.sign(t, buildDefault(t))
	priv, _, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	pub := func(key any) string {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]string{
		"empty": "", "text": "secret", "private": string(priv), "P-384": pub(&p384.PublicKey), "RSA": pub(&rsaKey.PublicKey),
		"two keys": k.public + k.public, "relabelled": strings.ReplaceAll(k.public, "PUBLIC KEY", "CERTIFICATE"),
	} {
		if _, err := Open(context.Background(), good, Options{Keys: map[string]string{"k1": key}}); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want ErrSignature", name, err)
		}
	}
	if _, err := Open(context.Background(), good, Options{}); !errors.Is(err, ErrSignature) {
		t.Errorf("no keys: got %v, want ErrSignature", err)
	}
	if _, err := Open(context.Background(), good, Options{Keys: map[string]string{"old": newKey(t).public, "k1": k.public}}); err != nil {
		t.Errorf("control: %v", err)
	}
	for name, sign := range map[string]func() ([]byte, error){
		"empty key id": func() ([]byte, error) { return Sign(context.Background(), good, k.signer, "") },
		"long key id":  func() ([]byte, error) { return Sign(context.Background(), good, k.signer, strings.Repeat("k", 129)) },
		"P-384":        func() ([]byte, error) { return Sign(context.Background(), good, p384, "k1") },
		"RSA":          func() ([]byte, error) { return Sign(context.Background(), good, rsaKey, "k1") },
	} {
		if _, err := sign(); !errors.Is(err, ErrSignature) {
			t.Errorf("Sign with %s: got %v, want ErrSignature", name, err)
		}
	}
}

// A second signature replaces the first.
func TestSignAgain(t *testing.T) {
	first, second := newKey(t), newKey(t)
	raw := second.sign(t, first.sign(t, buildDefault(t)))
	if _, err := Open(context.Background(), raw, first.options()); !errors.Is(err, ErrSignature) {
		t.Errorf("by the first key: %v", err)
	}
	if _, err := Open(context.Background(), raw, second.options()); err != nil {
		t.Errorf("by the second key: %v", err)
	}
}
