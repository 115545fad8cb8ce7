package attack

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sealed.dev/sealed/internal/relay"
	"sealed.dev/sealed/internal/sandbox"
	"sealed.dev/sealed/internal/sandbox/local"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/workspace"
	"sealed.dev/sealed/test/canary"
	"sealed.dev/sealed/test/harness"
)

// enqueue asks for a run of a command as the operator, and makes the boot
// document that belongs to it.
func (w *world) enqueue(t *testing.T, profile string, argv ...string) (sealed.Enqueued, sealed.EnqueueRequest, sealed.Boot) {
	t.Helper()
	idem, err := sealed.NewULID(time.Now(), nil)
	must(t, err)
	r := sealed.EnqueueRequest{
		IdempotencyKey: idem, Agent: agentName, Mode: sealed.ModeJIT, Profile: sealed.ProfileName(profile),
		CommandDigest: sealed.CommandDigest(argv), WorkspaceDigest: workspace.EmptyDigest(),
		Sandbox: sealed.SandboxSpec{Backend: sealed.BackendLocal, Isolation: sealed.IsolationOwnUID, Network: sealed.NetworkNone, WallTime: sealed.Duration(time.Minute)},
	}
	q, err := w.Engine(t, "operator").Enqueue(t.Context(), r)
	must(t, err)
	return q, r, sealed.Boot{Run: q.Run, Ticket: q.Ticket, Mode: sealed.ModeJIT, Argv: argv, Dir: "/workspace"}
}

// refused checks that a launch got nothing: the status of a failure of
// Sealed's own, one line, no agent, no claim.
func refused(t *testing.T, out outcome) {
	t.Helper()
	if out.exit != sealed.ExitSealed || out.claimed() || out.stdout != "" || strings.Count(out.stderr, "\n") != 1 {
		t.Errorf("exit %d, claimed %t\nstdout: %s\nstderr: %s", out.exit, out.claimed(), out.stdout, out.stderr)
	}
}

// The control of every launch below: the same launcher, being honest, works.
func TestHonestLauncher(t *testing.T) {
	w := get(t)
	profile, _ := w.profile(t, binding("api.test"))
	_, _, boot := w.enqueue(t, profile, "/bin/echo", "it works")
	out := launcher{boot: boot}.run(t, w)
	if out.registered != nil || out.exit != 0 || !out.claimed() || out.stdout != "it works\n" {
		t.Errorf("%+v", out)
	}
}

// D11: once the run is claimed, the process is attested no more.
func TestD11SecondAttestation(t *testing.T) {
	w := get(t)
	_, _, boot := w.enqueue(t, "", "/bin/echo", "no")
	out := launcher{boot: boot, claimed: true}.run(t, w)
	must(t, out.registered)
	refused(t, out)
	if !strings.Contains(out.stderr, "X509-SVID") {
		t.Errorf("stderr: %s", out.stderr)
	}
}

// A sandbox that nobody announced has no identity.
func TestD12NotRegistered(t *testing.T) {
	w := get(t)
	_, _, boot := w.enqueue(t, "", "/bin/echo", "no")
	refused(t, launcher{boot: boot, unregistered: true}.run(t, w))
}

// swapper starts the attacker's program in place of init, under the path where
// the driver puts it. The genuine init, and the attacker's child, are in
// /opt/attack.
type swapper struct{ alone bool }

func (s swapper) Start(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if s.alone {
		if err := os.WriteFile(filepath.Join(spec.Workspace, "alone"), nil, 0o644); err != nil {
			return nil, err
		}
	}
	return local.Driver{}.Start(ctx, spec)
}

// D02: a process connects to the Workload API, hands the connection to a child
// and becomes the genuine init by execve. The kernel now says that the genuine
// init has connected. It is not alone in its sandbox, so it is not attested.
func TestD02ExecSwap(t *testing.T) {
	w := get(t)
	const dir = "/opt/attack" // the probe's paths are fixed: it gets no arguments
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("making %s: %v", dir, err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	install(t, w.probe, filepath.Join(dir, "probe"), 0o755)
	install(t, w.Status.InitPath, filepath.Join(dir, "init"), 0o711)
	swapped := func(pid int) bool {
		exe, err := os.Readlink("/proc/" + itoa(pid) + "/exe")
		return err == nil && exe == filepath.Join(dir, "init")
	}
	l := launcher{init: w.probe, readOnly: []string{dir}, ready: swapped}
	t.Run("with a child", func(t *testing.T) {
		_, _, l.boot = w.enqueue(t, "", "/bin/echo", "no")
		l.driver, l.pause = swapper{}, 4*time.Second // the child asks for three
		out := l.run(t, w)
		if !strings.Contains(out.stdout, "no svid") || strings.Contains(out.stdout, "yes") || out.claimed() || out.exit != sealed.ExitSealed {
			t.Errorf("%+v", out)
		}
	})
	t.Run("control: without the child it is attested", func(t *testing.T) {
		_, _, l.boot = w.enqueue(t, "", "/bin/echo", "no")
		l.driver, l.pause = swapper{alone: true}, 0
		out := l.run(t, w)
		// The workspace is not empty then, so the claim is refused, but after
		// the attestation.
		if out.registered != nil || strings.Contains(out.stderr, "SVID") {
			t.Errorf("%+v", out)
		}
	})
}

func install(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	b, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, b, mode))
	must(t, os.Chmod(to, mode))
}

