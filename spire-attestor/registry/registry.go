// Package registry is the launcher's side of the attestor's registry socket:
// the wire format, and a client.
//
// A launcher that has started a sandbox announces it here. The attestor then
// records, from the kernel and never from the launcher, who that process is;
// from then on the process may be attested. The package links no SPIRE code,
// because launchers and sealed-init link it.
//
// # Guarantee
//
// After Register returns, the attestor knows exactly one process under the
// announced number, and knows it only as long as the Registration is open,
// the launcher lives and the process lives.
//
// # What it does not guarantee
//
// A registration is no identity. The attestor measures the process again on
// every call of the Workload API and may still refuse it.
//
// # Format
//
// A Unix stream socket. The launcher sends one JSON object on one line of at
// most MaxLine bytes:
//
//	{"v":1,"agent":"claude-code","backend":"local","pid":1234}
//
// The attestor answers with one line, either of:
//
//	{"ok":true,"isolation":"own_uid","init_sha256":"<64 hex digits>"}
//	{"ok":false,"error":"<reason code>: <text>"}
//
// The connection stays open. The launcher may send, once,
//
//	{"claimed":true}
//
// which closes the attestation window; the attestor answers {"ok":true}.
// Anything else on the line, or a closed connection, drops the descriptor.
package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"sealed.dev/sealed/internal/sealed"
)

const (
	// Version is the only protocol version.
	Version = 1
	// MaxLine is the longest accepted line in bytes, without its newline.
	MaxLine = 4 << 10
	// BackendLocal is the only backend whose processes are on this host.
	BackendLocal = "local"
	// TrustFD is the descriptor number under which sealed-init holds the trust
	// file open. The attestor looks there and nowhere else.
	TrustFD = 5
)

// A Descriptor announces one started sandbox.
type Descriptor struct {
	// Agent is the kind of agent; the attestor's configuration must allow it
	// to the launcher's uid.
	Agent sealed.Name
	// Backend is the driver; empty means BackendLocal.
	Backend string
	// PID is the host's number of the sandbox's process 1, as bubblewrap
	// reports it in child-pid.
	PID int
}

// A Request is the first line of a connection.
type Request struct {
	V       int    `json:"v"`
	Agent   string `json:"agent"`
	Backend string `json:"backend"`
	PID     int    `json:"pid"`
}

// A Notice is any later line of the launcher.
type Notice struct {
	Claimed bool `json:"claimed"`
}

// An Answer is any line of the attestor.
type Answer struct {
	OK         bool   `json:"ok"`
	Isolation  string `json:"isolation,omitempty"`
	InitSHA256 string `json:"init_sha256,omitempty"`
	Error      string `json:"error,omitempty"`
}

// DecodeRequest reads the first line of a connection. Unknown fields, other
// versions, trailing data and values outside their grammar are refused with an
// error that wraps sealed.ErrInvalid.
func DecodeRequest(line []byte) (Request, error) {
	var r Request
	if err := decode(line, &r); err != nil {
		return Request{}, err
	}
	if r.V != Version {
		return Request{}, fmt.Errorf("%w: version %d", sealed.ErrInvalid, r.V)
	}
	if _, err := sealed.ParseName("agent", r.Agent); err != nil {
		return Request{}, err
	}
	if r.Backend != BackendLocal {
		return Request{}, fmt.Errorf("%w: backend is not %q", sealed.ErrInvalid, BackendLocal)
	}
	if r.PID < 2 || r.PID > 1<<22 { // PID_MAX_LIMIT of 64-bit Linux
		return Request{}, fmt.Errorf("%w: pid out of range", sealed.ErrInvalid)
	}
	return r, nil
}

// DecodeNotice reads a later line of the launcher.
func DecodeNotice(line []byte) (Notice, error) {
	var n Notice
	if err := decode(line, &n); err != nil {
		return Notice{}, err
	}
	if !n.Claimed {
		return Notice{}, fmt.Errorf("%w: a notice says claimed", sealed.ErrInvalid)
	}
	return n, nil
}

func decode(line []byte, v any) error { return sealed.Decode(line, MaxLine, v) }

// ReadLine reads up to a newline, one byte at a time so that it never takes a
// byte of the next line. More than MaxLine bytes is an error that wraps
// sealed.ErrInvalid; a connection closed between lines is io.EOF.
func ReadLine(r io.Reader) ([]byte, error) {
	var line []byte
	var b [1]byte
	for {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				return nil, fmt.Errorf("%w: no newline at the end", sealed.ErrInvalid)
			}
			return nil, err
		}
		if b[0] == '\n' {
			return line, nil
		}
		if len(line) == MaxLine {
			return nil, fmt.Errorf("%w: longer than %d bytes", sealed.ErrInvalid, MaxLine)
		}
		line = append(line, b[0])
	}
}

// WriteLine writes v as one line.
func WriteLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding registry line: %w", err)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
