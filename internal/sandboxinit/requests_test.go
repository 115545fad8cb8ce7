package sandboxinit

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"sealed.dev/sealed/internal/sealed"
)

// askRig is the agent's side door on a keyring.
type askRig struct {
	*keyRig
	h http.Handler
}

func newAskRig(t *testing.T, d *engineDouble) *askRig {
	t.Helper()
	r := newKeyRig(t, d, nil)
	q := &requests{keys: r.keyring, pending: map[sealed.KeyName]sealed.ApprovalID{}}
	return &askRig{r, q.handler()}
}

// do sends one request. No answer ever holds a value.
func (r *askRig) do(method, path, body string, out any) int {
	r.t.Helper()
	w := httptest.NewRecorder()
	r.h.ServeHTTP(w, httptest.NewRequestWithContext(r.t.Context(), method, path, strings.NewReader(body)))
	noLeak(r.t, method+" "+path, w.Body.String())
	if out != nil {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			r.t.Errorf("%s %s: %q: %v", method, path, w.Body, err)
		}
	}
	return w.Code
}

func (r *askRig) ask(key string) (int, keyState) {
	r.t.Helper()
	var st keyState
	status := r.do(http.MethodPost, "/sealed/requests", `{"key":"`+key+`","reason":"to push \u202e a branch"}`, &st)
	return status, st
}

var ignoreText = cmpopts.IgnoreFields(sealed.Reason{}, "Msg")

func TestAsk(t *testing.T) {
	waits := with("ASK", sealed.EffectRequireApproval, sealed.DeliveryProxy)
	allow := func(d *engineDouble) {
		d.more = func(a *sealed.MoreAnswer) { a.Effect, a.Approval = sealed.EffectAllow, "" }
	}
	reason := func(code string) []sealed.Reason { return []sealed.Reason{{Code: code}} }
	for name, tt := range map[string]struct {
		change func(*engineDouble)
		key    string
		status int
		want   keyState
		more   int // calls of requests
	}{
		"granted": {allow, "ASK", 200, keyState{Key: "ASK", State: "granted", Delivery: "proxy", BaseURL: "/b/ASK"}, 1},
		"pending": {func(d *engineDouble) { d.before = onVerb("creds", 428) }, "ASK", 202, keyState{Key: "ASK", State: "pending", Approval: "01JBBBBBBBBBBBBBBBBBBBBBBB"}, 1},
		"denied": {func(d *engineDouble) {
			d.more = func(a *sealed.MoreAnswer) { a.Effect, a.Reasons = sealed.EffectDeny, reason("too_late") }
		}, "ASK", 403, keyState{Key: "ASK", State: "denied", Reasons: reason("too_late")}, 1},
		"refused":     {func(d *engineDouble) { d.before = onVerb("creds", 403) }, "ASK", 403, keyState{Key: "ASK", State: "denied", Reasons: reason("refused")}, 1},
		"engine down": {func(d *engineDouble) { d.before = onVerb("requests", 503) }, "ASK", 503, keyState{Key: "ASK", State: "unavailable", Reasons: reason("unavailable")}, 1},
		"source down": {func(d *engineDouble) { d.before = onVerb("creds", 502) }, "ASK", 503, keyState{Key: "ASK", State: "unavailable", Reasons: reason("unavailable")}, 1},
		"unknown key": {nil, "NOPE", 403, keyState{Key: "NOPE", State: "denied", Reasons: reason("not_available")}, 0},
		"denied key":  {nil, "NO", 403, keyState{Key: "NO", State: "denied", Reasons: reason("not_available")}, 0},
		"no key":      {nil, "", 403, keyState{State: "denied", Reasons: reason("not_available")}, 0},
		"of env":      {nil, "ENV_KEY", 403, keyState{Key: "ENV_KEY", State: "denied", Reasons: reason("delivery")}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDouble(t)
			deliver(d, waits, with("NO", sealed.EffectDeny, sealed.DeliveryProxy), with("ENV_KEY", sealed.EffectRequireApproval, sealed.DeliveryEnv))
			if tt.change != nil {
				tt.change(d)
			}
			r := newAskRig(t, d)
			status, got := r.ask(tt.key)
			if got.State == "granted" {
				tt.want.Placeholder = r.placeholders["ASK"]
			}
			if diff := cmp.Diff(tt.want, got, ignoreText); diff != "" || status != tt.status {
				t.Errorf("status %d, want %d\n%s", status, tt.status, diff)
			}
			calls := d.of("requests")
			if len(calls) != tt.more {
				t.Fatalf("the engine was asked %d times", len(calls))
			}
			if tt.more > 0 && !strings.Contains(calls[0].payload, `"reason":"to push a branch"`) {
				t.Errorf("the engine was asked %s", calls[0].payload)
			}
			if granted := got.State == "granted"; r.live("ASK") != granted || (r.use("ASK") == http.StatusOK) != granted {
				t.Errorf("%s, but live: %v", got.State, r.live("ASK"))
			}
		})
	}
}

