package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	dockernet "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/vaultclient"
	"sealed.dev/sealed/test/harness"
	"sealed.dev/sealed/test/harness/require"
)

// nodes of the cluster. One more server in their network is an upstream that lives
// through everything, and that the engine on each node reaches at upstreamAddr.
const (
	nodes        = 3
	upstream     = nodes
	upstreamAddr = "127.0.0.1:8300"
)

// electLimit bounds a change of the leader: the election, and the engine's start
// on the new one.
const electLimit = 40 * time.Second

// A world is the stack of the harness with a cluster for its Vault.
type world struct {
	*harness.Stack
	*balancer
	whole   *testing.T // the test that the cluster is for
	docker  *client.Client
	image   string
	network string // its name
	subnet
	ids    [nodes + 1]string // of containers
	unseal string
	root   string // Vault's root token
	ca     []byte
}

// daemon is the Docker that DOCKER_HOST names, or that listens where Docker does.
func daemon(t *testing.T) *client.Client {
	t.Helper()
	require.Root(t, "SPIRE attests other users' processes")
	docker, err := client.New(client.FromEnv)
	if err == nil {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = docker.Ping(ctx, client.PingOptions{})
	}
	if err != nil {
		require.Missing(t, "docker", "no daemon answers: "+err.Error())
	}
	t.Cleanup(func() { _ = docker.Close() })
	return docker
}

// open makes the cluster:
//
//  1. A snapshot is taken of the stack's Vault, and that ends.
//  2. The first node starts empty, and the snapshot is restored into it.
//  3. The others join.
//  4. The balancer takes over the address.
func open(t *testing.T) *world {
	t.Helper()
	t.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true") // its image would be pulled
	w := &world{whole: t, docker: daemon(t)}
	w.Stack = harness.Get(t)
	w.readKeys(t)
	snapshot := w.snapshot(t)
	w.makeNetwork(t)
	from := image(t, w.Stack, w.subnet)
	w.image = from.Repo + ":" + from.Tag
	t.Cleanup(func() { // after the containers are gone
		_, _ = w.docker.ImageRemove(context.WithoutCancel(t.Context()), w.image, client.ImageRemoveOptions{Force: true, PruneChildren: true})
	})
	harness.Must(t, w.Kill(t.Context(), "vault"))
	w.startNode(t, 0, testcontainers.WithDockerfile(from))
	w.found(t, snapshot)
	for i := 1; i < nodes; i++ {
		w.startNode(t, i, testcontainers.WithImage(w.image))
	}
	for i := 1; i < nodes; i++ {
		w.unsealNode(t, i)
	}
	w.balancer = newBalancer(t, strings.TrimPrefix(w.Status.VaultAddr, "https://"), w.subnet, w.ca)
	w.settle(t)
	return w
}

func (w *world) readKeys(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.Status.Dir, "private", "vault-keys.json"))
	harness.Must(t, err)
	var keys struct {
		Unseal string `json:"unseal_key"`
		Root   string `json:"root_token"`
	}
	harness.Must(t, json.Unmarshal(b, &keys))
	w.unseal, w.root = keys.Unseal, keys.Root
	w.ca, err = os.ReadFile(w.Status.VaultCA)
	harness.Must(t, err)
}

func (w *world) startNode(t *testing.T, i int, from testcontainers.CustomizeRequestOption) {
	t.Helper()
	c, err := testcontainers.Run(t.Context(), "", from,
		testcontainers.WithCmd(fmt.Sprintf("-config=/node%d.json", i)),
		testcontainers.WithConfigModifier(func(c *container.Config) { c.Env = []string{"HOME=/tmp"} }),
		network.WithNetworkName(nil, w.network),
		testcontainers.WithEndpointSettingsModifier(func(s map[string]*dockernet.EndpointSettings) { s[w.network] = w.endpoint(i) }),
	)
	testcontainers.CleanupContainer(t, c)
	harness.Must(t, err)
	w.ids[i] = c.GetContainerID()
	t.Cleanup(func() {
		if t.Failed() {
			w.tail(t, i)
		}
	})
	w.reach(t, i)
}

