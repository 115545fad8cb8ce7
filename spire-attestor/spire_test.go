package spireattestor_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/spire-attestor/registry"
)

const spireID = "spiffe://spire.test/sealed/tenant/acme/agent/test"

// A spire is a real server and agent on loopback, the agent with our plugin.
type spire struct {
	*world
	bin string
	log *lines
}

// startSPIRE takes the binaries from SEALED_SPIRE_DIR.
func startSPIRE(t *testing.T, w *world) *spire {
	t.Helper()
	s := &spire{world: w, bin: os.Getenv("SEALED_SPIRE_DIR"), log: &lines{}}
	var missing error
	for _, name := range []string{"spire-server", "spire-agent"} {
		if st, err := os.Stat(filepath.Join(s.bin, name)); s.bin == "" || err != nil || st.IsDir() {
			missing = errors.Join(missing, fmt.Errorf("no %s in $SEALED_SPIRE_DIR", name))
		}
	}
	need(t, "spire", missing)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.serverStart(port)
	token := s.joinToken()
	s.agentStart(port, token)
	return s
}

func (s *spire) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *spire) adminSocket() string { return filepath.Join(s.dir, "server.sock") }
func (s *spire) agentSocket() string { return filepath.Join(s.dir, "agent.sock") }

func (s *spire) serverStart(port string) {
	conf := s.write("server.conf", fmt.Sprintf(`
server {
  bind_address = "127.0.0.1" bind_port = "%s" trust_domain = "spire.test"
  data_dir = %q socket_path = %q log_level = "INFO"
  experimental { cache_reload_interval = "500ms" }
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = %q } }
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
}`, port, s.dir, s.adminSocket(), filepath.Join(s.dir, "server.sqlite3")))
	s.run("spire-server", "run", "-config", conf)
	s.until("server", func() error {
		return exec.Command(s.cmd("spire-server"), "healthcheck", "-socketPath", s.adminSocket()).Run()
	})
}

func (s *spire) joinToken() string {
	s.t.Helper()
	out := s.cli("token", "generate", "-socketPath", s.adminSocket(), "-spiffeID", "spiffe://spire.test/node", "-output", "json")
	var token struct{ Value string }
	if err := json.Unmarshal(out, &token); err != nil || token.Value == "" {
		s.t.Fatalf("reading join token: %v", err)
	}
	s.cli("entry", "create", "-socketPath", s.adminSocket(), "-parentID", "spiffe://spire.test/node", "-spiffeID", spireID,
		"-selector", "sealed:tenant:acme", "-selector", "sealed:agent:test", "-selector", "sealed:init_sha256:"+s.digest,
		"-selector", "sealed:isolation:own_uid", "-selector", "sealed:backend:local", "-selector", "sealed:image:host",
		"-selector", "sealed:launcher_uid:0", "-selector", "sealed:init_owner:root")
	return token.Value
}

func (s *spire) agentStart(port, token string) {
	plugin := filepath.Join(s.dir, "spire-attestor-sealed")
	if out, err := exec.Command("go", "build", "-trimpath", "-o", plugin, "./cmd/spire-attestor-sealed").CombinedOutput(); err != nil {
		s.t.Fatalf("building plugin: %v: %s", err, out)
	}
	data, err := os.ReadFile(plugin)
	if err != nil {
		s.t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	conf := s.write("agent.conf", fmt.Sprintf(`
agent {
  data_dir = %q socket_path = %q trust_domain = "spire.test" log_level = "INFO"
  server_address = "127.0.0.1" server_port = "%s" insecure_bootstrap = true join_token = "%s"
  experimental { sync_interval = "500ms" }
}
plugins {
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
  WorkloadAttestor "sealed" {
    plugin_cmd = %q
    plugin_checksum = "%s"
    plugin_data {
      registry_socket = %q
      trust_file = %q
      init_sha256 = ["%s"]
      run_uids = "%d-%d"
      launchers "0" { tenant = "acme" agents = ["test"] }
    }
  }
}`, filepath.Join(s.dir, "agent"), s.agentSocket(), port, token, plugin, hex.EncodeToString(sum[:]),
		filepath.Join(s.dir, "plugin.sock"), s.trust, s.digest, runUIDMin, runUIDMax))
	s.run("spire-agent", "run", "-config", conf)
	s.until("agent", func() error {
		_, err := os.Stat(s.agentSocket())
		return err
	})
	s.registry, s.workload = filepath.Join(s.dir, "plugin.sock"), s.agentSocket()
}

func (s *spire) cmd(name string) string { return filepath.Join(s.bin, name) }

func (s *spire) run(name string, args ...string) {
	s.t.Helper()
	cmd := exec.Command(s.cmd(name), args...)
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = s.log, s.log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		_ = cmd.Wait()
	})
}

