package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/test/harness/require"
)

const meetingEnv = "SEALED_TEST_MEETING" // dir and run: attend, to be killed

func runN(n int) sealed.RunID { return sealed.RunID(fmt.Sprintf("01JZZZZZZZZZZZZZZZZZZ%05d", n)) }

// A guest is a supervisor in a meeting, with an init that answers at once.
type guest struct {
	*meeting
	leave func() // returns when it has left

	mu     sync.Mutex
	asked  []sealed.RunID
	heard  []string
	silent bool // its init says nothing
}

func (g *guest) list() []sealed.RunID {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.asked)
}

func (g *guest) last() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.heard) == 0 {
		return ""
	}
	return g.heard[len(g.heard)-1]
}

func attend(t *testing.T, dir string, n int) *guest {
	t.Helper()
	g := &guest{}
	g.meeting = &meeting{dir: dir, run: runN(n), said: newNewest[sealed.Signed](), log: slog.New(slog.DiscardHandler)}
	g.ask = func(runs []sealed.RunID) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.asked = runs
		if len(runs) > 0 && !g.silent {
			g.meeting.said.put(sealed.Signed{Payload: "by " + string(g.run)})
		}
	}
	g.pass = func(a sealed.Signed) {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.heard = append(g.heard, a.Payload)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); g.attend(ctx) }()
	g.leave = func() { cancel(); <-done }
	t.Cleanup(g.leave)
	return g
}

// eventually waits for something that others bring about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func meetingDir(t *testing.T) string { return filepath.Join(t.TempDir(), "watch", "0123456789abcdef") }

// One of them asks for all, and everybody hears; whoever is alone does not ask.
// When the chair leaves another takes it. At the end nothing is left.
func TestMeeting(t *testing.T) {
	dir := meetingDir(t)
	a := attend(t, dir, 1)
	eventually(t, "a has the chair", func() bool { _, err := os.Stat(dir + "/0.sock"); return err == nil })
	b, c := attend(t, dir, 2), attend(t, dir, 3)
	all := []sealed.RunID{runN(1), runN(2), runN(3)}
	eventually(t, "a asks for all", func() bool { return slices.Equal(a.list(), all) })
	eventually(t, "b and c hear it", func() bool { return b.last() == "by "+string(runN(1)) && c.last() == b.last() })
	if b.list() != nil || c.list() != nil || a.last() != "" {
		t.Errorf("others ask: %v, %v; a heard %q", b.list(), c.list(), a.last())
	}
	c.leave()
	eventually(t, "a asks for two", func() bool { return slices.Equal(a.list(), all[:2]) })
	c = attend(t, dir, 3)
	eventually(t, "a asks for all again", func() bool { return slices.Equal(a.list(), all) })
	a.leave()
	if a.list() != nil {
		t.Errorf("a asks for %v after the end", a.list())
	}
	eventually(t, "b or c asks for both", func() bool { return slices.Equal(b.list(), all[1:]) || slices.Equal(c.list(), all[1:]) })
	b.leave()
	eventually(t, "c is alone", func() bool { return c.list() == nil })
	c.leave()
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the place is still there: %v", err)
	}
}

// A chair whose init does not answer makes room.
func TestMeetingStuck(t *testing.T) {
	dir := meetingDir(t)
	a := attend(t, dir, 1)
	a.mu.Lock()
	a.silent = true
	a.mu.Unlock()
	eventually(t, "a has the chair", func() bool { _, err := os.Stat(dir + "/0.sock"); return err == nil })
	b := attend(t, dir, 2)
	eventually(t, "a is asked", func() bool { return a.list() != nil })
	eventually(t, "b is asked", func() bool { return b.list() != nil })
	eventually(t, "a hears b", func() bool { return a.last() == "by "+string(runN(2)) })
}

// More runs than one call may name are in two meetings.
func TestMeetingIsFull(t *testing.T) {
	dir := meetingDir(t)
	var all []*guest
	for n := range sealed.MaxHostRuns + 2 {
		all = append(all, attend(t, dir, n))
	}
	eventually(t, "two ask for all", func() bool {
		var asked []int
		for _, g := range all {
			if n := len(g.list()); n > 0 {
				asked = append(asked, n)
			}
		}
		slices.Sort(asked)
		return slices.Equal(asked, []int{2, sealed.MaxHostRuns})
	})
}