// tail shows what a node said last.
func (w *world) tail(t *testing.T, i int) {
	out, err := w.docker.ContainerLogs(context.WithoutCancel(t.Context()), w.ids[i], client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "40"})
	if err != nil {
		return
	}
	defer out.Close()
	var text bytes.Buffer
	_, _ = stdcopy.StdCopy(&text, &text, out)
	t.Logf("node %d:\n%s", i, &text)
}

// reach lets a node reach the stack's bundle endpoint where Vault has it
// configured, on a loopback address, which in the container is the container's own;
// and the upstream likewise, whose certificate speaks for loopback only.
func (w *world) reach(t *testing.T, i int) {
	t.Helper()
	c, err := w.docker.ContainerInspect(t.Context(), w.ids[i], client.ContainerInspectOptions{})
	harness.Must(t, err)
	bundle := strings.TrimSuffix(strings.TrimPrefix(w.Status.BundleURL, "https://"), "/")
	for addr, to := range map[string]string{bundle: bundle, upstreamAddr: w.listener(upstream)} {
		l, err := listenIn(c.Container.State.Pid, addr)
		harness.Must(t, err)
		w.forward(l, to)
	}
}

// listenIn listens in the network namespace of a process.
func listenIn(pid int, addr string) (net.Listener, error) {
	type made struct {
		l   net.Listener
		err error
	}
	got := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
		if err == nil {
			defer f.Close()
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			got <- made{nil, err}
			return
		}
		l, err := net.Listen("tcp4", addr)
		got <- made{l, err}
	}()
	m := <-got
	return m.l, m.err
}

// forward passes on what comes to l, until the end of the cluster.
func (w *world) forward(l net.Listener, to string) {
	w.whole.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			up, err := net.DialTimeout("tcp4", to, 5*time.Second)
			if err != nil {
				_ = c.Close()
				continue
			}
			go pass(c, up)
		}
	}()
}

// api calls a node, or the balancer's address if node is negative, with a token.
func (w *world) api(ctx context.Context, node int, token, method, path string, body []byte) ([]byte, error) {
	host := strings.TrimPrefix(w.Status.VaultAddr, "https://")
	if node >= 0 {
		host = w.listener(node)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(w.ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+host+"/v1/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true")
	resp, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: %d: %s", method, path, resp.StatusCode, out)
	}
	return out, err
}

func (w *world) snapshot(t *testing.T) []byte {
	t.Helper()
	out, err := w.api(t.Context(), -1, w.root, http.MethodGet, "sys/storage/raft/snapshot", nil)
	harness.Must(t, err)
	return out
}

// begin makes a node a Vault of its own, and returns its root token.
func (w *world) begin(t *testing.T, i int) (root string) {
	t.Helper()
	var out []byte
	harness.Eventually(t, time.Minute, fmt.Sprintf("node %d to answer", i), func() bool {
		var err error
		out, err = w.api(t.Context(), i, "", http.MethodPut, "sys/init", []byte(`{"secret_shares":1,"secret_threshold":1}`))
		return err == nil
	})
	var own struct {
		Keys []string `json:"keys_base64"`
		Root string   `json:"root_token"`
	}
	harness.Must(t, json.Unmarshal(out, &own))
	w.unsealWith(t, i, own.Keys[0])
	harness.Eventually(t, electLimit, fmt.Sprintf("node %d to lead", i), func() bool {
		_, err := w.api(t.Context(), i, "", http.MethodGet, "sys/health", nil)
		return err == nil
	})
	return own.Root
}

// found makes the first node what the stack's Vault was.
func (w *world) found(t *testing.T, snapshot []byte) {
	t.Helper()
	root := w.begin(t, 0)
	_, err := w.api(t.Context(), 0, root, http.MethodPost, "sys/storage/raft/snapshot-force", snapshot)
	harness.Must(t, err)
	harness.Eventually(t, electLimit, "the first node to lead with the stack's data", func() bool {
		w.unsealNode(t, 0) // soon it seals itself: its data are under the stack's key now
		_, err := w.api(t.Context(), 0, w.root, http.MethodGet, "sys/mounts/"+w.Status.Mount, nil)
		return err == nil
	})
}

