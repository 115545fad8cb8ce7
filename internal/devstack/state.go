package devstack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"sealed.dev/sealed/internal/sealed"
)

// state is the file state.json. It holds no secret and is world-readable, so
// that any user of the machine finds the stack.
type state struct {
	V           int         `json:"v"` // 1
	BootID      string      `json:"boot_id"`
	Identity    string      `json:"identity"`
	Tenant      sealed.Name `json:"tenant"`
	TrustDomain string      `json:"trust_domain"`
	VaultAddr   string      `json:"vault_addr"`    // https://127.0.0.1:port
	ClusterAddr string      `json:"cluster_addr"`  // of raft, https://127.0.0.1:port
	BundleAddr  string      `json:"bundle_addr"`   // 127.0.0.1:port of the bundle endpoint
	SPIREPort   int         `json:"spire_port"`    // of the SPIRE server; 0 when embedded
	Processes   []process   `json:"processes"`     // in the order of their start
	Versions    []version   `json:"versions"`      // of the servers
	Launchers   []int       `json:"launchers"`     // uids that may start sandboxes
	Ready       bool        `json:"ready"`         // set-up has ended once
	PluginHash  string      `json:"plugin_sha256"` // of the registered engine
}

type version struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Path    string `json:"path"`
}

// maxState bounds state.json, in bytes.
const maxState = 64 << 10

// readState returns nil without an error if there is no file.
func readState(l layout) (*state, error) {
	b, err := os.ReadFile(l.state())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading state: %w", err)
	}
	var s state
	if err := sealed.Decode(b, maxState, &s); err != nil {
		return nil, fmt.Errorf("reading %s: %w", l.state(), err)
	}
	if s.V != 1 {
		return nil, fmt.Errorf("reading %s: version %d: %w", l.state(), s.V, sealed.ErrInvalid)
	}
	return &s, nil
}

func writeState(l layout, s *state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding state: %w", err)
	}
	return writeFile(l.state(), append(b, '\n'), 0o644)
}

func (s *state) process(name string) (process, bool) {
	for _, p := range s.Processes {
		if p.Name == name {
			return p, true
		}
	}
	return process{}, false
}

// setProcess replaces the entry of the same name, or appends.
func (s *state) setProcess(p process) {
	for i := range s.Processes {
		if s.Processes[i].Name == p.Name {
			s.Processes[i] = p
			return
		}
	}
	s.Processes = append(s.Processes, p)
}