// What is not a supervisor's does not disturb the others.
func TestMeetingStrangers(t *testing.T) {
	dir := meetingDir(t)
	a := attend(t, dir, 1)
	eventually(t, "a has the chair", func() bool { _, err := os.Stat(dir + "/0.sock"); return err == nil })
	for _, text := range []string{"", "\n", "{}\n", `{"run":"../x"}` + "\n", `{"run":"` + string(runN(9)) + `","more":1}` + "\n", strings.Repeat("x", 1<<20)} {
		conn, err := net.Dial("unix", dir+"/0.sock")
		must(t, err)
		defer conn.Close()
		_, _ = conn.Write([]byte(text))
	}
	b := attend(t, dir, 2)
	eventually(t, "b hears a", func() bool { return b.last() == "by "+string(runN(1)) })
	if got := a.list(); !slices.Equal(got, []sealed.RunID{runN(1), runN(2)}) {
		t.Errorf("a asks for %v", got)
	}
}

func TestMeetingPlace(t *testing.T) {
	trust := sealed.TrustFile{VaultAddr: "https://a:8200", VaultMount: "sealed", AnswerKey: "k"}
	seen := map[string]bool{meetingPlace("/x", trust): true}
	for _, change := range []func(*sealed.TrustFile){
		func(f *sealed.TrustFile) { f.VaultAddr = "https://b:8200" }, func(f *sealed.TrustFile) { f.VaultMount = "other" }, func(f *sealed.TrustFile) { f.AnswerKey = "l" },
	} {
		other := trust
		change(&other)
		seen[meetingPlace("/x", other)] = true
	}
	if len(seen) != 4 {
		t.Errorf("places: %v", seen)
	}
	for name, spoil := range map[string]func(dir string) error{
		"others may write": func(dir string) error { return errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(dir, 0o770)) },
		"others may read": func(dir string) error {
			return errors.Join(os.MkdirAll(dir, 0o700), os.Chmod(filepath.Dir(dir), 0o711))
		},
		"a link": func(dir string) error {
			return errors.Join(os.MkdirAll(filepath.Dir(dir), 0o700), os.Mkdir(dir+"x", 0o700), os.Symlink(dir+"x", dir))
		},
		"a file": func(dir string) error {
			return errors.Join(os.MkdirAll(filepath.Dir(dir), 0o700), os.WriteFile(dir, nil, 0o600))
		},
	} {
		dir := meetingDir(t)
		must(t, spoil(dir))
		if err := makeMeetingPlace(dir); !errors.Is(err, sealed.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := meetingDir(t)
	if err := errors.Join(makeMeetingPlace(dir), makeMeetingPlace(dir)); err != nil {
		t.Error(err)
	}
	if got := WatchDir(0, "/root"); got != "/run/sealed/watch" {
		t.Errorf("root's: %s", got)
	}
	if got := WatchDir(operatorUID, "/home/x"); got != "/home/x/.cache/sealed/watch" {
		t.Errorf("a user's: %s", got)
	}
	if got := WatchDir(operatorUID, ""); got != "" {
		t.Errorf("nobody's: %s", got)
	}
}

// The kernel says who is at the other end, also where the path is open to all.
func TestMeetingPeer(t *testing.T) {
	require.Root(t, "another user connects")
	dir := newStage(t).dir
	l, err := net.Listen("unix", dir+"/open.sock")
	must(t, err)
	defer l.Close()
	must(t, os.Chmod(dir+"/open.sock", 0o777))
	data, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(dir+"/self", data, 0o755))
	for _, uid := range []uint32{0, operatorUID} {
		cmd := exec.Command(dir + "/self")
		cmd.Env = []string{meetingEnv + "=" + dir + "/open.sock connect"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{}}}
		must(t, cmd.Start())
		conn, err := l.Accept()
		must(t, err)
		if err := sameUser(conn); errors.Is(err, sealed.ErrDenied) != (uid != 0) {
			t.Errorf("uid %d: %v", uid, err)
		}
		_ = conn.Close()
		_ = cmd.Wait()
	}
}