// D03, R04: init is given a socket of the launcher's that leads to the real
// Workload API. There, the launcher is the caller, and gets nothing.
func TestD03RelayedSocket(t *testing.T) {
	w := get(t)
	path := filepath.Join(openDir(t), "api.sock")
	l, err := net.Listen("unix", path)
	must(t, err)
	must(t, os.Chmod(path, 0o666))
	t.Cleanup(func() { _ = l.Close() })
	var relayed atomic.Int32
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			relayed.Add(1)
			out, err := net.Dial("unix", w.Status.SPIFFESocket)
			if err != nil {
				_ = in.Close()
				continue
			}
			go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
			go func() { _, _ = io.Copy(in, out); _ = in.Close() }()
		}
	}()
	_, _, boot := w.enqueue(t, "", "/bin/echo", "no")
	refused(t, launcher{boot: boot, spiffe: path}.run(t, w))
	if relayed.Load() == 0 {
		t.Error("control: init did not come by")
	}
}

// C10, E19, R05: the launcher enqueues one thing and runs another. The real
// init tells the truth, and the engine refuses.
func TestE19R05AnotherRunThanEnqueued(t *testing.T) {
	w := get(t)
	for name, change := range map[string]func(*sealed.Boot, *launcher){
		"command":          func(b *sealed.Boot, _ *launcher) { b.Argv = []string{"/bin/echo", "other"} },
		"input":            func(b *sealed.Boot, _ *launcher) { b.Input, b.HasInput = []byte("other"), true },
		"terminal":         func(b *sealed.Boot, _ *launcher) { b.Interactive, b.Rows, b.Cols = true, 24, 80 },
		"ticket":           func(b *sealed.Boot, _ *launcher) { b.Ticket = strings.Repeat("A", len(b.Ticket)) },
		"workspace":        func(_ *sealed.Boot, l *launcher) { l.driver = swapper{alone: true} },
		"agent":            func(_ *sealed.Boot, l *launcher) { l.agent = "demo" },
		"agent's a secret": func(_ *sealed.Boot, l *launcher) { l.agent = "root" },
	} {
		t.Run(name, func(t *testing.T) {
			profile, c := w.profile(t)
			q, _, boot := w.enqueue(t, profile, "/bin/sh", "-c", "echo $KEY")
			l := launcher{boot: boot}
			change(&l.boot, &l)
			out := l.run(t, w)
			refused(t, out)
			if hits := canary.Scan("output", []byte(out.stdout+out.stderr), c); len(hits) > 0 {
				t.Error(hits)
			}
			run, err := w.Engine(t, "operator").Run(t.Context(), q.Run)
			must(t, err)
			if len(run.Grants) > 0 {
				t.Errorf("granted: %+v", run.Grants)
			}
		})
	}
}

// R04: a copy of the trust file, owned by root and the same but for the address
// of Vault. It is not the file that the attestor was told, so there is no
// identity, and the double hears nothing at all.
func TestR04CopiedTrustFile(t *testing.T) {
	w := get(t)
	double := newDouble(t, w, "", "")
	trust := w.forge.Trust
	trust.VaultAddr = "https://" + double.addr
	trust.VaultCA = string(double.ca)
	b, err := json.Marshal(trust)
	must(t, err)
	path := filepath.Join(openDir(t), "trust.json")
	must(t, os.WriteFile(path, b, 0o644))
	r := w.Ctl(t, harness.Caller{Env: []string{"SEALED_TRUST_FILE=" + path}}, shell("", "echo no", "--no-workspace")...).Want(t, sealed.ExitSealed)
	if n := double.conns.Load(); n != 0 {
		t.Errorf("the double got %d connections", n)
	}
	if r.Stdout != "" || strings.Count(strings.TrimSpace(lastLines(r.Stderr)), "\n") > 1 {
		t.Errorf("stdout: %s\nstderr: %s", r.Stdout, r.Stderr)
	}
	t.Run("control: an exact copy of the content is not enough either", func(t *testing.T) {
		b, err := os.ReadFile(w.Status.TrustFile)
		must(t, err)
		must(t, os.WriteFile(path, b, 0o644))
		w.Ctl(t, harness.Caller{Env: []string{"SEALED_TRUST_FILE=" + path}}, shell("", "echo no", "--no-workspace")...).Want(t, sealed.ExitSealed)
	})
	t.Run("control: the file itself is", func(t *testing.T) {
		w.Ctl(t, harness.Caller{}, shell("", "echo yes", "--no-workspace")...).Want(t, 0)
	})
}

// lastLines are those after the talk about the run.
func lastLines(stderr string) string {
	var out []string
	for _, l := range strings.Split(strings.TrimSpace(stderr), "\n") {
		if !strings.HasPrefix(l, "sealed: run ") {
			out = append(out, l)
		}
	}
	return strings.Join(out, "\n")
}

