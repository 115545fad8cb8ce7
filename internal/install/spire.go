package install

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"sealed.dev/sealed/internal/sealed"
)

// A SPIRE says which entries the tenant's agents have, and what the agents' hosts
// are configured with.
type SPIRE struct {
	// Socket is SPIRE server's own API, a Unix socket on its host. Empty: there is
	// no step, and EntryCommands says what to run there.
	Socket string
	// Parents are the SPIFFE IDs that the entries hang under: SPIRE agents, or an
	// alias that stands for several.
	Parents []string
	Agents  []sealed.Name // kinds of agent
	// Launchers are the uids of the hosts that may start sandboxes. Those of root
	// have a uid of their own (own_uid).
	Launchers  []int
	InitSHA256 string // of the hosts' sealed-init
	// Prune also removes entries of the tenant below Parents that are not wanted
	// any more, such as those of an older sealed-init.
	Prune bool

	// What AgentConf needs.
	Attestor, AttestorSHA256           string // path on the hosts, and its digest
	RegistrySocket, TrustFile, RunUIDs string
}

// maxEntries bounds what is read of SPIRE's entries.
const maxEntries = 100_000

func (s SPIRE) validate() error {
	switch {
	case !sha256RE.MatchString(s.InitSHA256):
		return &sealed.FieldError{Field: "spire.init_sha256", Reason: "wants 64 lower-case hex digits"}
	case len(s.Agents) == 0 || len(s.Launchers) == 0:
		return &sealed.FieldError{Field: "spire", Reason: "wants at least one agent and one launcher"}
	case s.Socket != "" && !filepath.IsAbs(s.Socket):
		return &sealed.FieldError{Field: "spire.socket", Reason: "wants an absolute path"}
	case s.Socket != "" && len(s.Parents) == 0:
		return &sealed.FieldError{Field: "spire.parents", Reason: "wants the SPIFFE ID of a SPIRE agent or of an alias of some"}
	}
	for _, a := range s.Agents {
		if _, err := sealed.ParseName("spire.agents", string(a)); err != nil {
			return err
		}
	}
	for _, uid := range s.Launchers {
		if uid < 0 {
			return &sealed.FieldError{Field: "spire.launchers", Reason: "wants uids"}
		}
	}
	for _, p := range s.Parents {
		if rest, ok := strings.CutPrefix(p, "spiffe://"); !ok || !strings.Contains(rest, "/") || strings.ContainsAny(rest, " \t\n\"'\\") {
			return &sealed.FieldError{Field: "spire.parents", Reason: "wants SPIFFE IDs with a path"}
		}
	}
	return nil
}

// A registration is one wanted entry. All selectors have to hold. The DNS name
// carries the attested isolation into the X509-SVID, where the engine reads it.
type registration struct {
	id, parent string
	selectors  []string // of the type sealed
	dns        string
}

func (t target) registrations() []registration {
	var out []registration
	for _, parent := range t.SPIRE.Parents {
		for _, agent := range t.SPIRE.Agents {
			for _, uid := range t.SPIRE.Launchers {
				isolation, dns := sealed.IsolationSameUID, "same-uid.isolation.sealed.internal"
				if uid == 0 {
					isolation, dns = sealed.IsolationOwnUID, "own-uid.isolation.sealed.internal"
				}
				out = append(out, registration{
					id: "spiffe://" + t.TrustDomain + sealed.AgentSPIFFEPath(t.Tenant, agent), parent: parent, dns: dns,
					selectors: []string{
						"tenant:" + string(t.Tenant), "agent:" + string(agent), "init_sha256:" + t.SPIRE.InitSHA256,
						"isolation:" + isolation, "backend:local", "image:host", "launcher_uid:" + strconv.Itoa(uid), "init_owner:root",
					},
				})
			}
		}
	}
	return out
}

// key identifies an entry as SPIRE does: identity, parent, selectors.
func (r registration) key() string {
	s := slices.Sorted(slices.Values(r.selectors))
	return r.id + "\n" + r.parent + "\n" + strings.Join(s, "\n")
}

func spiffeID(id string) *types.SPIFFEID {
	domain, path, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	return &types.SPIFFEID{TrustDomain: domain, Path: "/" + path}
}