func (s *spire) cli(args ...string) []byte {
	s.t.Helper()
	out, err := exec.Command(s.cmd("spire-server"), args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("spire-server %s: %v: %s", args[0], err, out)
	}
	return out
}

// until polls a server that has no other way to say that it is ready.
func (s *spire) until(what string, ready func() error) {
	s.t.Helper()
	var err error
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = ready(); err == nil {
			return
		}
	}
	s.t.Fatalf("waiting for %s: %v\n%s", what, err, s.log)
}

// fetchSynced fetches, and again while the entry has not reached the agent.
func (s *spire) fetchSynced(sb *sandbox) string {
	s.t.Helper()
	var got string
	for range 20 { // within the 60 s and 10 s windows
		if got = sb.say("fetch"); strings.HasPrefix(got, "ok") {
			break
		}
		time.Sleep(250 * time.Millisecond)
	}
	return got
}

// TestRealSPIRE drives the plugin through SPIRE's own server and agent.
func TestRealSPIRE(t *testing.T) {
	s := startSPIRE(t, newWorld(t))
	want := "ok " + spireID + " " + spireID

	t.Run("measured init gets both SVIDs, then claims and gets none", func(t *testing.T) {
		sb := s.start(sandboxSpec{})
		r := s.register(sb)
		if got := s.fetchSynced(sb); got != want {
			t.Fatalf("fetch = %q, want %q\n%s", got, want, s.log)
		}
		if err := r.Claimed(); err != nil {
			t.Fatal(err)
		}
		s.wantNothing(t, sb.say("fetch"), "claimed")
	})
	t.Run("nobody registered it", func(t *testing.T) {
		s.wantNothing(t, s.start(sandboxSpec{uid: runUIDMin + 2}).say("fetch"), "")
	})
	t.Run("second process in the namespace", func(t *testing.T) {
		sb := s.start(sandboxSpec{uid: runUIDMin + 3})
		s.register(sb)
		if got := sb.say("spawn"); got != "ok" {
			t.Fatalf("spawn = %q", got)
		}
		s.wantNothing(t, sb.say("fetch"), "not_alone")
		sb.say("kill")
		if got := sb.say("fetch"); got != want {
			t.Errorf("control: alone again, fetch = %q, want %q", got, want)
		}
	})
	t.Run("second process with the O_PATH descriptor", func(t *testing.T) {
		sb := s.start(sandboxSpec{uid: runUIDMin + 4})
		s.register(sb)
		s.wantNothing(t, sb.say("spawn-fetch"), "not_init")
	})
	t.Run("relayed connection", func(t *testing.T) {
		sb := s.start(sandboxSpec{uid: runUIDMin + 5})
		s.register(sb)
		s.wantNothing(t, sb.say("relay"), "not_alone")
	})
	t.Run("other trust file", func(t *testing.T) {
		sb := s.start(sandboxSpec{uid: runUIDMin + 6, trust: writeTrust(t, filepath.Join(s.dir, "evil.json"))})
		s.register(sb)
		s.wantNothing(t, sb.say("fetch"), "trust_fd")
	})
	t.Run("refused registration carries the reason", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := registry.Register(ctx, s.registry, registry.Descriptor{Agent: "codex", PID: os.Getpid()})
		if !errors.Is(err, sealed.ErrDenied) || !strings.Contains(err.Error(), "agent_refused") {
			t.Errorf("Register = %v, want denied with agent_refused", err)
		}
	})
	if st, err := os.Stat(s.registry); err != nil || st.Mode().Perm() != 0o666 || st.Mode().Type() != fs.ModeSocket {
		t.Errorf("registry socket: %v, %v", st.Mode(), err)
	}
}

func (s *spire) wantNothing(t *testing.T, got, reason string) {
	t.Helper()
	if !strings.HasPrefix(got, "error ") || !strings.Contains(got, "no identity issued") {
		t.Errorf("answer = %q, want no identity", got)
	}
	// The plug-in's lines reach SPIRE's log by a pipe, after the answer.
	for limit := time.Now().Add(10 * time.Second); reason != "" && !strings.Contains(s.log.String(), reason); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Errorf("SPIRE's log names no %s:\n%s", reason, s.log)
			return
		}
	}
}