// A pending request is asked for once; the next ones only try to issue. Where
// the source is down after the yes, the yes is not asked for again.
func TestAskAgain(t *testing.T) {
	d := newDouble(t)
	deliver(d, with("ASK", sealed.EffectRequireApproval, sealed.DeliveryProxy))
	status := map[int]int{1: 428, 2: 428, 3: 502, 4: 502} // the third is tried twice
	d.before = func(w http.ResponseWriter, _ *http.Request, verb string, n int) bool {
		return verb == "creds" && status[n] != 0 && refuse(w, status[n])
	}
	r := newAskRig(t, d)
	for i, want := range []int{202, 202, 503, 200, 200} {
		if got, st := r.ask("ASK"); got != want {
			t.Errorf("request %d: status %d, want %d: %+v", i, got, want, st)
		}
	}
	if n := len(d.of("requests")); n != 1 {
		t.Errorf("the engine was asked %d times", n)
	}
}

// However many ask at once, there is one grant.
func TestConcurrentAsksGiveOneGrant(t *testing.T) {
	d := newDouble(t)
	deliver(d, with("ASK", sealed.EffectRequireApproval, sealed.DeliveryProxy))
	r := newAskRig(t, d)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if status, st := r.ask("ASK"); status != http.StatusOK || st.Placeholder != r.placeholders["ASK"] {
				t.Errorf("status %d: %+v", status, st)
			}
		})
	}
	wg.Wait()
	if n := len(d.of("creds")); n != 1 || len(r.grants) != 1 {
		t.Errorf("creds was called %d times; %d grants", n, len(r.grants))
	}
}

func TestListKeys(t *testing.T) {
	d := newDouble(t)
	deliver(d, testKey("API_KEY"), with("ENV_KEY", sealed.EffectAllow, sealed.DeliveryEnv),
		with("ASK", sealed.EffectRequireApproval, sealed.DeliveryProxy), with("NO", sealed.EffectDeny, sealed.DeliveryProxy))
	d.value = func(key string) string { return valueCanary + key }
	r := newAskRig(t, d)
	if _, err := r.issueAllowed(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []keyState
	if status := r.do(http.MethodGet, "/sealed/keys", "", &got); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	want := []keyState{
		{Key: "API_KEY", State: "granted", Delivery: "proxy", Placeholder: r.placeholders["API_KEY"], BaseURL: "/b/API_KEY"},
		{Key: "ENV_KEY", State: "granted", Delivery: "env"},
		{Key: "ASK", State: "available", Delivery: "proxy"},
		{Key: "NO", State: "denied", Delivery: "proxy"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}

	d.before = func(w http.ResponseWriter, _ *http.Request, verb string, _ int) bool {
		return verb == "creds" && refuse(w, http.StatusPreconditionRequired)
	}
	_, asked := r.ask("ASK")
	if r.do(http.MethodGet, "/sealed/keys", "", &got); asked.Approval == "" || got[2].State != "pending" || got[2].Approval != asked.Approval {
		t.Errorf("a key that waits is listed as %+v", got[2])
	}
}

func TestMalformedRequests(t *testing.T) {
	r := newAskRig(t, newDouble(t))
	for name, tt := range map[string]struct {
		method, path, body string
		status             int
	}{
		"not JSON":     {"POST", "/sealed/requests", "key=ASK", 400},
		"empty":        {"POST", "/sealed/requests", "", 400},
		"wrong type":   {"POST", "/sealed/requests", `{"key":7}`, 400},
		"too large":    {"POST", "/sealed/requests", `{"reason":"` + strings.Repeat("x", 9<<10) + `"}`, 400},
		"wrong method": {"GET", "/sealed/requests", "", 405},
		"write a list": {"POST", "/sealed/keys", "", 405},
		"other path":   {"GET", "/sealed/values/API_KEY", "", 404},
	} {
		if got := r.do(tt.method, tt.path, tt.body, nil); got != tt.status {
			t.Errorf("%s: status %d, want %d", name, got, tt.status)
		}
	}
	if n := len(r.d.of("requests")); n != 0 {
		t.Errorf("the engine was asked %d times", n)
	}
}