func (r registration) entry() *types.Entry {
	e := &types.Entry{SpiffeId: spiffeID(r.id), ParentId: spiffeID(r.parent), DnsNames: []string{r.dns}}
	for _, s := range r.selectors {
		e.Selectors = append(e.Selectors, &types.Selector{Type: "sealed", Value: s})
	}
	return e
}

// registered reads an entry back. ours is false if it has a selector of another
// type, or is of another tenant.
func (t target) registered(e *types.Entry) (r registration, ours bool) {
	r = registration{id: "spiffe://" + e.SpiffeId.GetTrustDomain() + e.SpiffeId.GetPath(), parent: "spiffe://" + e.ParentId.GetTrustDomain() + e.ParentId.GetPath()}
	for _, s := range e.Selectors {
		if s.Type != "sealed" {
			return r, false
		}
		r.selectors = append(r.selectors, s.Value)
	}
	domain, tenant, _, err := sealed.ParseAgentSPIFFEID(r.id)
	return r, err == nil && domain == t.TrustDomain && tenant == t.Tenant && len(r.selectors) > 0
}

// entryDiff is what has to change. stale entries are unwanted ones below the
// parents that this job is about.
type entryDiff struct {
	create, update []*types.Entry
	stale          []string // ids
}

func (t target) diffEntries(ctx context.Context, client entryv1.EntryClient) (entryDiff, error) {
	var d entryDiff
	have, err := listEntries(ctx, client)
	if err != nil {
		return d, err
	}
	byKey := map[string]*types.Entry{}
	wanted := map[string]bool{}
	for _, r := range t.registrations() {
		wanted[r.key()] = true
	}
	for _, e := range have {
		r, ours := t.registered(e)
		if !ours {
			continue
		}
		byKey[r.key()] = e
		if !wanted[r.key()] && slices.Contains(t.SPIRE.Parents, r.parent) {
			d.stale = append(d.stale, e.Id)
		}
	}
	for _, r := range t.registrations() {
		old, want := byKey[r.key()], r.entry()
		switch {
		case old == nil:
			d.create = append(d.create, want)
		case !slices.Equal(old.DnsNames, want.DnsNames) || old.Admin || old.Downstream || old.StoreSvid || len(old.FederatesWith) > 0:
			want.Id = old.Id
			d.update = append(d.update, want)
		}
	}
	return d, nil
}

func listEntries(ctx context.Context, client entryv1.EntryClient) ([]*types.Entry, error) {
	var out []*types.Entry
	for token := ""; ; {
		page, err := client.ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: 500, PageToken: token})
		if err != nil {
			return nil, spireError("listing", err)
		}
		out = append(out, page.Entries...)
		if token = page.NextPageToken; token == "" || len(out) > maxEntries {
			return out, nil
		}
	}
}

// withSPIRE calls f with a client of the server's own socket, whose permissions are
// its authentication.
func (t target) withSPIRE(f func(entryv1.EntryClient) error) error {
	conn, err := grpc.NewClient("unix:"+t.SPIRE.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dialing SPIRE server: %w", err)
	}
	defer conn.Close()
	return f(entryv1.NewEntryClient(conn))
}

func (t target) entries() step {
	s := step{name: "spire", what: fmt.Sprintf("%d entries of SPIRE for tenant %s", len(t.registrations()), t.Tenant)}
	s.look = func(ctx context.Context) (out found, err error) {
		err = t.withSPIRE(func(client entryv1.EntryClient) error {
			d, err := t.diffEntries(ctx, client)
			if err == nil {
				out = d.found(t.SPIRE.Prune)
			}
			return err
		})
		return out, err
	}
	s.apply = func(ctx context.Context) error {
		return t.withSPIRE(func(client entryv1.EntryClient) error {
			d, err := t.diffEntries(ctx, client)
			if err != nil {
				return err
			}
			return d.apply(ctx, client, t.SPIRE.Prune)
		})
	}
	return s
}

func (d entryDiff) found(prune bool) found {
	detail := fmt.Sprintf("%d missing, %d otherwise, %d of another build or launcher", len(d.create), len(d.update), len(d.stale))
	switch {
	case len(d.create) > 0 && len(d.update) == 0 && len(d.stale) == 0:
		return found{Absent, Create, ""}
	case len(d.create) > 0 || len(d.update) > 0 || prune && len(d.stale) > 0:
		return found{Different, Change, detail}
	case len(d.stale) > 0:
		return found{Different, Warn, fmt.Sprintf("%d more of another build or launcher stay; prune removes them", len(d.stale))}
	}
	return found{Same, Keep, ""}
}

