package devstack

import (
	"context"
	"errors"
	"net"
	"net/http"

	"sealed.dev/sealed/internal/sealed"
)

// The states of a stack.
const (
	StateUp       = "up"       // everything answers
	StateDegraded = "degraded" // something does not; Up repairs
	StateDown     = "down"     // nothing runs
)

// Status is what a stack is doing, and where to find it. It holds no secret.
type Status struct {
	State        string          `json:"state"`
	Dir          string          `json:"dir"`
	Identity     string          `json:"identity"`
	Tenant       sealed.Name     `json:"tenant"`
	TrustDomain  string          `json:"trust_domain"`
	VaultAddr    string          `json:"vault_addr"`
	VaultCA      string          `json:"vault_ca"` // path
	Mount        string          `json:"mount"`
	BundleURL    string          `json:"bundle_url"`
	SPIFFESocket string          `json:"spiffe_socket"`
	AttestSocket string          `json:"attest_socket"`
	TrustFile    string          `json:"trust_file"`
	AuditFile    string          `json:"audit_file"` // Vault's
	InitPath     string          `json:"init_path"`
	AgentPath    string          `json:"agent_path"` // of the command sealed
	Launchers    []int           `json:"launchers"`
	Vault        string          `json:"vault"`      // unreachable, sealed, standby or active
	OnePerson    bool            `json:"one_person"` // a change that widens waits for nobody
	Processes    []ProcessStatus `json:"processes"`
	Servers      []ServerStatus  `json:"servers"`
}

// ProcessStatus is one process of the stack.
type ProcessStatus struct {
	Name  string `json:"name"`
	PID   int    `json:"pid"`
	Alive bool   `json:"alive"`
	Log   string `json:"log"` // path
}

// ServerStatus is a server program in use.
type ServerStatus struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Path    string `json:"path"`
}

// Status looks at the processes, at Vault and at the Workload API. It never
// fails: what does not answer is reported as such.
func (s *Stack) Status(ctx context.Context) Status {
	now := s.s
	if read, err := readState(s.l); err == nil && read != nil {
		now = *read
	}
	out := Status{
		Dir: s.l.dir, Identity: now.Identity, Tenant: now.Tenant, TrustDomain: now.TrustDomain,
		VaultAddr: now.VaultAddr, VaultCA: s.l.ca(), Mount: Mount, BundleURL: "https://" + now.BundleAddr + "/",
		SPIFFESocket: s.l.workloadSocket(), AttestSocket: s.l.registrySocket(), TrustFile: s.l.trust(),
		AuditFile: s.l.vaultAudit(), InitPath: s.l.bin(binInit), AgentPath: s.l.bin(binAgent),
		Launchers: now.Launchers, Vault: s.vaultHealth(ctx),
		Processes: []ProcessStatus{}, Servers: []ServerStatus{},
	}
	if out.Vault == "active" {
		out.OnePerson = s.onePerson(ctx)
	}
	boot, err := bootID()
	alive := 0
	for _, p := range now.Processes {
		ps := ProcessStatus{Name: p.Name, PID: p.PID, Alive: err == nil && boot == now.BootID && p.alive(), Log: s.l.log(p.Name)}
		if ps.Alive {
			alive++
		}
		out.Processes = append(out.Processes, ps)
	}
	for _, v := range now.Versions {
		out.Servers = append(out.Servers, ServerStatus(v))
	}
	switch {
	case alive == 0:
		out.State = StateDown
	case alive == len(now.Processes) && now.Ready && out.Vault == "active" && connects(ctx, out.SPIFFESocket) == nil:
		out.State = StateUp
	default:
		out.State = StateDegraded
	}
	return out
}

func (s *Stack) vaultHealth(ctx context.Context) string {
	c, err := s.client("")
	if err != nil {
		return "unreachable"
	}
	status, err := c.Sys(ctx, http.MethodGet, "sys/seal-status", nil)
	if err != nil {
		return "unreachable"
	}
	if closed, _ := status["sealed"].(bool); closed {
		return "sealed"
	}
	if _, err := c.Sys(ctx, http.MethodGet, "sys/health", nil); err != nil {
		return "standby"
	}
	return "active"
}

// onePerson reports whether the engine says that it asks no second person.
func (s *Stack) onePerson(ctx context.Context) bool {
	root, err := s.Root()
	if err != nil {
		return false
	}
	cfg, err := root.Read(ctx, Mount+"/config", nil)
	second, told := cfg["second_person"].(bool)
	return err == nil && told && !second
}

// connects reports whether somebody listens on a Unix socket.
func connects(ctx context.Context, path string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return errors.Join(sealed.ErrUnavailable, err)
	}
	return conn.Close()
}
