package main

import (
	"context"
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestClean(t *testing.T) {
	for _, tc := range []struct {
		name              string
		in, kept, dropped []string
	}{
		{"nothing", nil, nil, nil},
		{"both", []string{"A=1", "GODEBUG=http2debug=2", "GOTRACEBACK=crash", "B="}, []string{"A=1", "B="}, []string{"GODEBUG", "GOTRACEBACK"}},
		{"any setting", []string{"GODEBUG=asynctimerchan=1"}, nil, []string{"GODEBUG"}},
		{"twice", []string{"GODEBUG=a=1", "GODEBUG=b=1"}, nil, []string{"GODEBUG", "GODEBUG"}},
		{"empty: there is nothing to drop", []string{"GODEBUG=", "GOTRACEBACK=system"}, []string{"GODEBUG=", "GOTRACEBACK=system"}, nil},
		{"like it", []string{"GODEBUGX=1", "XGODEBUG=1", "A=GODEBUG"}, []string{"GODEBUGX=1", "XGODEBUG=1", "A=GODEBUG"}, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			kept, dropped := clean(tc.in)
			if diff := cmp.Diff([][]string{tc.kept, tc.dropped}, [][]string{kept, dropped}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestInherited: the pipe that carries the operator's token to the supervisor
// is closed in whatever the supervisor starts.
func TestInherited(t *testing.T) {
	fd, err := unix.Dup(int(os.Stdin.Fd())) // as a parent would leave it
	if err != nil {
		t.Fatal(err)
	}
	closes := func() bool {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil {
			t.Fatal(err)
		}
		return flags&unix.FD_CLOEXEC != 0
	}
	if closes() {
		t.Fatal("the control is off: a duplicate is closed by itself")
	}
	f := inherited(fd, "job")
	defer f.Close()
	if !closes() {
		t.Error("it stays open in children")
	}
}

// TestStopRequests: Ctrl-C that came before anybody listened is not lost, and
// nothing is made up.
func TestStopRequests(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c, forget := stopRequests(ctx)
	forget()
	if len(c) != 0 {
		t.Errorf("a request to stop from nowhere: %v", <-c)
	}
	cancel()
	c, forget = stopRequests(ctx)
	defer forget()
	if len(c) != 1 || <-c != syscall.SIGTERM {
		t.Error("the request to stop is lost")
	}
}
