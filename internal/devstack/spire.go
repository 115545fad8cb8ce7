package devstack

import (
	"context"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/template"

	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"sealed.dev/sealed/internal/sealed"
)

// joinTokenTTL is in seconds; the agent uses its token within one or two.
const joinTokenTTL = 120

// spireFiles is what the two configurations are filled from. Its strings are
// numbers, hex digits, names of the vocabulary, and paths that plainPath has
// accepted: nothing in them needs quoting.
type spireFiles struct {
	TrustDomain, ServerPort, BundlePort string
	Private, Cert, Key                  string
	JoinToken                           string
	WorkloadSocket, RegistrySocket      string
	Attestor, AttestorSHA256            string
	TrustFile, InitSHA256, RunUIDs      string
	Tenant, Agents                      string
	Launchers                           []int
}

// The server keeps its keys on disk, below the private directory, so that its
// CA survives a restart and agents that run meanwhile still trust it. The reload
// and sync intervals are short because developers wait for them.
var serverTemplate = template.Must(template.New("server.conf").Parse(`server {
    bind_address = "127.0.0.1"
    bind_port = "{{.ServerPort}}"
    socket_path = "{{.Private}}/server.sock"
    trust_domain = "{{.TrustDomain}}"
    data_dir = "{{.Private}}/server"
    log_level = "INFO"
    federation {
        bundle_endpoint {
            address = "127.0.0.1"
            port = {{.BundlePort}}
            refresh_hint = "1m"
            profile "https_web" {
                serving_cert_file {
                    cert_file_path = "{{.Cert}}"
                    key_file_path = "{{.Key}}"
                    file_sync_interval = "1h"
                }
            }
        }
    }
    experimental { cache_reload_interval = "200ms" }
}
plugins {
    DataStore "sql" {
        plugin_data {
            database_type = "sqlite3"
            connection_string = "{{.Private}}/server/datastore.sqlite3"
        }
    }
    KeyManager "disk" {
        plugin_data { keys_path = "{{.Private}}/server/keys.json" }
    }
    NodeAttestor "join_token" { plugin_data {} }
}
`))

var agentTemplate = template.Must(template.New("agent.conf").Parse(`agent {
    data_dir = "{{.Private}}/agent"
    log_level = "INFO"
    server_address = "127.0.0.1"
    server_port = "{{.ServerPort}}"
    socket_path = "{{.WorkloadSocket}}"
    admin_socket_path = "{{.Private}}/admin.sock"
    trust_domain = "{{.TrustDomain}}"
    trust_bundle_path = "{{.Private}}/bundle.pem"
    join_token = "{{.JoinToken}}"
    experimental { sync_interval = "500ms" }
}
plugins {
    KeyManager "memory" { plugin_data {} }
    NodeAttestor "join_token" { plugin_data {} }
    WorkloadAttestor "sealed" {
        plugin_cmd = "{{.Attestor}}"
        plugin_checksum = "{{.AttestorSHA256}}"
        plugin_data {
            registry_socket = "{{.RegistrySocket}}"
            trust_file = "{{.TrustFile}}"
            init_sha256 = ["{{.InitSHA256}}"]
            run_uids = "{{.RunUIDs}}"
{{- range .Launchers}}
            launchers "{{.}}" {
                tenant = "{{$.Tenant}}"
                agents = [{{$.Agents}}]
            }
{{- end}}
        }
    }
}
`))

func (b *bringUp) spireFiles() (spireFiles, error) {
	attestor := b.l.private("plugins", binAttestor)
	sum, err := fileSHA256(attestor)
	if err != nil {
		return spireFiles{}, err
	}
	var names []string
	for _, a := range agents() {
		names = append(names, strconv.Quote(string(a)))
	}
	_, bundlePort, _ := strings.Cut(b.state.BundleAddr, ":")
	return spireFiles{
		TrustDomain: b.state.TrustDomain, ServerPort: strconv.Itoa(b.state.SPIREPort), BundlePort: bundlePort,
		Private: b.l.private("spire"), Cert: b.l.private("bundle-cert.pem"), Key: b.l.private("bundle-key.pem"),
		WorkloadSocket: b.l.workloadSocket(), RegistrySocket: b.l.registrySocket(),
		Attestor: attestor, AttestorSHA256: sum, TrustFile: b.l.trust(), InitSHA256: b.init,
		RunUIDs: fmt.Sprintf("%d-%d", runUIDMin, runUIDMax),
		Tenant:  string(b.cfg.Tenant), Agents: strings.Join(names, ", "), Launchers: b.state.Launchers,
	}, nil
}

func writeTemplate(t *template.Template, data spireFiles, path string) error {
	var text strings.Builder
	if err := t.Execute(&text, data); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return writeFile(path, []byte(text.String()), 0o600)
}

// startSPIREServer starts the server until its bundle endpoint answers.
func (b *bringUp) startSPIREServer(ctx context.Context) error {
	if b.running("spire-server") {
		return nil
	}
	if err := b.clear(ctx, "spire-server"); err != nil {
		return err
	}
	if err := os.MkdirAll(b.l.private("spire", "server"), 0o700); err != nil {
		return fmt.Errorf("starting spire-server: %w", err)
	}
	files, err := b.spireFiles()
	if err != nil {
		return err
	}
	conf := b.l.private("spire", "server.conf")
	if err := writeTemplate(serverTemplate, files, conf); err != nil {
		return err
	}
	return b.start(ctx, "spire-server", []string{b.server.Path, "run", "-config", conf}, b.bundleReady)
}

