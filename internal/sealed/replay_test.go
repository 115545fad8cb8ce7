package sealed

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParseReplaySpec(t *testing.T) {
	digest := CommandDigest([]string{"true"})
	good := fmt.Sprintf(`{"idempotency_key":"0123456789abcdef","command_digest":%q}`, digest)
	if r, err := ParseReplaySpec([]byte(good)); err != nil || r.CommandDigest != digest {
		t.Errorf("%+v, %v", r, err)
	}
	for name, doc := range map[string]string{
		"empty": ``, "null": `null`, "no key": `{}`, "short key": `{"idempotency_key":"x"}`, "long key": `{"idempotency_key":"` + strings.Repeat("x", 65) + `"}`,
		"more": `{"idempotency_key":"0123456789abcdef","mode":"bare"}`, "twice": `{"idempotency_key":"0123456789abcdef","idempotency_key":"0123456789abcdef"}`,
		"list": `[]`, "large": `{"idempotency_key":"0123456789abcdef","command_digest":"` + strings.Repeat("x", 8<<10) + `"}`,
	} {
		if _, err := ParseReplaySpec([]byte(doc)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseHostWatchRequest(t *testing.T) {
	const id = `"01JD0Z5X7RS3X7Q4K5M6N7P8Q9"`
	r, err := ParseHostWatchRequest([]byte(`{"runs":[` + id + `],"epoch":7,"wait":"1s"}`))
	if err != nil || len(r.Runs) != 1 || r.Epoch != 7 || r.Wait.Std().Seconds() != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	for name, doc := range map[string]string{
		"empty": ``, "none": `{"runs":[]}`, "null": `{"runs":null}`, "twice": `{"runs":[` + id + `,` + id + `]}`, "path": `{"runs":["../config"]}`,
		"lower case": `{"runs":["01jd0z5x7rs3x7q4k5m6n7p8q9"]}`, "many": `{"runs":[` + strings.TrimSuffix(strings.Repeat(id+",", MaxHostRuns+1), ",") + `]}`,
		"wait": `{"runs":[` + id + `],"wait":"-1s"}`, "epoch": `{"runs":[` + id + `],"epoch":-1}`, "more": `{"runs":[` + id + `],"tenant":"x"}`,
	} {
		if _, err := ParseHostWatchRequest([]byte(doc)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParseHostWatchRequest(f *testing.F) {
	f.Add([]byte(`{"runs":["01JD0Z5X7RS3X7Q4K5M6N7P8Q9"],"epoch":7,"wait":"1s"}`))
	f.Add([]byte(`{"runs":["../x",""]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseHostWatchRequest(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v is not ErrInvalid", err)
			}
			return
		}
		again, err := json.Marshal(r)
		if err != nil || len(r.Runs) == 0 || len(r.Runs) > MaxHostRuns || r.Wait < 0 {
			t.Fatalf("accepted %s: %v", again, err)
		}
	})
}

func FuzzParseReplaySpec(f *testing.F) {
	f.Add([]byte(`{"idempotency_key":"0123456789abcdef","command_digest":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := ParseReplaySpec(data); err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatalf("%v is not ErrInvalid", err)
		}
	})
}
