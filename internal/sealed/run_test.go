package sealed

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func enqueue(change func(*EnqueueRequest)) EnqueueRequest {
	r := EnqueueRequest{
		IdempotencyKey: "0123456789abcdef", Agent: "claude-code", Mode: ModeJIT, Profile: "team/release", Workflow: "release", Tags: []Name{"production"},
		CommandDigest: CommandDigest([]string{"true"}), InputDigest: DigestOf(DomainInput, nil), WorkspaceDigest: DigestOf(DomainWorkspace, nil),
		Sandbox: SandboxSpec{Backend: BackendLocal, Isolation: IsolationOwnUID, Network: NetworkNone},
	}
	if change != nil {
		change(&r)
	}
	return r
}

func TestParseEnqueueRequest(t *testing.T) {
	parse := func(r EnqueueRequest) (EnqueueRequest, error) {
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		return ParseEnqueueRequest(b)
	}
	good := map[string]func(*EnqueueRequest){
		"full": nil, "bare": func(r *EnqueueRequest) { r.Mode = ModeBare }, "no profile": func(r *EnqueueRequest) { r.Profile, r.Workflow, r.Tags = "", "", nil },
		"no digests": func(r *EnqueueRequest) { r.InputDigest, r.WorkspaceDigest = "", "" },
		"same uid":   func(r *EnqueueRequest) { r.Sandbox.Isolation = IsolationSameUID },
		"allow": func(r *EnqueueRequest) {
			r.Sandbox.Network, r.Sandbox.Allow = NetworkAllowlist, []string{"a.com", "*.b.com", "c.com:8443"}
		},
		"longest time": func(r *EnqueueRequest) { r.Sandbox.WallTime = Duration(24 * time.Hour) },
	}
	for name, change := range good {
		if _, err := parse(enqueue(change)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if r, _ := parse(enqueue(nil)); r.Sandbox.WallTime.Std() != time.Hour {
		t.Errorf("wall time %v, want one hour", r.Sandbox.WallTime.Std())
	}
	bad := map[string]struct {
		change func(*EnqueueRequest)
		field  string
	}{
		"short key":       {func(r *EnqueueRequest) { r.IdempotencyKey = "short" }, "idempotency_key"},
		"long key":        {func(r *EnqueueRequest) { r.IdempotencyKey = strings.Repeat("x", 65) }, "idempotency_key"},
		"no agent":        {func(r *EnqueueRequest) { r.Agent = "" }, "agent"},
		"agent":           {func(r *EnqueueRequest) { r.Agent = "Claude" }, "agent"},
		"no mode":         {func(r *EnqueueRequest) { r.Mode = "" }, "mode"},
		"mode":            {func(r *EnqueueRequest) { r.Mode = "JIT" }, "mode"},
		"profile":         {func(r *EnqueueRequest) { r.Profile = "team//x" }, "profile"},
		"workflow":        {func(r *EnqueueRequest) { r.Workflow = "*" }, "workflow"},
		"tag":             {func(r *EnqueueRequest) { r.Tags = []Name{"a", "B"} }, "tags"},
		"no command":      {func(r *EnqueueRequest) { r.CommandDigest = "" }, "command_digest"},
		"command":         {func(r *EnqueueRequest) { r.CommandDigest = "rm -rf /" }, "command_digest"},
		"input":           {func(r *EnqueueRequest) { r.InputDigest = "x" }, "input_digest"},
		"workspace":       {func(r *EnqueueRequest) { r.WorkspaceDigest = "x" }, "workspace_digest"},
		"backend":         {func(r *EnqueueRequest) { r.Sandbox.Backend = "none" }, "sandbox.backend"},
		"isolation":       {func(r *EnqueueRequest) { r.Sandbox.Isolation = "container" }, "sandbox.isolation"},
		"no isolation":    {func(r *EnqueueRequest) { r.Sandbox.Isolation = "" }, "sandbox.isolation"},
		"network":         {func(r *EnqueueRequest) { r.Sandbox.Network = "host" }, "sandbox.network"},
		"allow with none": {func(r *EnqueueRequest) { r.Sandbox.Allow = []string{"a.com"} }, "sandbox.allow"},
		"allow address": {func(r *EnqueueRequest) {
			r.Sandbox.Network, r.Sandbox.Allow = NetworkAllowlist, []string{"169.254.169.254"}
		}, "sandbox.allow"},
		"allow everything": {func(r *EnqueueRequest) { r.Sandbox.Network, r.Sandbox.Allow = NetworkAllowlist, []string{"*"} }, "sandbox.allow"},
		"allow star twice": {func(r *EnqueueRequest) { r.Sandbox.Network, r.Sandbox.Allow = NetworkAllowlist, []string{"*.*.com"} }, "sandbox.allow"},
		"allow bare star":  {func(r *EnqueueRequest) { r.Sandbox.Network, r.Sandbox.Allow = NetworkAllowlist, []string{"*."} }, "sandbox.allow"},
		"too long":         {func(r *EnqueueRequest) { r.Sandbox.WallTime = Duration(24*time.Hour + 1) }, "sandbox.wall_time"},
		"negative":         {func(r *EnqueueRequest) { r.Sandbox.WallTime = -1 }, "duration"},
	}
	for name, c := range bad {
		_, err := parse(enqueue(c.change))
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != c.field || !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want field %s", name, err, c.field)
		}
	}
	for _, doc := range []string{``, `null`, `{}`, `[]`, `{"command":["rm"]}`, `{"mode":"jit","mode":"bare"}`} {
		if _, err := ParseEnqueueRequest([]byte(doc)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: got %v, want ErrInvalid", doc, err)
		}
	}
}

func TestMarshalManifest(t *testing.T) {
	m := Manifest{V: 1, Run: "r", Tenant: "acme"}
	b, d, err := MarshalManifest(m)
	if err != nil || d != DigestOf(DomainManifest, b) {
		t.Fatal(err)
	}
	m.Epoch = 1
	if _, other, _ := MarshalManifest(m); other == d {
		t.Error("another epoch has the same digest")
	}
	var back Manifest
	if err := Decode(b, MaxDocument, &back); err != nil {
		t.Error(err)
	}
}

func FuzzParseEnqueueRequest(f *testing.F) {
	b, _ := json.Marshal(enqueue(nil))
	f.Add(b)
	f.Add([]byte(`{"mode":"jit","mode":"bare"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseEnqueueRequest(data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v is not ErrInvalid", err)
			}
			return
		}
		if r.CommandDigest.Validate("") != nil || r.Sandbox.WallTime <= 0 || r.Sandbox.WallTime.Std() > 24*time.Hour {
			t.Fatalf("accepted %+v", r)
		}
	})
}
