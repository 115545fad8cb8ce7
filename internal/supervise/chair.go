package supervise

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// publishPause is the least time between two answers that are passed on: an init
// that has lost its mind does not keep the others busy.
const publishPause = 10 * time.Millisecond

// A chair is the one supervisor of a meeting whose init watches for all.
type chair struct {
	*meeting
	changed chan struct{} // somebody came or went; holds one

	mu    sync.Mutex
	seats map[*seat]bool
}

// A seat is another supervisor.
type seat struct {
	run  sealed.RunID
	out  newest[sealed.Signed]
	gone chan struct{} // closed when its connection has ended
}

// preside listens and passes on until ctx ends or init does not answer any more.
func (m *meeting) preside(ctx context.Context, path string) error {
	_ = os.Remove(path) // of a chair that was killed; we have its lock
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("opening the meeting: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return fmt.Errorf("opening the meeting: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &chair{meeting: m, changed: make(chan struct{}, 1), seats: map[*seat]bool{}}
	var all sync.WaitGroup
	defer m.ask(nil)
	defer all.Wait()
	defer func() {
		cancel()
		_ = l.Close()
	}()
	all.Go(func() { c.accept(ctx, l, &all) })
	return c.lead(ctx)
}

// lead has init ask while there is anybody to ask for: a run alone on its host
// watches by itself.
func (c *chair) lead(ctx context.Context) error {
	stuck := time.NewTimer(stuckLimit)
	defer stuck.Stop()
	asking := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.changed:
			if runs := c.runs(); len(runs) > 1 || asking {
				if asking = len(runs) > 1; !asking {
					runs = nil
				}
				c.ask(runs)
			}
			stuck.Reset(stuckLimit)
		case a := <-c.said:
			c.publish(a)
			stuck.Reset(stuckLimit)
			select {
			case <-ctx.Done():
			case <-time.After(publishPause):
			}
		case <-stuck.C:
			if asking {
				return errStuck
			}
		}
	}
}

// runs are those of everybody here, each once and always in one order.
func (c *chair) runs() []sealed.RunID {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := map[sealed.RunID]bool{c.run: true}
	for s := range c.seats {
		all[s.run] = true
	}
	return slices.Sorted(maps.Keys(all))
}

func (c *chair) publish(a sealed.Signed) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.seats {
		s.out.put(a)
	}
}

func (c *chair) accept(ctx context.Context, l *net.UnixListener, all *sync.WaitGroup) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		all.Go(func() {
			defer func() { _ = conn.Close() }()
			defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
			c.seat(ctx, conn, all)
		})
	}
}

// seat serves one supervisor until it or the meeting ends.
func (c *chair) seat(ctx context.Context, conn *net.UnixConn, all *sync.WaitGroup) {
	if sameUser(conn) != nil {
		return
	}
	lines := scan(conn, maxHello)
	var h hello
	_ = conn.SetDeadline(time.Now().Add(greetLimit))
	if receive(lines, &h) != nil {
		return
	}
	if _, err := sealed.ParseRunID(string(h.Run)); err != nil {
		return
	}
	s := &seat{run: h.Run, out: newNewest[sealed.Signed](), gone: make(chan struct{})}
	if !c.join(s) {
		_ = send(conn, welcome{Full: true})
		return
	}
	defer c.leave(s)
	if send(conn, welcome{}) != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	all.Go(func() { // it says nothing more; its end does
		defer close(s.gone)
		for lines.Scan() {
		}
	})
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.gone:
			return
		case a := <-s.out:
			_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			if send(conn, a) != nil {
				return
			}
		}
	}
}

// join gives a seat unless every one is taken. Seats count, not runs, so that
// nobody can keep a run out by naming it first.
func (c *chair) join(s *seat) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seats) >= sealed.MaxHostRuns-1 {
		return false
	}
	c.seats[s] = true
	c.note()
	return true
}

func (c *chair) leave(s *seat) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.seats, s)
	c.note()
}

// note has lead look at who is here.
func (c *chair) note() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}