// startSPIREAgent joins a new agent and gives it the entries, anew if our
// programs have changed. It does nothing for an embedded identity.
func (b *bringUp) startSPIREAgent(ctx context.Context) error {
	if b.cfg.Identity != IdentitySPIRE {
		return nil
	}
	files, err := b.spireFiles()
	if err != nil {
		return err
	}
	programs := files.AttestorSHA256 + files.InitSHA256 + fmt.Sprint(files.Launchers)
	marker := b.l.private("spire", "agent.programs")
	if old, err := os.ReadFile(marker); err == nil && string(old) == programs && b.running("spire-agent") {
		return nil
	}
	if err := b.clear(ctx, "spire-agent"); err != nil {
		return err
	}
	// Its keys are in memory: what it left behind is of no use to it, and an
	// old bundle there would override the one we give it.
	if err := os.RemoveAll(b.l.private("spire", "agent")); err != nil {
		return fmt.Errorf("starting spire-agent: %w", err)
	}
	if files.JoinToken, err = b.registerAgent(ctx); err != nil {
		return fmt.Errorf("registering with SPIRE: %w", err)
	}
	conf := b.l.private("spire", "agent.conf")
	if err := writeTemplate(agentTemplate, files, conf); err != nil {
		return err
	}
	err = b.start(ctx, "spire-agent", []string{b.agent.Path, "run", "-config", conf}, b.agentReady)
	if err != nil {
		return err
	}
	return writeFile(marker, []byte(programs), 0o600)
}

// agentReady fails until the agent holds an SVID for every entry. It opens its
// sockets after its first synchronization, but the server answers that one from
// a cache which may be older than the entries; until the next one it would tell
// sandboxes that they have no identity.
func (b *bringUp) agentReady(ctx context.Context) error {
	if err := connects(ctx, b.l.workloadSocket()); err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix:"+b.l.private("spire", "admin.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dialing the agent: %w", err)
	}
	defer conn.Close()
	return servesEntries(ctx, debugv1.NewDebugClient(conn), len(b.entries()))
}

// servesEntries fails unless the agent holds that many SVIDs.
func servesEntries(ctx context.Context, agent debugv1.DebugClient, want int) error {
	info, err := agent.GetInfo(ctx, &debugv1.GetInfoRequest{})
	if err != nil {
		return fmt.Errorf("asking the agent for its SVIDs: %w", err)
	}
	if have := int(info.GetCachedX509SvidsCount()); have < want {
		return fmt.Errorf("the agent serves %d of %d entries: %w", have, want, sealed.ErrUnavailable)
	}
	return nil
}

// registerAgent makes a join token, replaces the entries by those whose parent
// is the agent that will use it, and saves the server's bundle for the agent.
func (b *bringUp) registerAgent(ctx context.Context) (token string, err error) {
	conn, err := grpc.NewClient("unix:"+b.l.private("spire", "server.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", fmt.Errorf("dialing the server: %w", err)
	}
	defer conn.Close()
	if err := b.saveBundle(ctx, conn); err != nil {
		return "", err
	}
	token = rand.Text()
	_, err = agentv1.NewAgentClient(conn).CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{Ttl: joinTokenTTL, Token: token})
	if err != nil {
		return "", fmt.Errorf("making a join token: %w", err)
	}
	return token, b.replaceEntries(ctx, entryv1.NewEntryClient(conn), "/spire/agent/join_token/"+token)
}

func (b *bringUp) saveBundle(ctx context.Context, conn *grpc.ClientConn) error {
	bundle, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return fmt.Errorf("reading the server's bundle: %w", err)
	}
	var text []byte
	for _, a := range bundle.X509Authorities {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Asn1})...)
	}
	return writeFile(b.l.private("spire", "bundle.pem"), text, 0o600)
}

func (b *bringUp) replaceEntries(ctx context.Context, client entryv1.EntryClient, parentPath string) error {
	old, err := client.ListEntries(ctx, &entryv1.ListEntriesRequest{OutputMask: &types.EntryMask{}})
	if err != nil {
		return fmt.Errorf("listing entries: %w", err)
	}
	var ids []string
	for _, e := range old.Entries {
		ids = append(ids, e.Id)
	}
	if len(ids) > 0 {
		if _, err := client.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: ids}); err != nil {
			return fmt.Errorf("deleting entries: %w", err)
		}
	}
	var add []*types.Entry
	for _, e := range b.entries() {
		add = append(add, spireEntry(e, b.state.TrustDomain, parentPath))
	}
	done, err := client.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: add})
	if err != nil {
		return fmt.Errorf("creating entries: %w", err)
	}
	for _, r := range done.Results {
		if c := codes.Code(r.Status.GetCode()); c != codes.OK {
			return fmt.Errorf("creating entries: %v: %s: %w", c, r.Status.GetMessage(), sealed.ErrInvalid)
		}
	}
	return nil
}

func spireEntry(e entry, trustDomain, parentPath string) *types.Entry {
	out := &types.Entry{
		SpiffeId: &types.SPIFFEID{TrustDomain: trustDomain, Path: strings.TrimPrefix(e.ID, "spiffe://"+trustDomain)},
		ParentId: &types.SPIFFEID{TrustDomain: trustDomain, Path: parentPath},
		DnsNames: e.DNSNames,
	}
	for _, s := range e.Selectors {
		out.Selectors = append(out.Selectors, &types.Selector{Type: "sealed", Value: s})
	}
	return out
}
