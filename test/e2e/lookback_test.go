package e2e

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/harness"
)

// TestSecondLook: a value in pieces over the deltas of JSON events is joined
// and masked at once. One that only decoding twice shows passes the screen (the
// control), and is neither stored nor kept quiet.
func TestSecondLook(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, c := plant(t, s, "LOOK_TOKEN")
		run := func(script string) (harness.Result, string) {
			r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "sh", "-c", script).Want(t, 0)
			stored, err := os.ReadFile(filepath.Join(r.RunDir(t), "stdout.log"))
			if err != nil {
				t.Fatal(err)
			}
			wantClean(t, c, map[string]string{"stdout": r.Stdout, "stderr": r.Stderr})
			wantCleanRun(t, s, l, r, c)
			wantStored(t, r, stored)
			return r, string(stored)
		}

		const delta = `{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"}}}\n`
		r, stored := run(`printf '` + delta + `' "it is " "$(printf %s "$LOOK_TOKEN" | cut -c1-9)" "$(printf %s "$LOOK_TOKEN" | cut -c10-)" " indeed"; printf '{"type":"stream_event","event":{"type":"content_block_stop","index":0}}\n'`)
		if got := deltaTexts(t, r.Stdout); got != "it is [sealed:LOOK_TOKEN] indeed" || stored != r.Stdout {
			t.Errorf("the deltas say %q; stored is %q", got, stored)
		}
		if slices.ContainsFunc(s.Entries(t, r.RunID(t)), isMiss) {
			t.Error("the two looks disagree")
		}

		r, stored = run(`printf 'key %s end' "$LOOK_TOKEN" | base64 -w0 | base64 -w0`)
		twice := base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString([]byte("key " + c.Value + " end"))))
		if r.Stdout != twice {
			t.Errorf("control: the first look was to let it pass: %q", r.Stdout)
		}
		if stored != "[sealed:LOOK_TOKEN]" {
			t.Errorf("stored is %q", stored)
		}
		if !strings.Contains(r.Stderr, "the redactor missed LOOK_TOKEN (1) on stdout") {
			t.Errorf("the operator is not told: %q", r.Stderr)
		}
		wantEntries(t, s.Entries(t, r.RunID(t)), "redact.miss", "run.finished")
	})
}

func isMiss(e vaultclient.LogEntry) bool { return e.Type == "redact.miss" }

// deltaTexts joins what events say.
func deltaTexts(t *testing.T, out string) (text string) {
	t.Helper()
	for line := range strings.Lines(out) {
		var e struct {
			Event struct{ Delta struct{ Text string } }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("not an event: %q", line)
		}
		text += e.Event.Delta.Text
	}
	return text
}

// wantStored checks that the record names the stored transcript, and has a
// member about misses exactly if the transcript is not what was shown.
func wantStored(t *testing.T, r harness.Result, stored []byte) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(r.RunDir(t), "record.dsse.json"))
	if err != nil {
		t.Fatal(err)
	}
	var envelope struct{ Payload []byte }
	if err := json.Unmarshal(data, &envelope); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(stored)
	if !strings.Contains(string(envelope.Payload), hex.EncodeToString(sum[:])) {
		t.Errorf("the record does not name what is stored: %s", envelope.Payload)
	}
	if got := strings.Contains(string(envelope.Payload), `"misses"`); got == (string(stored) == r.Stdout) {
		t.Errorf("misses in the record: %v", got)
	}
}
