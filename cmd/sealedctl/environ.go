package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
)

// loose reports whether a variable makes Go's own runtime print or store what
// this program keeps to itself: with GODEBUG=http2debug=2 the HTTP client writes
// the header that holds the Vault token to stderr, with GOTRACEBACK=crash a core
// file holds it. Go reads both before main runs.
func loose(name, value string) bool {
	return name == "GODEBUG" && value != "" || name == "GOTRACEBACK" && value == "crash"
}

// clean returns an environment without the loose variables, and their names.
func clean(environ []string) (kept, dropped []string) {
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if loose(name, value) {
			dropped = append(dropped, name)
		} else {
			kept = append(kept, kv)
		}
	}
	return kept, dropped
}

// tighten replaces this process by itself without the loose variables, before
// anything was read or sent. It returns if there are none, or with the error.
func tighten(stderr io.Writer) error {
	kept, dropped := clean(os.Environ())
	if len(dropped) == 0 {
		return nil
	}
	_, _ = fmt.Fprintf(stderr, "sealedctl: goes on without %s: with it Go may print or store the Vault token\n", strings.Join(dropped, ", "))
	if err := syscall.Exec("/proc/self/exe", os.Args, kept); err != nil {
		return usagef("%s is set and can't be dropped here: unset it", strings.Join(dropped, ", "))
	}
	return nil
}

// inherited takes over a descriptor that the parent process left open, and
// keeps it from every process that this one starts.
func inherited(fd int, name string) *os.File {
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}
