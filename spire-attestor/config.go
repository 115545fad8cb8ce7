package spireattestor

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl"
	"github.com/hashicorp/hcl/hcl/token"

	"sealed.dev/sealed/internal/sealed"
)

// nobody is the uid that the kernel shows for a uid without a mapping in the
// reader's user namespace, so it identifies no one.
const nobody = 65534

// A UIDRange is inclusive at both ends; the zero value holds no uid.
type UIDRange struct{ Min, Max uint32 }

// Contains reports whether uid is in the range.
func (r UIDRange) Contains(uid uint32) bool { return r.Max != 0 && r.Min <= uid && uid <= r.Max }

// A Launcher is what one uid of the host may start.
type Launcher struct {
	Tenant sealed.Name
	Agents []sealed.Name
}

// Config is what the attestor is told by its operator. Everything a workload
// or a launcher says is judged against it.
type Config struct {
	// RegistrySocket is the absolute path of the registry socket. Only the
	// plugin and ListenRegistry use it.
	RegistrySocket string
	// TrustFile is the absolute path of the trust file that init must hold.
	TrustFile string
	// InitSHA256 lists the accepted digests of sealed-init, lower-case hex.
	InitSHA256 []string
	// RunUIDs is the range from which a root launcher gives every sandbox a
	// uid of its own. The zero value means that root may launch nothing.
	RunUIDs UIDRange
	// Launchers maps a uid of the host to what it may start.
	Launchers map[uint32]Launcher
	// AllowUserInit is for a single-user machine without root: init and trust
	// file may belong to the attestor's own uid. Every sandbox is then graded
	// same_uid. It is refused when the attestor runs as root.
	AllowUserInit bool

	// Proc is where procfs is mounted; empty means /proc.
	Proc string
	// Clock is the source of time; nil means time.Now.
	Clock func() time.Time
	// Log receives every refusal; nil discards.
	Log *slog.Logger
}

// hclConfig is the shape of plugin_data.
type hclConfig struct {
	RegistrySocket string                 `hcl:"registry_socket"`
	TrustFile      string                 `hcl:"trust_file"`
	InitSHA256     []string               `hcl:"init_sha256"`
	RunUIDs        string                 `hcl:"run_uids"`
	Launchers      []hclLauncher          `hcl:"launchers"`
	AllowUserInit  bool                   `hcl:"allow_user_init"`
	Unused         map[string][]token.Pos `hcl:",unusedKeyPositions"`
}

type hclLauncher struct {
	UID    string                 `hcl:",key"`
	Tenant string                 `hcl:"tenant"`
	Agents []string               `hcl:"agents"`
	Unused map[string][]token.Pos `hcl:",unusedKeyPositions"`
}

// ParseConfig reads plugin_data:
//
//	registry_socket = "/run/sealed/attestor/registry.sock"
//	trust_file      = "/etc/sealed/trust.json"
//	init_sha256     = ["<64 hex digits>"]
//	run_uids        = "700000-799999"
//	launchers "0"    { tenant = "acme" agents = ["claude-code", "codex"] }
//	launchers "1000" { tenant = "acme" agents = ["claude-code"] }
//	allow_user_init = false
//
// Unknown and repeated keys are refused. The result has passed Validate, and
// also names a registry socket. Errors wrap sealed.ErrInvalid.
func ParseConfig(text string) (Config, error) {
	var h hclConfig
	if err := hcl.DecodeErrorOnDuplicates(&h, text); err != nil {
		return Config{}, fmt.Errorf("decoding plugin_data: %w: %w", sealed.ErrInvalid, err)
	}
	if err := refuseUnused("", h.Unused); err != nil {
		return Config{}, err
	}
	cfg := Config{
		RegistrySocket: h.RegistrySocket, TrustFile: h.TrustFile,
		InitSHA256: h.InitSHA256, AllowUserInit: h.AllowUserInit,
	}
	if !filepath.IsAbs(cfg.RegistrySocket) {
		return Config{}, badField("registry_socket", "wants an absolute path")
	}
	var err error
	if cfg.RunUIDs, err = parseUIDRange(h.RunUIDs); err != nil {
		return Config{}, err
	}
	if cfg.Launchers, err = parseLaunchers(h.Launchers); err != nil {
		return Config{}, err
	}
	return cfg, cfg.Validate()
}