func (w *world) unsealNode(t *testing.T, i int) {
	t.Helper()
	w.unsealWith(t, i, w.unseal)
}

// keyEvery is how long a key that was given is waited for.
const keyEvery = 6 * time.Second

// unsealWith gives the key and waits. A node that is given it again while it joins
// unseals twice, and each of the two takes the other's news of a change of leader;
// one that gets it while it seals itself forgets it.
func (w *world) unsealWith(t *testing.T, i int, key string) {
	t.Helper()
	body, err := json.Marshal(map[string]string{"key": key})
	harness.Must(t, err)
	var given time.Time
	harness.Eventually(t, time.Minute, fmt.Sprintf("node %d to be unsealed", i), func() bool {
		if w.unsealed(t, i) {
			return true
		}
		if time.Since(given) > keyEvery {
			if _, err := w.api(t.Context(), i, "", http.MethodPut, "sys/unseal", body); err == nil {
				given = time.Now()
			}
		}
		return false
	})
}

func (w *world) unsealed(t *testing.T, i int) bool {
	out, err := w.api(t.Context(), i, "", http.MethodGet, "sys/seal-status", nil)
	var st struct {
		Sealed bool `json:"sealed"`
	}
	return err == nil && json.Unmarshal(out, &st) == nil && !st.Sealed
}

// settle waits until there is a leader, the engine answers, and all nodes vote.
func (w *world) settle(t *testing.T) {
	t.Helper()
	harness.Eventually(t, electLimit, "three voters and an engine", func() bool {
		out, err := w.api(t.Context(), -1, w.root, http.MethodGet, "sys/storage/raft/configuration", nil)
		if err != nil || bytes.Count(out, []byte(`"voter":true`)) != nodes {
			return false
		}
		_, err = w.Engine(t, "root").LogReader().Checkpoint(t.Context())
		return err == nil
	})
}

// newLeader waits until another node than old leads, and the engine answers there.
func (w *world) newLeader(t *testing.T, old int) {
	t.Helper()
	began := time.Now()
	harness.Eventually(t, electLimit, "another leader", func() bool {
		now := w.leader()
		if now < 0 || now == old {
			return false
		}
		_, err := w.Engine(t, "root").LogReader().Checkpoint(t.Context())
		return err == nil
	})
	t.Logf("node %d leads after %v", w.leader(), time.Since(began).Round(10*time.Millisecond))
}

// killLeader ends the leader's container by SIGKILL, and returns what brings it
// back.
func (w *world) killLeader(t *testing.T) (old int, back func()) {
	t.Helper()
	old = w.leader()
	_, err := w.docker.ContainerKill(t.Context(), w.ids[old], client.ContainerKillOptions{Signal: "SIGKILL"})
	harness.Must(t, err)
	return old, func() {
		t.Helper()
		_, err := w.docker.ContainerStart(t.Context(), w.ids[old], client.ContainerStartOptions{})
		harness.Must(t, err)
		w.reach(t, old)
		w.unsealNode(t, old)
		w.settle(t)
	}
}

// cutLeader takes the leader off the network, and returns what brings it back.
func (w *world) cutLeader(t *testing.T) (old int, back func()) {
	t.Helper()
	old = w.leader()
	_, err := w.docker.NetworkDisconnect(t.Context(), w.network, client.NetworkDisconnectOptions{Container: w.ids[old]})
	harness.Must(t, err)
	return old, func() {
		t.Helper()
		_, err := w.docker.NetworkConnect(t.Context(), w.network, client.NetworkConnectOptions{Container: w.ids[old], EndpointConfig: w.endpoint(old)})
		harness.Must(t, err)
		w.settle(t)
	}
}

// rootClient has Vault's root token, at the cluster.
func (w *world) rootClient(t *testing.T) *vaultclient.Client {
	t.Helper()
	return w.Engine(t, "root").Client()
}
