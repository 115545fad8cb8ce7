package matrix

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/attack/guest"
	"sealed.dev/sealed/test/harness"
)

var update = flag.Bool("update", false, "write testdata/matrix.txt anew; review it")

const table = "testdata/matrix.txt"

// operations are those of Vault, with how HTTP spells them.
var operations = []struct{ name, method, query string }{
	{"read", http.MethodGet, ""}, {"list", http.MethodGet, "?list=true"}, {"update", http.MethodPost, ""},
	{"patch", http.MethodPatch, ""}, {"delete", http.MethodDelete, ""},
}

// elsewhere are no paths of the engine.
var elsewhere = []string{"nowhere", "runs/{run}/nowhere", "runs/{run}/creds", "config/keys", "secrets", "grants/{id}", "profiles"}

// special are paths whose names matter to who may call them.
var special = []string{"profiles/user/{self}/x", "profiles/user/{another}/x"}

// paths are those of the mount's OpenAPI document, as templates.
func (w *world) paths(t *testing.T) (templates []string, supported map[string]bool) {
	t.Helper()
	a := w.ask(t, w.token("root-token"), http.MethodGet, "sys/internal/specs/openapi", nil)
	var doc struct {
		Paths map[string]map[string]json.RawMessage
	}
	harness.Must(t, json.Unmarshal([]byte(a.body), &doc))
	supported = map[string]bool{}
	for path, verbs := range doc.Paths {
		path, ours := strings.CutPrefix(path, "/"+w.Status.Mount+"/")
		if !ours {
			continue
		}
		path = strings.TrimSuffix(path, "/")
		templates = append(templates, path)
		for verb, op := range map[string]string{"get": "read", "post": "update", "patch": "patch", "delete": "delete"} {
			if verbs[verb] != nil {
				supported[path+" "+op] = true
			}
		}
		if g := verbs["get"]; g != nil && bytes.Contains(g, []byte(`"list"`)) {
			supported[path+" list"] = true
			if !bytes.Contains(g, []byte("x-vault")) && !bytes.Contains(g, []byte(`"required":false,"schema":{"type":"string"},"name":"list"`)) {
				supported[path+" read"] = true
			}
		}
	}
	slices.Sort(templates)
	return slices.Compact(templates), supported
}

func (w *world) token(name string) string {
	for _, r := range w.roles {
		if r.name == name {
			return r.token
		}
	}
	return ""
}

// fill puts names into a template: of a run that lives, and of nothing else.
func (w *world) fill(template string, r role) string {
	return strings.NewReplacer("{self}", cmp.Or(r.entity, "nobody"), "{another}", "00000000-0000-0000-0000-000000000000", "{run}", string(w.live), "{id}", unknown, "{digest}", strings.Repeat("ab", 32), "{name}", "nothing", "{level}", "workflow", "{kind}", "profile", "{path}", "nothing/here",
		"{key}", "KEY", "{seq}", "999999", "{act}", "stop", "{vote}", "approve").Replace(template)
}

const unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV"

// cell says in a word who answered and what: "-" is Vault's policies, a number
// the engine. The body is empty, so what the engine answers to an update is
// mostly which field is missing: that the caller was let through is what counts.
func (w *world) cell(t *testing.T, r role, op struct{ name, method, query string }, template string) string {
	t.Helper()
	var body []byte
	if op.method == http.MethodPost || op.method == http.MethodPatch {
		body = []byte("{}")
	}
	a := w.ask(t, r.token, op.method, w.Status.Mount+"/"+w.fill(template, r)+op.query, body)
	if a.byVault() {
		return "-"
	}
	return strconv.Itoa(a.status)
}

// F01: the whole table. A line that is not in it is one that only root gets past
// Vault with, to hear that there is no such operation.
func TestF01Matrix(t *testing.T) {
	w := get(t)
	templates, supported := w.paths(t)
	if len(templates) < 30 {
		t.Fatalf("only %d paths are in the document", len(templates))
	}
	got := map[string]string{}
	for _, template := range slices.Concat(templates, elsewhere, special) {
		for _, op := range operations {
			var cells []string
			dull := true
			for _, r := range w.roles {
				c := w.cell(t, r, op, template)
				cells = append(cells, w.pad(len(cells), c))
				dull = dull && (c == "-" || r.name == "root-token" && (c == "405" || c == "404"))
			}
			if dull && !supported[template+" "+op.name] && !slices.Contains(elsewhere, template) {
				continue
			}
			got[template+" "+op.name] = strings.TrimSpace(strings.Join(cells, ""))
		}
	}
	if *update {
		w.write(t, got)
	}
	want := w.read(t)
	for name := range maps.Keys(supported) {
		if want[name] == "" {
			t.Errorf("%s has no row in %s", name, table)
		}
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("who may do what has changed (-table +engine); if it is meant, run with -update and review:\n%s", diff)
	}
}

