package main

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sealed.dev/sealed/internal/devstack"
	"sealed.dev/sealed/internal/install"
	"sealed.dev/sealed/internal/sealed"
)

// TestStackScript runs what needs a real Vault with the engine in it: one
// stack for all scripts.
func TestStackScript(t *testing.T) {
	stack := startStack(t)
	status := stack.Status(t.Context())
	env := func(env *testscript.Env) error {
		for name, value := range map[string]string{
			"VAULT_ADDR": status.VaultAddr, "VAULT_CACERT": status.VaultCA, "SEALED_MOUNT": status.Mount, "SEALED_TRUST_FILE": status.TrustFile,
			"SEALED_LIBEXEC": filepath.Dir(status.InitPath), "SEALED_DEV_DIR": status.Dir,
		} {
			env.Setenv(name, value)
		}
		return nil
	}
	// Subtests are parallel; the group returns when all have ended.
	t.Run("group", func(t *testing.T) {
		testscript.Run(t, testscript.Params{Dir: "testdata/script/stack", Setup: setup(env), RequireExplicitExec: true,
			Cmds: commands(map[string]func(*testscript.TestScript, bool, []string){
				"login":       func(ts *testscript.TestScript, _ bool, args []string) { cmdLogin(ts, stack, args) },
				"enqueue":     func(ts *testscript.TestScript, _ bool, args []string) { cmdEnqueue(ts, stack, args) },
				"newuser":     func(ts *testscript.TestScript, _ bool, args []string) { cmdNewUser(ts, stack, args) },
				"strictmount": func(ts *testscript.TestScript, _ bool, args []string) { cmdStrictMount(ts, stack, args) },
				"fetch":       cmdFetch,
				"alone":       cmdAlone(new(sync.Mutex)),
			})})
	})
}

// startStack starts a stack from cached servers and skips when there is none.
func startStack(t *testing.T) *devstack.Stack {
	t.Helper()
	if testing.Short() {
		t.Skip("short")
	}
	self, err := exec.LookPath("sealedctl") // made by testscript.Main
	if err != nil {
		t.Fatal(err)
	}
	if err := cachedVault(); err != nil {
		need(t, "vault", err.Error())
	}
	dir, err := os.MkdirTemp("", "ctl") // short: Unix sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // run uids pass through
		t.Fatal(err)
	}
	begun := time.Now()
	stack, err := devstack.Up(t.Context(), devstack.Config{
		Dir: filepath.Join(dir, "s"), Self: []string{self, "dev", "authority"}, DieWithParent: true,
		Programs: os.Getenv("SEALED_PROGRAMS"), // ready-built; empty: they are built
		Progress: func(step string, _, _ int64) { t.Logf("%8v %s", time.Since(begun).Round(time.Millisecond), step) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return stack
}

// cachedVault fails unless a stack would find Vault without building it.
func cachedVault() error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	name, err := devstack.Servers(devstack.IdentityEmbedded)[0].CacheName(root)
	if err != nil {
		return err
	}
	if _, err = os.Stat(filepath.Join(devstack.CacheDir(os.Getenv), "bin", name)); err == nil {
		return nil
	}
	if _, onPath := exec.LookPath("vault"); onPath == nil {
		return nil
	}
	return err
}

// cmdLogin: login USER makes later commands that user's; root is Vault's own.
func cmdLogin(ts *testscript.TestScript, stack *devstack.Stack, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: login USER")
	}
	if args[0] == "root" {
		data, err := os.ReadFile(filepath.Join(ts.Getenv("SEALED_DEV_DIR"), "private", "vault-keys.json"))
		ts.Check(err)
		var keys struct {
			Root string `json:"root_token"`
		}
		ts.Check(json.Unmarshal(data, &keys))
		ts.Setenv("VAULT_TOKEN", keys.Root)
		return
	}
	l, err := stack.Login(context.Background(), args[0])
	ts.Check(err)
	ts.Setenv("VAULT_TOKEN", string(l.Token))
}

