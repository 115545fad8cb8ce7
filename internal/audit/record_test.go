package audit

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/dsse"
)

func TestRecordRoundTrip(t *testing.T) {
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	in := statement(runA, []byte("c"), []byte("f"))
	envelope, err := SignRecord(in, key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenRecord(envelope, pub)
	if err != nil {
		t.Fatal(err)
	}
	in.Type, in.PredicateType = StatementType, PredicateType
	in = in.utc()
	in.Predicate.Revocations = nil
	if diff := cmp.Diff(in, got); diff != "" {
		t.Error(diff)
	}
	if other, _, _ := ed25519.GenerateKey(rand.Reader); true {
		if _, err := OpenRecord(envelope, other); !errors.Is(err, ErrRecord) {
			t.Errorf("another key: %v", err)
		}
	}
	if _, err := OpenRecord(envelope, nil); !errors.Is(err, ErrRecord) {
		t.Errorf("no key: %v", err)
	}
}

// What is signed by the right key can still be no record.
func TestOpenRecordRefuses(t *testing.T) {
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	good, err := SignRecord(statement(runA, nil, nil), key)
	if err != nil {
		t.Fatal(err)
	}
	var shape envelopeShape
	if err := json.Unmarshal(good, &shape); err != nil {
		t.Fatal(err)
	}
	payload, _ := base64.StdEncoding.DecodeString(shape.Payload)
	sign := func(payloadType, payload string) []byte {
		s, err := signature.LoadED25519Signer(key)
		if err != nil {
			t.Fatal(err)
		}
		e, err := dsse.WrapSigner(s, payloadType).SignMessage(strings.NewReader(payload))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	edit := func(old, new string) string { return strings.Replace(string(payload), old, new, 1) }
	if _, err := OpenRecord(sign(PayloadType, string(payload)), pub); err != nil {
		t.Fatal(err)
	}
	for name, envelope := range map[string][]byte{
		"payload type":         sign("text/plain", string(payload)),
		"unknown field":        sign(PayloadType, edit(`{"_type"`, `{"x":1,"_type"`)),
		"repeated field":       sign(PayloadType, edit(`"tenant":"acme"`, `"tenant":"evil","tenant":"acme"`)),
		"other case":           sign(PayloadType, edit(`"tenant"`, `"Tenant"`)),
		"trailing":             sign(PayloadType, string(payload)+"{}"),
		"space":                sign(PayloadType, " "+string(payload)),
		"statement type":       sign(PayloadType, edit("Statement/v1", "Statement/v2")),
		"predicate type":       sign(PayloadType, edit("agent-run/v1", "agent-run/v2")),
		"manifest":             sign(PayloadType, edit(`"manifest_digest":"`, `"manifest_digest":"0`)),
		"run":                  sign(PayloadType, edit(runA, "x")),
		"unknown subject":      sign(PayloadType, edit(`"name":"stdout"`, `"name":"other"`)),
		"two subjects":         sign(PayloadType, edit(`"name":"stdout"`, `"name":"stderr"`)),
		"not JSON":             sign(PayloadType, "x"),
		"empty":                nil,
		"no signature":         []byte(`{"payloadType":"` + PayloadType + `","payload":"` + shape.Payload + `","signatures":[]}`),
		"envelope with space":  append([]byte(" "), good...),
		"envelope trailing":    append(bytes.Clone(good), '\n'),
		"too large":            append(bytes.Clone(good), make([]byte, MaxRecord)...),
		"url base64 signature": bytes.Replace(good, []byte(shape.Signatures[0].Sig), []byte(strings.NewReplacer("+", "-", "/", "_").Replace(shape.Signatures[0].Sig)+"=="), 1),
	} {
		if _, err := OpenRecord(envelope, pub); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad := statement(runA, nil, nil)
	bad.Predicate.Run = "x"
	if _, err := SignRecord(bad, key); !errors.Is(err, ErrRecord) {
		t.Errorf("signing: %v", err)
	}
}

func TestCheckConsistencyRefuses(t *testing.T) {
	signer, vkey := testKey(t, "sealed.test/log")
	v := verifierOf(t, vkey)
	l, fork := openLog(t, newMemory(), signer), openLog(t, newMemory(), signer)
	empty, _ := l.Checkpoint(t.Context())
	heads := map[int][]byte{0: empty}
	for i := 1; i <= 5; i++ {
		appendN(t, l, 1)
		heads[i], _ = l.Checkpoint(t.Context())
	}
	appendN(t, fork, 5)
	other, _ := fork.Checkpoint(t.Context())
	for old := range 6 {
		for now := old; now <= 5; now++ {
			proof, err := l.ConsistencyProof(t.Context(), uint64(old), uint64(now))
			if err != nil {
				t.Fatal(err)
			}
			if err := CheckConsistency(heads[old], heads[now], proof, v); err != nil {
				t.Errorf("%d to %d: %v", old, now, err)
			}
			if err := CheckConsistency(heads[old], heads[now], append(proof, Hash{}), v); err == nil {
				t.Errorf("%d to %d: a longer proof was accepted", old, now)
			}
			if err := CheckConsistency(heads[now], heads[old], proof, v); old != now && !errors.Is(err, ErrInconsistent) {
				t.Errorf("%d back to %d: %v", now, old, err)
			}
			if err := CheckConsistency(heads[old], other, proof, v); old > 0 && !errors.Is(err, ErrInconsistent) {
				t.Errorf("%d to a fork: %v", old, err)
			}
		}
	}
	_, foreign := testKey(t, "sealed.test/log")
	if err := CheckConsistency(heads[1], heads[1], nil, verifierOf(t, foreign)); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("another key: %v", err)
	}
}
