package supervise

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
)

// A meeting is how the supervisors of one user on one host share one watch of the
// engine. One of them has the chair, by a lock that the kernel gives back when it
// ends. It listens on a socket; the others connect and say which run they own. Its
// init asks the engine for all of them, and every answer goes to everybody as it
// is. A meeting has at most sealed.MaxHostRuns runs; there are as many as needed.
//
// Who may write the directory may take part, and that is the user alone; the
// kernel says on each connection who the other side is. Nobody here can check an
// answer for another: init does that (package sandboxinit), and watches by itself
// as soon as it hears nothing that is good.
//
// In the directory, n being the number of a meeting:
//
//	n.lock   locked by the chair
//	n.sock   Unix stream socket of the chair: from each side lines of JSON, first
//	         a hello and a welcome, then sealed.Signed documents from the chair
type meeting struct {
	dir  string
	run  sealed.RunID
	ask  func([]sealed.RunID) // our init is to watch for these; for none: no longer
	pass func(sealed.Signed)  // our init is to hear this
	said newest[sealed.Signed]
	log  *slog.Logger
}

// A hello names the run that a supervisor owns. A welcome answers it.
type hello struct {
	Run sealed.RunID `json:"run"`
}

type welcome struct {
	Full bool `json:"full,omitempty"` // go to the next meeting
}

const (
	maxMeetings = 16
	maxHello    = 256
	// greetLimit bounds the time for hello and welcome.
	greetLimit = 2 * time.Second
	// stuckLimit is how long the chair waits for its own init's next answer before
	// somebody else may try.
	stuckLimit = 3 * time.Second
)

var (
	errFull  = errors.New("the meeting is full")
	errStuck = errors.New("init does not answer")
)

// attend takes part until ctx ends. Whatever fails is tried again, soon where
// that is a matter of moments: the chair has just gone, or has just come.
func (m *meeting) attend(ctx context.Context) {
	for ctx.Err() == nil {
		err := m.sit(ctx)
		wait := 20*time.Millisecond + rand.N(60*time.Millisecond)
		switch {
		case errors.Is(err, errStuck):
			wait = 2 * time.Second // for somebody else to take the chair
		case errors.Is(err, fs.ErrNotExist): // the last one has just cleared the place away
		case err != nil && !errors.Is(err, sealed.ErrUnavailable):
			m.log.Debug("sharing the watch of this host", "error", err)
			wait = 10 * time.Second
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// sit takes the chair of a meeting or a seat in it, and returns when that ends.
func (m *meeting) sit(ctx context.Context) error {
	if err := makeMeetingPlace(m.dir); err != nil {
		return err
	}
	for n := range maxMeetings {
		path := filepath.Join(m.dir, strconv.Itoa(n))
		chair, err := takeChair(path + ".lock")
		if err != nil {
			return err
		}
		if chair != nil {
			defer leaveChair(chair)
			return m.preside(ctx, path+".sock")
		}
		if err := m.follow(ctx, path+".sock"); !errors.Is(err, errFull) {
			return err
		}
	}
	return errFull
}

// follow hears what the chair says until one of the two ends.
func (m *meeting) follow(ctx context.Context, path string) error {
	conn, err := (&net.Dialer{Timeout: greetLimit}).DialContext(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("joining: %w: %w", sealed.ErrUnavailable, err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := sameUser(conn); err != nil {
		return err
	}
	lines := scan(conn, sealed.MaxHostAnswer)
	var w welcome
	_ = conn.SetDeadline(time.Now().Add(greetLimit))
	if err := errors.Join(send(conn, hello{m.run}), receive(lines, &w)); err != nil {
		return err
	}
	if w.Full {
		return errFull
	}
	_ = conn.SetDeadline(time.Time{})
	for {
		var a sealed.Signed
		if err := receive(lines, &a); err != nil {
			return err
		}
		m.pass(a)
	}
}

// sameUser checks who is at the other end of a connection, by the kernel's word.
func sameUser(conn net.Conn) error {
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return fmt.Errorf("looking at the peer: %w: %w", sealed.ErrUnavailable, err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || credErr != nil {
		return fmt.Errorf("looking at the peer: %w: %w", sealed.ErrUnavailable, errors.Join(err, credErr))
	}
	if int(cred.Uid) != os.Geteuid() {
		return fmt.Errorf("looking at the peer: it is another user's: %w", sealed.ErrDenied)
	}
	return nil
}

// scan reads lines of at most so many bytes.
func scan(conn net.Conn, limit int) *bufio.Scanner {
	s := bufio.NewScanner(conn)
	s.Buffer(nil, limit)
	return s
}

// receive decodes the next line. Its errors wrap sealed.ErrUnavailable: whatever
// the other side did, it is of no use.
func receive(s *bufio.Scanner, v any) error {
	if !s.Scan() {
		return fmt.Errorf("reading from the meeting: %w: %w", sealed.ErrUnavailable, errors.Join(net.ErrClosed, s.Err()))
	}
	if err := sealed.Decode(s.Bytes(), sealed.MaxHostAnswer, v); err != nil {
		return fmt.Errorf("reading from the meeting: %w: %w", sealed.ErrUnavailable, err)
	}
	return nil
}

func send(conn net.Conn, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding for the meeting: %w", err)
	}
	if _, err := conn.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("writing to the meeting: %w: %w", sealed.ErrUnavailable, err)
	}
	return nil
}

// newest hands values to one reader, who gets the newest and not those that it
// was too slow for.
type newest[T any] chan T

func newNewest[T any]() newest[T] { return make(newest[T], 1) }

func (n newest[T]) put(v T) {
	for {
		select {
		case n <- v:
			return
		default:
		}
		select {
		case <-n:
		default:
		}
	}
}