// cmdNewUser: newuser NAME POLICY… makes a person with these policies and no
// group, whose later commands these are.
func cmdNewUser(ts *testscript.TestScript, stack *devstack.Stack, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: newuser NAME POLICY…")
	}
	ctx := context.Background()
	root, err := stack.Root()
	ts.Check(err)
	password, err := sealed.NewULID(time.Now(), nil)
	ts.Check(err)
	_, err = root.Write(ctx, "auth/userpass/users/"+args[0], map[string]any{"password": password, "token_policies": args[1:]})
	ts.Check(err)
	l, err := root.Login(ctx, "auth/userpass/login/"+args[0], map[string]any{"password": password})
	ts.Check(err)
	ts.Setenv("VAULT_TOKEN", string(l.Token))
}

// cmdStrictMount: strictmount NAME makes a mount of its own, with its policies,
// that asks a second person for what widens. An entity is a person there.
func cmdStrictMount(ts *testscript.TestScript, stack *devstack.Stack, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: strictmount NAME")
	}
	ctx := context.Background()
	root, err := stack.Root()
	ts.Check(err)
	mounts, err := root.Read(ctx, "sys/mounts", nil)
	ts.Check(err)
	ours, _ := mounts[devstack.Mount+"/"].(map[string]any)
	cfg, err := root.Read(ctx, devstack.Mount+"/config", nil)
	ts.Check(err)
	all, err := install.RenderPolicies(args[0])
	ts.Check(err)
	_, err = root.Write(ctx, "sys/mounts/"+args[0], map[string]any{"type": ours["type"]})
	ts.Check(err)
	_, err = root.Write(ctx, args[0]+"/config", map[string]any{"tenant": args[0], "trust_domain": cfg["trust_domain"], "agent_accessor": cfg["agent_accessor"], "allow_embedded": true})
	ts.Check(err)
	for name, text := range all {
		_, err := root.Write(ctx, "sys/policies/acl/"+name, map[string]any{"policy": text})
		ts.Check(err)
	}
}

// cmdEnqueue: enqueue VAR AGENT PROFILE enqueues a run as operator without
// starting it. $VAR is its id, $VAR_APPROVAL the id of the first approval that
// it waits for.
func cmdEnqueue(ts *testscript.TestScript, stack *devstack.Stack, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: enqueue VAR AGENT PROFILE")
	}
	ctx := context.Background()
	c, err := stack.Client(ctx, "operator")
	ts.Check(err)
	key, err := sealed.NewULID(time.Now(), nil)
	ts.Check(err)
	out, err := c.Engine(devstack.Mount).Enqueue(ctx, sealed.EnqueueRequest{
		IdempotencyKey: key, Agent: sealed.Name(args[1]), Mode: sealed.ModeJIT, Profile: sealed.ProfileName(args[2]), Workflow: "release",
		CommandDigest: sealed.CommandDigest([]string{"true"}),
		Sandbox:       sealed.SandboxSpec{Backend: sealed.BackendLocal, Isolation: sealed.IsolationOwnUID, Network: sealed.NetworkNone},
	})
	ts.Check(err)
	ts.Setenv(args[0], string(out.Run))
	for _, k := range out.Keys {
		ts.Logf("%s: %s %v", k.Name, k.Decision.Effect, k.Decision.Reasons)
		if k.Approval != "" {
			ts.Setenv(args[0]+"_APPROVAL", string(k.Approval))
		}
	}
}

// cmdAlone: alone waits until no other script is that has said so, and is it
// until the script's end: for what changes the policy in force, or relies on it.
func cmdAlone(mu *sync.Mutex) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		if neg || len(args) != 0 {
			ts.Fatalf("usage: alone")
		}
		mu.Lock()
		ts.Defer(mu.Unlock)
	}
}

// cmdFetch: fetch VAR PATTERN sets VAR to the first group of PATTERN in the
// last command's standard output.
func cmdFetch(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: fetch VAR PATTERN")
	}
	m := regexp.MustCompile(`(?m)` + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(m) != 2 {
		ts.Fatalf("%s is not in stdout", args[1])
	}
	ts.Setenv(args[0], m[1])
}