// pad makes a cell as wide as its column.
func (w *world) pad(column int, text string) string {
	return fmt.Sprintf("%-*s", len(w.roles[column].name)+2, text)
}

func (w *world) write(t *testing.T, rows map[string]string) {
	t.Helper()
	var b strings.Builder
	b.WriteString(`# Who may do what: one line per path and operation, one column per role.
#
#   -        Vault's policies refuse
#   number   the engine answers; the request is empty and names nothing that
#            exists but {run}, which is enqueued. 400: a field is missing. 404:
#            there is none, or no such path. 403: the engine refuses. 405: no
#            such operation.
#
# Columns: nobody has a token without a policy; agent is a claimed run's, and not
# of {run}; stranger is an agent of another tenant under this tenant's
# sealed-agent policy; root-token has no entity; the others hold the ready-made
# policy sealed-<name>. {self} is the caller's own entity id.
`)
	names := make([]string, 0, len(w.roles))
	for _, r := range w.roles {
		names = append(names, w.pad(len(names), r.name))
	}
	fmt.Fprintf(&b, "%-34s %s\n", "#", strings.TrimSpace(strings.Join(names, "")))
	for _, k := range slices.Sorted(maps.Keys(rows)) {
		fmt.Fprintf(&b, "%-34s %s\n", k, rows[k])
	}
	harness.Must(t, os.WriteFile(table, []byte(b.String()), 0o644))
}

func (w *world) read(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile(table)
	harness.Must(t, err)
	out := map[string]string{}
	for lines := bufio.NewScanner(bytes.NewReader(b)); lines.Scan(); {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.Fields(line)
		if len(f) != 2+len(w.roles) {
			t.Fatalf("%s: %d cells for %d roles: %s", table, len(f)-2, len(w.roles), line)
		}
		var cells []string
		for _, c := range f[2:] {
			cells = append(cells, w.pad(len(cells), c))
		}
		out[f[0]+" "+f[1]] = strings.TrimSpace(strings.Join(cells, ""))
	}
	return out
}

// Help is for everybody with a token, and says the same to all: it is about
// paths, not about what is stored.
func TestF01Help(t *testing.T) {
	w := get(t)
	templates, _ := w.paths(t)
	for _, template := range append(templates, "") {
		path := w.Status.Mount + "/" + w.fill(template, role{}) + "?help=1"
		want := w.ask(t, w.token("root-token"), http.MethodGet, path, nil)
		for _, r := range w.roles {
			got := w.ask(t, r.token, http.MethodGet, path, nil)
			if got.status != http.StatusOK || sameBut(got.body) != sameBut(want.body) {
				t.Errorf("help on %s for %s: %d", template, r.name, got.status)
			}
		}
		if a := w.ask(t, "", http.MethodGet, path, nil); a.status == http.StatusOK {
			t.Errorf("help on %s without a token: %d", template, a.status)
		}
	}
}

// Without a token nothing is answered by the engine.
func TestF01NoToken(t *testing.T) {
	w := get(t)
	templates, _ := w.paths(t)
	for _, template := range append(templates, elsewhere...) {
		for _, op := range operations {
			if c := w.cell(t, role{}, op, template); c != "-" && c != "400" && c != "403" {
				t.Errorf("%s %s: %s", op.name, template, c)
			}
			a := w.ask(t, "", op.method, w.Status.Mount+"/"+w.fill(template, role{})+op.query, []byte("{}"))
			if !strings.Contains(a.body, "missing client token") && !a.byVault() {
				t.Errorf("%s %s: %d %s", op.name, template, a.status, a.body)
			}
		}
	}
}

// sameBut drops what differs between two answers that say the same: the id of
// the request, and the ids that were asked for.
func sameBut(body string, asked ...string) string {
	var v map[string]any
	if json.Unmarshal([]byte(body), &v) == nil {
		delete(v, "request_id")
		if b, err := json.Marshal(v); err == nil {
			body = string(b)
		}
	}
	for _, id := range asked {
		body = strings.ReplaceAll(body, id, "…")
	}
	return body
}

// F23: whoever may not know hears the same of what is there and of what is not:
// status, body, size.
func TestF23SameAnswerForUnknownAndForbidden(t *testing.T) {
	w := get(t)
	there := map[string]string{"{run}": string(w.live), "{id}": w.pending}
	foreign := string(w.guests[1].Run) // claimed, by another agent
	templates, _ := w.paths(t)
	compared := 0
	for _, template := range templates {
		for hole, id := range there {
			if !strings.Contains(template, hole) {
				continue
			}
			for _, id := range []string{id, foreign} {
				for _, op := range operations {
					for _, r := range w.roles {
						a := w.about(t, r, op, template, hole, id)
						if a.byVault() || w.mayKnow(r.name, template, op.name) {
							continue
						}
						b := w.about(t, r, op, template, hole, unknown)
						compared++
						if a.status != b.status || sameBut(a.body, id) != sameBut(b.body, unknown) {
							t.Errorf("%s %s as %s: of what is there %d %s; of what is not %d %s", op.name, template, r.name, a.status, a.body, b.status, b.body)
						}
					}
				}
			}
		}
	}
	if compared < 20 {
		t.Fatalf("only %d answers were compared", compared)
	}
	t.Logf("%d pairs of answers are the same", compared)
}