// beGuest is a process of its own that attends, with an init that makes a call
// every now and then. It says what it does: a call that another process is making
// at that moment is "twice".
func beGuest(args string) {
	dir, run, _ := strings.Cut(args, " ")
	if run == "connect" {
		conn, err := net.Dial("unix", dir)
		if err == nil {
			_, _ = conn.Read(make([]byte, 1))
		}
		os.Exit(0)
	}
	calls, err := os.OpenFile(filepath.Dir(filepath.Dir(dir))+"/calls", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	asks := newNewest[[]sealed.RunID]()
	m := &meeting{dir: dir, run: sealed.RunID(run), said: newNewest[sealed.Signed](), ask: asks.put, log: slog.New(slog.DiscardHandler)}
	m.pass = func(a sealed.Signed) { fmt.Println("heard", a.Payload) }
	go func() {
		runs := <-asks
		for {
			if len(runs) == 0 {
				runs = <-asks
				continue
			}
			if unix.Flock(int(calls.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
				fmt.Println("twice")
				os.Exit(1)
			}
			fmt.Println("calls", len(runs))
			time.Sleep(20 * time.Millisecond)
			_ = unix.Flock(int(calls.Fd()), unix.LOCK_UN)
			m.said.put(sealed.Signed{Payload: run})
			select {
			case runs = <-asks:
			default:
			}
		}
	}()
	m.attend(context.Background())
}

// Three processes; the one that has the chair is killed, twice. Those that are left
// go on, one call at a time, and the last one needs nobody.
func TestMeetingChairIsKilled(t *testing.T) {
	dir := meetingDir(t)
	type child struct {
		cmd *exec.Cmd
		out *output
		run string
	}
	var left []*child
	for n := range 3 {
		c := &child{cmd: exec.Command("/proc/self/exe"), out: newOutput(), run: string(runN(n))}
		c.cmd.Env = []string{meetingEnv + "=" + dir + " " + c.run}
		c.cmd.Stdout, c.cmd.Stderr = c.out, c.out
		must(t, c.cmd.Start())
		t.Cleanup(func() { _ = c.cmd.Process.Kill(); _ = c.cmd.Wait() })
		left = append(left, c)
	}
	for len(left) > 1 {
		n := len(left)
		var chair *child
		eventually(t, "one calls for all", func() bool {
			for _, c := range left {
				if strings.Contains(c.out.String(), fmt.Sprintf("calls %d\n", n)) {
					chair = c
				}
			}
			return chair != nil
		})
		left = slices.DeleteFunc(left, func(c *child) bool { return c == chair })
		for _, c := range left {
			c.out.await(t, "heard "+chair.run+"\n")
			if strings.Contains(c.out.String(), "calls") {
				t.Errorf("%s calls, too: %s", c.run, c.out)
			}
		}
		must(t, chair.cmd.Process.Kill())
		_ = chair.cmd.Wait()
	}
	c := left[0]
	eventually(t, "the last one has the chair", func() bool { conn, err := net.Dial("unix", dir+"/0.sock"); return err == nil && conn.Close() == nil })
	if text := c.out.String(); strings.Contains(text, "twice") || strings.Contains(text, "calls") {
		t.Errorf("the last one: %s", text)
	}
}

// One message at a time goes to init, the newest.
func TestFeed(t *testing.T) {
	f, sent := newFeed(), make(chan sealed.RelayControl, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- f.run(ctx, func(m sealed.RelayControl) error { sent <- m; return nil })
	}()
	put := func(text string) { f.answers.put(sealed.Signed{Payload: text}) }
	put("1")
	if m := <-sent; m.Answer.Payload != "1" {
		t.Errorf("got %+v", m)
	}
	put("2")
	put("3")
	select {
	case m := <-sent:
		t.Errorf("before the first was read: %+v", m)
	case <-time.After(50 * time.Millisecond):
	}
	f.ack()
	if m := <-sent; m.Answer.Payload != "3" {
		t.Errorf("got %+v", m)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