func parseLaunchers(blocks []hclLauncher) (map[uint32]Launcher, error) {
	launchers := make(map[uint32]Launcher, len(blocks))
	for _, b := range blocks {
		field := "launchers." + b.UID
		if err := refuseUnused(field+".", b.Unused); err != nil {
			return nil, err
		}
		uid, err := parseUID(b.UID)
		if err != nil {
			return nil, badField(field, "the label wants a decimal uid")
		}
		if _, twice := launchers[uid]; twice {
			return nil, badField(field, "given twice")
		}
		l := Launcher{Tenant: sealed.Name(b.Tenant)}
		for _, a := range b.Agents {
			l.Agents = append(l.Agents, sealed.Name(a))
		}
		launchers[uid] = l
	}
	return launchers, nil
}

func parseUIDRange(s string) (UIDRange, error) {
	if s == "" {
		return UIDRange{}, nil
	}
	lo, hi, ok := strings.Cut(s, "-")
	low, errLow := parseUID(lo)
	high, errHigh := parseUID(hi)
	if !ok || errLow != nil || errHigh != nil {
		return UIDRange{}, badField("run_uids", "wants <min>-<max>")
	}
	return UIDRange{Min: low, Max: high}, nil
}

// parseUID accepts canonical decimal only: no sign, no leading zero, so that
// one uid has one spelling.
func parseUID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, sealed.ErrInvalid
	}
	return uint32(n), nil
}

// Validate checks everything but RegistrySocket. Errors wrap sealed.ErrInvalid
// and name the field as plugin_data spells it.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.TrustFile) || filepath.Clean(c.TrustFile) != c.TrustFile {
		return badField("trust_file", "wants a clean absolute path")
	}
	if len(c.InitSHA256) == 0 {
		return badField("init_sha256", "wants at least one digest")
	}
	for _, d := range c.InitSHA256 {
		if b, err := hex.DecodeString(d); err != nil || len(b) != 32 || strings.ToLower(d) != d {
			return badField("init_sha256", "wants 64 lower-case hex digits")
		}
	}
	if c.AllowUserInit && os.Geteuid() == 0 {
		return badField("allow_user_init", "refused when the attestor runs as root")
	}
	if err := c.validateRunUIDs(); err != nil {
		return err
	}
	if len(c.Launchers) == 0 {
		return badField("launchers", "wants at least one")
	}
	for uid, l := range c.Launchers {
		if err := c.validateLauncher(uid, l); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) validateRunUIDs() error {
	r := c.RunUIDs
	if r == (UIDRange{}) {
		return nil
	}
	if r.Min == 0 || r.Min > r.Max || r.Max == 1<<32-1 || r.Contains(nobody) {
		return badField("run_uids", "wants min ≤ max, without 0, %d and %d", nobody, uint32(1<<32-1))
	}
	return nil
}

func (c Config) validateLauncher(uid uint32, l Launcher) error {
	field := "launchers." + strconv.FormatUint(uint64(uid), 10)
	if uid == nobody || uid == 1<<32-1 {
		return badField(field, "this uid identifies no one")
	}
	// A launcher inside the range could register another run's sandbox as its own.
	if c.RunUIDs.Contains(uid) {
		return badField(field, "a launcher's uid lies outside run_uids")
	}
	if _, err := sealed.ParseName(field+".tenant", string(l.Tenant)); err != nil {
		return err
	}
	if len(l.Agents) == 0 {
		return badField(field+".agents", "wants at least one")
	}
	for _, a := range l.Agents {
		if _, err := sealed.ParseName(field+".agents", string(a)); err != nil {
			return err
		}
	}
	return nil
}

func refuseUnused(prefix string, unused map[string][]token.Pos) error {
	if len(unused) == 0 {
		return nil
	}
	return badField(prefix+slices.Min(slices.Collect(maps.Keys(unused))), "unknown key")
}

func badField(field, format string, args ...any) error {
	return &sealed.FieldError{Field: field, Reason: fmt.Sprintf(format, args...)}
}
