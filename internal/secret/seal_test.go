package secret

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hpke"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

var testContext = Context{Run: "01ARZ3NDEKTSV4RRFFQ69G5FAV", Grant: "01ARZ3NDEKTSV4RRFFQ69G5FAW", Key: "GITHUB_TOKEN"}

func newKey(t *testing.T) *PrivateKey {
	t.Helper()
	k, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func seal(t *testing.T, k *PrivateKey, value []byte) string {
	t.Helper()
	ct, err := Seal(k.Public(), testContext, New(value))
	if err != nil {
		t.Fatal(err)
	}
	return ct
}

func TestSealRoundTrip(t *testing.T) {
	k := newKey(t)
	for name, value := range map[string][]byte{"text": []byte(canary), "empty": {}, "binary": {0, 0xff, 0, '\n'}, "64 KiB": bytes.Repeat([]byte(canary[:16]), 4<<10)} {
		want := bytes.Clone(value)
		ct := seal(t, k, value)
		got, err := k.Open(testContext, ct)
		if err != nil || !bytes.Equal(reveal(t, got), want) {
			t.Errorf("%s: %v", name, err)
		}
		if again := seal(t, k, bytes.Clone(want)); again == ct {
			t.Errorf("%s: two ciphertexts are equal", name)
		}
	}
	for name, v := range map[string]*Value{"nil": nil, "zero": {}} {
		ct, err := Seal(k.Public(), testContext, v)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := k.Open(testContext, ct); err != nil || len(reveal(t, got)) != 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSealerSealsOnce(t *testing.T) {
	key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSealer(key.Public(), Context{Run: "r", Grant: "g", Key: "K"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Seal(New([]byte("first"))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Seal(New([]byte("second"))); err == nil {
		t.Error("a second value was sealed")
	}
}

func TestCiphertextHidesValue(t *testing.T) {
	k := newKey(t)
	forms := func(ct string) bool {
		raw, err := base64.StdEncoding.DecodeString(ct)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(raw, []byte(canary)) || strings.Contains(hex.EncodeToString(raw), hex.EncodeToString([]byte(canary))) || strings.Contains(ct, canary)
	}
	if forms(seal(t, k, bytes.Repeat([]byte(canary), 100))) {
		t.Error("the ciphertext shows the value")
	}
	if !forms(base64.StdEncoding.EncodeToString([]byte("x" + canary))) {
		t.Error("negative control: an encoded value is not recognized")
	}
}

func refused(t *testing.T, name string, k *PrivateKey, c Context, ct string) {
	t.Helper()
	v, err := k.Open(c, ct)
	if !errors.Is(err, ErrOpen) || v != nil {
		t.Errorf("%s: got %v, want ErrOpen and nothing", name, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	k := newKey(t)
	ct := seal(t, k, []byte(canary))
	c := testContext
	for name, other := range map[string]Context{
		"run": {c.Run[:25] + "X", c.Grant, c.Key}, "grant": {c.Run, c.Grant[:25] + "X", c.Key}, "key": {c.Run, c.Grant, "GITHUB_TOKEN2"}, "key in lower case": {c.Run, c.Grant, "github_token"},
		"no run": {"", c.Grant, c.Key}, "no grant": {c.Run, "", c.Key}, "no key": {c.Run, c.Grant, ""}, "nothing": {}, "swapped": {c.Grant, c.Run, c.Key},
		"moved border": {c.Run + c.Grant[:1], c.Grant[1:], c.Key},
	} {
		refused(t, name, k, other, ct)
	}
	refused(t, "other key", newKey(t), c, ct)
	raw, _ := base64.StdEncoding.DecodeString(ct)
	encode := base64.StdEncoding.EncodeToString
	for i := range raw { // encapsulated key, value and tag
		if i > 64 && i < len(raw)-64 && i%13 != 0 {
			continue
		}
		flipped := bytes.Clone(raw)
		flipped[i] ^= 1 << (i % 8)
		refused(t, "flipped", k, c, encode(flipped))
	}
	for _, n := range []int{0, 1, 16, 32, 1120, len(raw) - 17, len(raw) - 16, len(raw) - 1} {
		refused(t, "cut", k, c, encode(raw[:n]))
	}
	refused(t, "longer", k, c, encode(append(bytes.Clone(raw), 0)))
	refused(t, "twice", k, c, encode(append(bytes.Clone(raw), raw...)))
	refused(t, "not base64", k, c, "*"+ct)
	refused(t, "plain", k, c, encode([]byte(canary)))
	refused(t, "empty", k, c, "")
	if _, err := k.Open(c, ct); err != nil {
		t.Errorf("negative control: unchanged it is refused too: %v", err)
	}
}

func TestValidatePublic(t *testing.T) {
	good := newKey(t).Public()
	if err := ValidatePublic(good); err != nil {
		t.Fatal(err)
	}
	raw, _ := base64.StdEncoding.DecodeString(good)
	x, err := hpke.DHKEM(ecdh.X25519()).GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	outOfRange := bytes.Clone(raw)
	copy(outOfRange, bytes.Repeat([]byte{0xff}, 1152)) // coefficients above q: FIPS 203 §7.2 modulus check
	for name, b := range map[string][]byte{
		"empty": {}, "cut": raw[:len(raw)-1], "longer": append(bytes.Clone(raw), 0), "X25519 alone": x.PublicKey().Bytes(), "ML-KEM alone": raw[:len(raw)-32], "out of range": outOfRange,
	} {
		s := base64.StdEncoding.EncodeToString(b)
		if ValidatePublic(s) == nil {
			t.Errorf("%s was accepted", name)
		}
		if ct, err := Seal(s, testContext, New([]byte(canary))); err == nil || ct != "" {
			t.Errorf("%s: sealed to it", name)
		}
	}
	for name, s := range map[string]string{"not base64": "*" + good, "hex": hex.EncodeToString(raw), "URL alphabet": base64.RawURLEncoding.EncodeToString(raw)} {
		if ValidatePublic(s) == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzOpen(f *testing.F) {
	k, err := GenerateKey()
	if err != nil {
		f.Fatal(err)
	}
	ct, err := Seal(k.Public(), testContext, New([]byte(canary)))
	if err != nil {
		f.Fatal(err)
	}
	raw, _ := base64.StdEncoding.DecodeString(ct)
	f.Add(raw)
	f.Add(raw[:1120])
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := k.Open(testContext, base64.StdEncoding.EncodeToString(data))
		if (err == nil) != bytes.Equal(data, raw) || (err != nil && (v != nil || !errors.Is(err, ErrOpen))) {
			t.Fatalf("%x: %v", data, err)
		}
	})
}
