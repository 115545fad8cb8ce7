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

// TestDetect: what looks like a payment card is stored until the mount's configuration says otherwise: the control. Then it is masked in the transcript, the log
// has it, and it is no miss of the redactor. The configuration stays as it is: less of it would wait for a second person.
func TestDetect(t *testing.T) {
	each(t, func(t *testing.T, s *harness.Stack, l launcher) {
		profile, _ := plant(t, s, "DETECT_TOKEN")
		run := func() (harness.Result, []vaultclient.LogEntry, string) {
			r := s.Ctl(t, l.caller(), "run", "--agent", "custom", "--profile", profile, "--", "echo", "card 4111 1111 1111 1111 is of nobody").Want(t, 0)
			stored, err := os.ReadFile(filepath.Join(r.RunDir(t), "stdout.log"))
			if err != nil {
				t.Fatal(err)
			}
			wantStored(t, r, stored)
			return r, s.Entries(t, r.RunID(t)), string(stored)
		}
		isDetected := func(e vaultclient.LogEntry) bool { return e.Type == "redact.detected" }

		root, err := s.Root()
		harness.Must(t, err)
		cfg, err := root.Read(t.Context(), s.Status.Mount+"/config", nil)
		harness.Must(t, err)
		if kinds, _ := cfg["detect"].([]any); len(kinds) == 0 { // as it is by default
			if r, entries, stored := run(); stored != r.Stdout || slices.ContainsFunc(entries, isDetected) {
				t.Errorf("control: detectors are on by default: %q", stored)
			}
			_, err := root.Write(t.Context(), s.Status.Mount+"/config", map[string]any{"detect": []string{"personal-data"}})
			harness.Must(t, err)
		}

		r, entries, stored := run()
		if r.Stdout != "card 4111 1111 1111 1111 is of nobody\n" || stored != "card [sealed:payment-card] is of nobody\n" {
			t.Errorf("shown is %q, stored is %q", r.Stdout, stored)
		}
		if !slices.ContainsFunc(entries, isDetected) || slices.ContainsFunc(entries, isMiss) {
			t.Error("the log does not say what was detected, or says that it was missed")
		}
		if !strings.Contains(r.Stderr, "warning: detected payment-card (1) on stdout; shown, but masked in the transcript") {
			t.Errorf("the operator is not told: %q", r.Stderr)
		}
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