// mayKnow: who reads runs and approvals by right can tell which exist.
func (w *world) mayKnow(role, template, op string) bool {
	switch role {
	case "root-token", "operator", "auditor":
		return true
	case "approver":
		return strings.HasPrefix(template, "approvals/")
	}
	return false
}

func (w *world) about(t *testing.T, r role, op struct{ name, method, query string }, template, hole, id string) answer {
	t.Helper()
	var body []byte
	if op.method == http.MethodPost || op.method == http.MethodPatch {
		body = []byte("{}")
	}
	return w.ask(t, r.token, op.method, w.Status.Mount+"/"+w.fill(strings.ReplaceAll(template, hole, id), r)+op.query, body)
}

// A token without an entity is nobody: not even root's enqueues, votes or ends a
// run. A revocation needs no entity: it can only stop.
func TestF01RootWithoutEntity(t *testing.T) {
	w := get(t)
	spec, err := json.Marshal(harness.Enqueue(t, agentName, "matrix/p1"))
	harness.Must(t, err)
	id := w.pending
	view, err := w.Engine(t, "operator").Approval(t.Context(), sealed.ApprovalID(id))
	harness.Must(t, err)
	tests := map[string]map[string]any{
		"runs":                              {"spec": string(spec)},
		"approvals/" + id + "/approve":      {"digest": string(view.Digest)},
		"approvals/" + id + "/deny":         {"digest": string(view.Digest)},
		"runs/" + string(w.live) + "/stop":  {"reason": "test"},
		"runs/" + string(w.live) + "/close": {"reason": "test"},
	}
	for path, body := range tests {
		b, err := json.Marshal(body)
		harness.Must(t, err)
		if a := w.ask(t, w.token("root-token"), http.MethodPost, w.Status.Mount+"/"+path, b); a.status != http.StatusForbidden {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}

// F23 for what is named in a document: a key, a grant, a run. Whoever may not
// have it hears the same as of one that never was. An operator may know which
// profiles there are: the answer to an enqueue says why each key is denied.
func TestF23Names(t *testing.T) {
	w := get(t)
	ctx := t.Context()
	profile := w.profile(t, map[sealed.KeyName]sealed.KeySpec{"KEY": w.key(t, agentName), "OTHER": w.key(t, "codex")})
	var guests []*guest.Guest
	for range 2 {
		r := harness.Enqueue(t, agentName, profile)
		q, err := w.Engine(t, "operator").Enqueue(ctx, r)
		harness.Must(t, err)
		g, err := w.forge.Arrive(ctx, q.Run, agentName)
		harness.Must(t, err)
		harness.Must(t, g.Claim(ctx, q.Ticket, guest.Measure(r), nil))
		guests = append(guests, g)
	}
	mine, theirs := guests[0], guests[1]
	grant, err := theirs.Creds(ctx, "KEY", "matrix-theirs-0001")
	harness.Must(t, err)

	same := func(what string, of func(name string) error, forbidden, unknown string) {
		t.Helper()
		a, b := of(forbidden), of(unknown)
		if a == nil || b == nil {
			t.Errorf("%s: forbidden %v, unknown %v: one was answered", what, a, b)
			return
		}
		// The path is the caller's own; what is said of it is the engine's.
		if x, y := strings.ReplaceAll(a.Error(), forbidden, "…"), strings.ReplaceAll(b.Error(), unknown, "…"); x != y {
			t.Errorf("%s: of what is forbidden %q, of what is not there %q", what, x, y)
		}
	}
	same("a key", func(key string) error {
		_, err := mine.Creds(ctx, sealed.KeyName(key), "matrix-mine-0000001")
		return err
	}, "OTHER", "NEVER")
	same("a grant", func(id string) error {
		path := mine.Path("confirm")
		_, err := mine.Call(ctx, path, sealed.ConfirmRequest{Run: mine.Run, Path: path, Grant: sealed.GrantID(id), LeaseID: grant.Lease, Epoch: grant.Epoch}, nil)
		return err
	}, string(grant.Grant), unknown)
	same("a run", func(id string) error {
		thief := *mine
		thief.Run = sealed.RunID(id)
		_, err := thief.Watch(ctx, 0, 0)
		return err
	}, string(theirs.Run), unknown)
}