// R04: the launcher's relay leads to another server than Vault.
func TestR04FakeVaultBehindRelay(t *testing.T) {
	w := get(t)
	private := filepath.Join(w.Status.Dir, "private")
	for _, tt := range []struct {
		name      string
		cert, key string // of the double; empty: its own CA, which has the name of the stack's
		requests  bool
	}{
		{name: "another CA of the same name"},
		{name: "the very certificate of Vault, but no answer key", cert: filepath.Join(private, "vault-cert.pem"), key: filepath.Join(private, "vault-key.pem"), requests: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			profile, c := w.profile(t)
			double := newDouble(t, w, tt.cert, tt.key)
			q, _, boot := w.enqueue(t, profile, "/bin/sh", "-c", "echo $KEY")
			out := launcher{boot: boot, vault: double.addr}.run(t, w)
			must(t, out.registered)
			refused(t, out)
			if double.conns.Load() == 0 {
				t.Error("control: nobody came by")
			}
			paths := double.paths()
			if (len(paths) > 0) != tt.requests {
				t.Errorf("it heard %q", paths)
			}
			for _, p := range paths {
				if strings.Contains(p, "/creds/") || strings.Contains(p, "/confirm") {
					t.Errorf("it was asked for a credential: %s", p)
				}
			}
			if hits := canary.Scan("double", double.heard(), c); len(hits) > 0 {
				t.Error(hits)
			}
			run, err := w.Engine(t, "operator").Run(t.Context(), q.Run)
			must(t, err)
			if len(run.Grants) > 0 {
				t.Errorf("granted: %+v", run.Grants)
			}
		})
	}
}

// A double is a false Vault. It answers every login with a token and everything
// else with a document that looks right and is signed by nobody.
type double struct {
	addr  string
	ca    []byte
	conns atomic.Int32

	mu       sync.Mutex
	asked    []string
	everyone []byte
}

func (d *double) paths() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string{}, d.asked...)
}

func (d *double) heard() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]byte{}, d.everyone...)
}

func (d *double) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	d.mu.Lock()
	d.asked = append(d.asked, r.URL.Path)
	d.everyone = append(d.everyone, body...)
	d.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(r.URL.Path, "/login") {
		_, _ = io.WriteString(w, `{"auth":{"client_token":"hvs.false","lease_duration":120}}`)
		return
	}
	_, _ = io.WriteString(w, `{"data":{"answer":"{\"payload\":\"{}\",\"signature\":\"`+strings.Repeat("A", 86)+`==\"}"}}`)
}

// newDouble starts a false Vault with a certificate from files, or else from a
// CA of its own that calls itself what the stack's does.
func newDouble(t *testing.T, w *world, certFile, keyFile string) *double {
	t.Helper()
	d := &double{}
	var cert tls.Certificate
	var err error
	if certFile != "" {
		cert, err = tls.LoadX509KeyPair(certFile, keyFile)
		must(t, err)
	} else {
		cert, d.ca = falseCertificate(t, w)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	d.addr = l.Addr().String()
	srv := &http.Server{
		Handler: d, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13}, ErrorLog: log.New(io.Discard, "", 0),
		ReadHeaderTimeout: 10 * time.Second,
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				d.conns.Add(1)
			}
		},
	}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	t.Cleanup(func() { _ = srv.Close() })
	return d
}

func falseCertificate(t *testing.T, w *world) (tls.Certificate, []byte) {
	t.Helper()
	genuine, err := parseCertificate(w.forge.Trust.VaultCA)
	must(t, err)
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	ca := &x509.Certificate{SerialNumber: genuine.SerialNumber, RawSubject: genuine.RawSubject, SubjectKeyId: genuine.SubjectKeyId, NotBefore: genuine.NotBefore, NotAfter: genuine.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(t, err)
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "vault"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: genuine.NotBefore, NotAfter: genuine.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der, caDER}, PrivateKey: key}, pemOf(caDER)
}

// B28: init's relay gives out Vault to init only, and no other private address.
func TestB28RelayHeaders(t *testing.T) {
	w := get(t)
	vault, err := relay.VaultHostPort(w.Status.VaultAddr)
	must(t, err)
	p := relay.Policy{Vault: vault, Network: sealed.NetworkFull, Map: w.forge.Trust.Relay}
	a, b := net.Pipe()
	host := &relay.Host{Policy: p}
	go func() { _ = host.Serve(t.Context(), a) }()
	c, err := relay.NewClient(b)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	for _, addr := range []string{vault, "localhost:443", "127.0.0.1:443", "[::1]:443", "metadata.google.internal:80", "0x7f000001:443"} {
		conn, err := c.Dial(t.Context(), addr)
		if err == nil {
			_ = conn.Close()
			t.Errorf("%s was dialed", addr)
		}
	}
	t.Run("control: a mapped host is dialed", func(t *testing.T) {
		conn, err := c.Dial(t.Context(), "api.test:443")
		must(t, err)
		_ = conn.Close()
	})
	t.Run("control: Vault by its own kind of stream is", func(t *testing.T) {
		conn, err := c.Vault(t.Context())
		must(t, err)
		_ = conn.Close()
	})
}
