// Package relay is the only way out of a sandbox: streams over one inherited
// socket, between sealed-init (Client) and the owner of the run (Host).
//
// The idea: the sandbox has no route and no resolver. Init opens a stream,
// says in one line where it should lead, and the host, which knows the run's
// terms, resolves the name, checks the address, dials that very address and
// carries bytes. They are ciphertext: TLS ends in init or in the agent, never
// here.
//
// # Guarantee
//
// The host dials nothing but the Vault of the trust file and what the Policy
// lists; an empty list is nothing (B20, CVE-2025-66479). A name is parsed
// once, resolved once, and the address that was checked is the one dialed
// (B16, B17). Loopback, private, link-local, metadata, carrier, multicast and
// reserved addresses, in any spelling, are dialed only where the trust file
// maps that exact host:port.
//
// # What it does not guarantee
//
// It does not look into the bytes: a listed host can be used as a channel
// within its own protocol (B15). It does not know which process of the sandbox
// is behind a stream; init does. With NetworkFull any public address may be
// reached.
//
// # Format
//
// The socket carries a yamux session, init being the yamux client. Each
// stream, opened by init, starts with one line of at most MaxHeader bytes, a
// sealed.RelayHeader in JSON, and is answered by one line, a
// sealed.RelayStatus. After an empty status bytes follow in both directions;
// closing one's own side leaves the other open. Kinds:
//
//	vault    the Vault of the trust file; no address
//	dial     addr is host:port, the host a lower-case DNS name
//	control  one per session: lines of JSON in both directions, each a
//	         sealed.RelayControl of at most MaxControl bytes
//
// # The watch of a host
//
// A supervisor has no Vault token. The init of one run on a host asks the engine
// about all of them (ControlWatch names them, ControlWatched has an answer), and
// supervisors pass the signed answer on as it is (package supervise). What the
// way there is worth is package sandboxinit's to judge; here it is bytes. The host
// has one such message on its way to an init at most: it waits for ControlHeard,
// so that an init that stands still does not fill the stream, in which a
// message that is cut off would be the end of the run.
package relay

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"time"

	"github.com/hashicorp/yamux"

	"sealed.dev/sealed/internal/sealed"
)

const (
	// MaxHeader bounds a header or status line, in bytes.
	MaxHeader = 4 << 10
	// MaxControl bounds a control line, in bytes. A record of 1 MiB fits when
	// escaped.
	MaxControl = 4 << 20
	// MaxStreams bounds the open streams of one session.
	MaxStreams = 256

	headerTimeout = 5 * time.Second
	dialTimeout   = 10 * time.Second
)

// Kinds of stream.
const (
	KindVault   = "vault"
	KindDial    = "dial"
	KindControl = "control"
)

// Types of control message.
const (
	ControlClaimed  = "claimed"  // from init: the run is bound to it
	ControlFinished = "finished" // from init: Exit, Record, Digests, Quarantine
	ControlFailed   = "failed"   // from init: the agent was not started; Exit, Message
	ControlResize   = "resize"   // to init: Rows, Cols
	ControlSignal   = "signal"   // to init: Signal for the agent
	ControlWatch    = "watch"    // to init: watch for Runs, its own among them; for none: no longer
	ControlWatched  = "watched"  // both ways: Answer, from one run's init to that of each
	ControlHeard    = "heard"    // from init: it has read one ControlWatch or ControlWatched
)

// deniedPrefix starts the Error of a status that means no rather than can't.
const deniedPrefix = "denied: "

func sessionConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = MaxStreams
	c.EnableKeepAlive = false // a local socket says itself when its peer is gone
	c.ConnectionWriteTimeout = 30 * time.Second
	c.StreamOpenTimeout = 0                 // a slow dial is not a dead session
	c.StreamCloseTimeout = 30 * time.Minute // of the half that is still open
	c.LogOutput, c.Logger = nil, log.New(io.Discard, "", 0)
	return c
}

func writeLine(w io.Writer, v any, limit int) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding line: %w", err)
	}
	if len(b) > limit {
		return fmt.Errorf("encoding line: %d bytes, limit %d: %w", len(b), limit, sealed.ErrInvalid)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// readLine reads up to a newline, which it drops. r must not be wrapped anew
// afterwards: it may hold what follows the line.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > limit+1 {
			return nil, fmt.Errorf("reading line: over %d bytes: %w", limit, sealed.ErrInvalid)
		}
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// A stream is a yamux stream after its first line. Reads go through the
// buffer that read the line.
type stream struct {
	*yamux.Stream
	r *bufio.Reader
}

var _ net.Conn = (*stream)(nil)

func newStream(ys *yamux.Stream) *stream {
	return &stream{Stream: ys, r: bufio.NewReaderSize(arrived{ys}, MaxHeader)}
}

// arrived reads a stream. yamux gives bytes and an error together when it can't
// tell the peer that there is room for more, because the peer is gone: what had
// arrived by then counts, and what follows has its own end.
type arrived struct{ *yamux.Stream }

func (a arrived) Read(p []byte) (int, error) {
	n, err := a.Stream.Read(p)
	if n > 0 {
		err = nil
	}
	return n, err
}

func (s *stream) Read(p []byte) (int, error) { return s.r.Read(p) }

// CloseWrite tells the peer that no more bytes follow; yamux keeps the other
// direction open.
func (s *stream) CloseWrite() error { return s.Stream.Close() }
