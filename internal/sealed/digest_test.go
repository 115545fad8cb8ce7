package sealed

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

var domains = []Domain{DomainManifest, DomainCommand, DomainInput, DomainAgent, DomainKeySpec, DomainApproval, DomainTicket, DomainClaim, DomainRequest, DomainAnswer, DomainTrust, DomainWorkspace, DomainRedacted}

func TestDigestOfSeparatesDomains(t *testing.T) {
	seen := map[Digest]string{}
	for _, d := range append(domains, "", "sealed.manifest.v") {
		for _, data := range []string{"", "x", "1\x00x", "\x00x"} {
			sum := DigestOf(d, []byte(data))
			if err := sum.Validate("d"); err != nil {
				t.Error(err)
			}
			what := string(d) + " of " + data
			if other, ok := seen[sum]; ok {
				t.Errorf("%q has the digest of %q", what, other)
			}
			seen[sum] = what
		}
	}
	for i, d := range domains {
		if strings.ContainsRune(string(d), 0) {
			t.Errorf("domain %q holds the separator", d)
		}
		for _, other := range domains[i+1:] {
			if d == other {
				t.Errorf("domain %q is used twice", d)
			}
		}
	}
	t.Run("negative control: without the separator two are one", func(t *testing.T) {
		join := func(d Domain, data string) string { return string(d) + data }
		if join("sealed.manifest.v", "1x") != join("sealed.manifest.v1", "x") {
			t.Error("the attack does not work without the control")
		}
	})
}

func TestDigestValidate(t *testing.T) {
	good := DigestOf(DomainInput, nil)
	for _, d := range []Digest{"", good[:63], good + "0", Digest(strings.ToUpper(string(good))), good[:63] + "g", good[:63] + " ", good[:63] + "\n", good[:63] + "\x00", Digest("sha256:" + good[7:]), good[:62] + "\u00e9"} {
		if err := d.Validate("f"); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", d, err)
		}
	}
}

func TestCommandDigest(t *testing.T) {
	seen := map[Digest][]string{}
	for _, argv := range [][]string{nil, {}, {""}, {"", ""}, {"a b"}, {"a", "b"}, {"a", "b", ""}, {"", "a", "b"}, {"ab"}, {"a\x00b"}, {`a","b`}, {"a", "B"}, {"é"}, {"e\u0301"}, {"<a>"}, {`\u003ca\u003e`}, {"\ufffd"}} {
		d := CommandDigest(argv)
		if other, ok := seen[d]; ok {
			t.Errorf("%q has the digest of %q", argv, other)
		}
		seen[d] = argv
	}
	for _, arg := range []string{"\xff", "\xfe", "a\xc3", "\xed\xa0\x80"} { // JSON would make U+FFFD of each
		if d := CommandDigest([]string{"x", arg}); d != "" || d.Validate("command_digest") == nil {
			t.Errorf("%q: got %q, want a digest that is refused", arg, d)
		}
	}
}

func testKey(seed byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))
}

func pub(k ed25519.PrivateKey) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }

func TestSigned(t *testing.T) {
	key := testKey(1)
	want := ConfirmAnswer{Run: "01ARZ3NDEKTSV4RRFFQ69G5FAV", Grant: "g", Epoch: 7}
	s, err := Sign(DomainAnswer, want, key)
	if err != nil {
		t.Fatal(err)
	}
	var got ConfirmAnswer
	if err := s.Open(DomainAnswer, pub(key), &got); err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
	refused := func(name string, s Signed, d Domain, key ed25519.PublicKey) {
		t.Helper()
		got := ConfirmAnswer{}
		if err := s.Open(d, key, &got); !errors.Is(err, ErrInvalid) || got != (ConfirmAnswer{}) {
			t.Errorf("%s: got %+v, %v, want ErrInvalid and nothing", name, got, err)
		}
	}
	refused("other key", s, DomainAnswer, pub(testKey(2)))
	refused("no key", s, DomainAnswer, nil)
	refused("short key", s, DomainAnswer, pub(key)[:31])
	refused("long key", s, DomainAnswer, append(bytes.Clone(pub(key)), 0))
	for _, d := range domains {
		if d != DomainAnswer {
			refused(string(d), s, d, pub(key))
		}
	}
	for i := range s.Payload {
		refused("flipped payload", Signed{s.Payload[:i] + string([]byte{s.Payload[i] ^ 1}) + s.Payload[i+1:], s.Signature}, DomainAnswer, pub(key))
	}
	for i := range s.Signature { // each character, also the padding bits of the last one
		for _, c := range "AZaz09+/=\n" {
			if byte(c) != s.Signature[i] {
				refused("changed signature", Signed{s.Payload, s.Signature[:i] + string(c) + s.Signature[i+1:]}, DomainAnswer, pub(key))
			}
		}
	}
	for name, sig := range map[string]string{"no signature": "", "line feed": s.Signature + "\n", "inner line feed": s.Signature[:4] + "\r\n" + s.Signature[4:], "cut": s.Signature[:84], "more": s.Signature + "AAAA", "URL alphabet": base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 64))} {
		refused(name, Signed{s.Payload, sig}, DomainAnswer, pub(key))
	}
	refused("more payload", Signed{s.Payload + " ", s.Signature}, DomainAnswer, pub(key))
	refused("moved separator", Signed{string(DomainAnswer) + "\x00" + s.Payload, s.Signature}, "", pub(key))
}

// A good signature does not excuse a document that is not well formed.
func TestSignedStaysStrict(t *testing.T) {
	key := testKey(1)
	for name, doc := range map[string]string{
		"unknown field": `{"run":"r","admin":true}`, "twice": `{"run":"r","run":"s"}`, "other case": `{"Run":"r"}`, "trailing": `{"run":"r"}{}`, "not JSON": `run`, "too large": `{"run":"` + strings.Repeat("a", MaxDocument) + `"}`,
	} {
		sig := ed25519.Sign(key, SigningBytes(DomainAnswer, []byte(doc)))
		s := Signed{Payload: doc, Signature: base64.StdEncoding.EncodeToString(sig)}
		if err := s.Open(DomainAnswer, pub(key), &ConfirmAnswer{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	if _, err := Sign(DomainAnswer, func() {}, key); err == nil {
		t.Error("signed what can't be encoded")
	}
	t.Run("negative control: the document alone is accepted", func(t *testing.T) {
		s, _ := Sign(DomainAnswer, ConfirmAnswer{Run: "r"}, testKey(2))
		var got ConfirmAnswer
		if err := Decode([]byte(s.Payload), MaxDocument, &got); err != nil || got.Run != "r" {
			t.Errorf("the forged document is refused for another reason: %v", err)
		}
	})
}

func FuzzSignedOpen(f *testing.F) {
	key := testKey(1)
	s, _ := Sign(DomainAnswer, ConfirmAnswer{Run: "r"}, key)
	f.Add(s.Payload, s.Signature)
	f.Add(s.Payload+" ", s.Signature)
	f.Fuzz(func(t *testing.T, payload, sig string) {
		if (Signed{payload, sig}).Open(DomainAnswer, pub(key), &ConfirmAnswer{}) == nil && (payload != s.Payload || sig != s.Signature) {
			t.Fatalf("accepted %q, %q", payload, sig)
		}
	})
}