func (d entryDiff) apply(ctx context.Context, client entryv1.EntryClient, prune bool) error {
	if len(d.create) > 0 {
		done, err := client.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: d.create})
		if err != nil {
			return spireError("creating", err)
		}
		for _, r := range done.Results {
			if err := entryStatus("creating", r.Status, codes.AlreadyExists); err != nil {
				return err
			}
		}
	}
	if len(d.update) > 0 {
		done, err := client.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: d.update})
		if err != nil {
			return spireError("changing", err)
		}
		for _, r := range done.Results {
			if err := entryStatus("changing", r.Status, codes.OK); err != nil {
				return err
			}
		}
	}
	if !prune {
		return nil
	}
	return deleteEntries(ctx, client, d.stale)
}

func deleteEntries(ctx context.Context, client entryv1.EntryClient, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	done, err := client.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: ids})
	if err != nil {
		return spireError("deleting", err)
	}
	for _, r := range done.Results {
		if err := entryStatus("deleting", r.Status, codes.NotFound); err != nil {
			return err
		}
	}
	return nil
}

// spireError is the error of a whole call.
func spireError(doing string, err error) error {
	if status.Code(err) == codes.PermissionDenied {
		return fmt.Errorf("%s entries of SPIRE: %w: %w", doing, sealed.ErrDenied, err)
	}
	return fmt.Errorf("%s entries of SPIRE: %w: %w", doing, sealed.ErrUnavailable, err)
}

// entryStatus is the error in the result of one entry; fine is what is none either.
func entryStatus(doing string, st *types.Status, fine codes.Code) error {
	if c := codes.Code(st.GetCode()); c != codes.OK && c != fine {
		return fmt.Errorf("%s an entry of SPIRE: %v: %s: %w", doing, c, st.GetMessage(), sealed.ErrInvalid)
	}
	return nil
}

// EntryCommands are the commands that make the wanted entries on the host of SPIRE
// server, for where its socket is out of reach. Without parents they have the
// placeholder <parent>.
func EntryCommands(t Target) ([]string, error) {
	if t.SPIRE == nil {
		return nil, nil
	}
	spire := *t.SPIRE
	if err := spire.validate(); err != nil {
		return nil, fmt.Errorf("listing entries: %w", err)
	}
	if len(spire.Parents) == 0 {
		spire.Parents = []string{"<parent>"}
	}
	t.SPIRE = &spire
	var out []string
	for _, r := range (target{Target: t}).registrations() {
		line := "spire-server entry create -parentID '" + r.parent + "' -spiffeID " + r.id + " -dns " + r.dns
		for _, s := range r.selectors {
			line += " -selector sealed:" + s
		}
		out = append(out, line)
	}
	return out, nil
}

// AgentConf is the block for the configuration of SPIRE agent on the hosts, in HCL.
func AgentConf(t Target) (string, error) {
	if t.SPIRE == nil {
		return "", nil
	}
	if err := t.SPIRE.validate(); err != nil {
		return "", fmt.Errorf("writing configuration of the attestor: %w", err)
	}
	var out strings.Builder
	err := agentConf.Execute(&out, map[string]any{"S": t.SPIRE, "Tenant": string(t.Tenant)})
	return out.String(), err
}

// A JSON string is an HCL string, but for ${, which no path of a host should hold.
var agentConf = template.Must(template.New("agent.conf").Funcs(template.FuncMap{"q": func(v any) (string, error) {
	b, err := json.Marshal(v)
	if strings.Contains(string(b), "${") {
		return "", &sealed.FieldError{Field: "spire", Reason: "can't write ${ into HCL"}
	}
	return string(b), err
}}).Parse(`WorkloadAttestor "sealed" {
    plugin_cmd = {{q .S.Attestor}}
{{- if .S.AttestorSHA256}}
    plugin_checksum = {{q .S.AttestorSHA256}}
{{- end}}
    plugin_data {
        registry_socket = {{q .S.RegistrySocket}}
        trust_file      = {{q .S.TrustFile}}
        init_sha256     = [{{q .S.InitSHA256}}]
        run_uids        = {{q .S.RunUIDs}}
{{- range .S.Launchers}}
        launchers "{{.}}" {
            tenant = {{q $.Tenant}}
            agents = {{q $.S.Agents}}
        }
{{- end}}
    }
}
`))
