package spireattestor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/spire-attestor/registry"
)

const (
	// maxConns bounds the open registrations of one launcher uid.
	maxConns = 1024
	// lineTimeout bounds the arrival of the first line and every answer.
	lineTimeout = 5 * time.Second
)

// ListenRegistry makes the registry socket: in a directory that exists, belongs
// to root or the attestor and is writable by its owner alone; mode 0666,
// because the caller's uid is asked of the kernel on every connection. A
// socket left by an earlier attestor is replaced; any other file is an error.
func ListenRegistry(path string) (net.Listener, error) {
	dir, err := statTrusted(filepath.Dir(path), uint32(os.Geteuid()))
	if err != nil {
		return nil, fmt.Errorf("listening on registry socket: %w", err)
	}
	if dir.UID != 0 && dir.UID != uint32(os.Geteuid()) || dir.Mode.Perm()&0o022 != 0 {
		return nil, fmt.Errorf("listening on registry socket: others may change %s", filepath.Dir(path))
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("listening on registry socket: %s is not a socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listening on registry socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening on registry socket: %w", err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(fmt.Errorf("listening on registry socket: %w", err), l.Close())
	}
	return l, nil
}

// Serve answers launchers on a Unix listener until ctx ends or accepting
// fails, and closes the listener. When it returns, every descriptor that came
// in over it is dropped. It returns nil if ctx ended it.
func (a *Attestor) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			return errors.Join(fmt.Errorf("accepting launcher: %w", err), l.Close())
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			defer conn.Close()
			a.handle(ctx, conn)
		})
	}
}

// handle serves one launcher. The descriptor lives inside this function.
func (a *Attestor) handle(ctx context.Context, conn net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := peer(conn)
	if err != nil {
		a.refuse(ctx, conn, c, deny(ReasonLauncher, err))
		return
	}
	defer c.pin.Close()
	release, err := a.admit(c.UID)
	if err != nil {
		a.refuse(ctx, conn, c, err)
		return
	}
	defer release()
	d, err := a.firstLine(ctx, conn, c)
	if err != nil {
		a.refuse(ctx, conn, c, err)
		return
	}
	defer d.pin.Close()
	defer a.drop(d)
	// Whatever ends first ends the descriptor: init, launcher, connection.
	go func() {
		select {
		case <-d.pin.Gone():
		case <-c.pin.Gone():
		case <-ctx.Done():
		}
		a.drop(d)
		_ = conn.Close()
	}()
	log := a.config().Log
	log.InfoContext(ctx, "sandbox registered", "pid", d.PID, "launcher_uid", c.UID, "agent", d.agent, "isolation", d.isolation)
	ans := registry.Answer{OK: true, Isolation: d.isolation, InitSHA256: d.initSHA256}
	if answer(conn, ans) != nil {
		return
	}
	a.laterLines(ctx, conn, d)
}

func (a *Attestor) firstLine(ctx context.Context, conn net.Conn, c caller) (*descriptor, error) {
	_ = conn.SetReadDeadline(time.Now().Add(lineTimeout))
	line, err := registry.ReadLine(conn)
	if err != nil {
		return nil, deny(ReasonMalformed, err)
	}
	req, err := registry.DecodeRequest(line)
	if err != nil {
		return nil, deny(ReasonMalformed, err)
	}
	return a.register(ctx, c, req)
}

// laterLines handles notices until the connection ends.
func (a *Attestor) laterLines(ctx context.Context, conn net.Conn, d *descriptor) {
	_ = conn.SetReadDeadline(time.Time{})
	for {
		line, err := registry.ReadLine(conn)
		if err != nil {
			return
		}
		if _, err := registry.DecodeNotice(line); err != nil {
			a.config().Log.WarnContext(ctx, "launcher's line refused", "pid", d.PID, "reason", string(ReasonMalformed))
			return
		}
		d.claim()
		if answer(conn, registry.Answer{OK: true}) != nil {
			return
		}
	}
}

func (a *Attestor) refuse(ctx context.Context, conn net.Conn, c caller, err error) {
	a.config().Log.WarnContext(ctx, "registration refused", "launcher_uid", c.UID, "launcher_pid", c.PID, "error", err)
	_ = answer(conn, registry.Answer{Error: err.Error()})
}

// answer errors when the launcher does not take its line; it then gets none.
func answer(conn net.Conn, ans registry.Answer) error {
	_ = conn.SetWriteDeadline(time.Now().Add(lineTimeout))
	return registry.WriteLine(conn, ans)
}

// admit counts a connection against its uid, so that one launcher cannot use
// up the attestor's descriptors. An unconfigured uid is refused here, before
// its first line is read.
func (a *Attestor) admit(uid uint32) (release func(), err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.cfg.Launchers[uid]; !ok {
		return nil, denyf(ReasonLauncher, "uid %d is not configured", uid)
	}
	if a.conns[uid] >= maxConns {
		return nil, deny(ReasonLimit, nil)
	}
	a.conns[uid]++
	return func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.conns[uid]--
	}, nil
}

// peer asks the kernel who connected. SO_PEERPIDFD (Linux 6.5) pins the very
// process; before that, its number is pinned, which a process that connects
// and exits at once could have handed on, so such a kernel leaves a launcher
// uid the power it has anyway: its own.
func peer(conn net.Conn) (caller, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return caller{}, errors.New("asking for peer: not a Unix connection")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return caller{}, fmt.Errorf("asking for peer: %w", err)
	}
	var cred *unix.Ucred
	var credErr, fdErr error
	var fd int
	if err := raw.Control(func(s uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED)
		fd, fdErr = unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	}); err != nil {
		return caller{}, fmt.Errorf("asking for peer: %w", err)
	}
	if credErr != nil || cred.Pid <= 0 {
		return caller{}, fmt.Errorf("asking for peer: %w", errors.Join(errProc, credErr))
	}
	c := caller{PID: int(cred.Pid), UID: cred.Uid}
	switch {
	case fdErr == nil:
		c.pin, err = watchPIDFD(fd)
	case errors.Is(fdErr, unix.ENOPROTOOPT):
		c.pin, err = openPIDFD(c.PID)
	default:
		err = fmt.Errorf("asking for peer: %w", fdErr)
	}
	return c, err
}
