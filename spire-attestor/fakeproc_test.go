package spireattestor

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fakeProc is a procfs made of directories under testdata/proc. Each attack
// has up to three stages (registration, attestation, midway), each holding only
// the files that differ; what a stage lacks comes from the earlier ones, in
// the end from base. Magic links, which no file can fake, are lines of the
// file "facts": a name and the facts of the inode behind it, or EACCES. A file that reads
// ENOENT does not exist.
type fakeProc struct {
	t  *testing.T
	mu sync.Mutex
	// layers, latest first
	layers []string
	// midway is entered when exe has been opened.
	midway string
}

func newFakeProc(t *testing.T) *fakeProc {
	return &fakeProc{t: t, layers: []string{filepath.Join("testdata", "proc", "base")}}
}

// enter adds a stage if the attack has it.
func (f *fakeProc) enter(dir string) {
	if _, err := os.Stat(dir); err == nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.layers = slices.Insert(f.layers, 0, dir)
	}
}

func (f *fakeProc) read(name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, dir := range f.layers {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil && string(data) == "ENOENT" {
			return nil, fs.ErrNotExist
		}
		if err == nil {
			return data, nil
		}
	}
	return nil, fs.ErrNotExist
}

func (f *fakeProc) PIDs() ([]int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var pids []int
	for _, dir := range f.layers {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if pid, err := strconv.Atoi(e.Name()); err == nil && !slices.Contains(pids, pid) {
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

func (f *fakeProc) BootID() (string, error) {
	b, err := f.read("boot_id")
	return strings.TrimSpace(string(b)), err
}

func (f *fakeProc) OwnPIDNamespace() (uint64, error) {
	b, err := f.read("own_ns")
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
}

func (f *fakeProc) Process(pid int) (process, error) {
	if _, err := f.read(fmt.Sprintf("%d/facts", pid)); err != nil {
		return nil, err
	}
	return fakeProcess{f, strconv.Itoa(pid)}, nil
}

// trusted stands in for statTrusted.
func (f *fakeProc) trusted(string, uint32) (facts, error) {
	b, err := f.read("trust")
	if err != nil {
		return facts{}, err
	}
	return parseFacts(f.t, strings.Fields(string(b))), nil
}

type fakeProcess struct {
	f   *fakeProc
	pid string
}

func (p fakeProcess) Read(name string) ([]byte, error) { return p.f.read(p.pid + "/" + name) }

func (p fakeProcess) Stat(name string) (facts, error) {
	b, err := p.Read("facts")
	if err != nil {
		return facts{}, err
	}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 0 && fields[0] == name {
			if slices.Contains(fields, "EACCES") {
				return facts{}, fs.ErrPermission
			}
			return parseFacts(p.f.t, fields[1:]), nil
		}
	}
	return facts{}, fs.ErrNotExist
}

func (p fakeProcess) Open(name string) (object, error) {
	content, err := p.Read(name)
	if err != nil {
		return nil, err
	}
	f, err := p.Stat(name)
	if err != nil {
		return nil, err
	}
	f.Size = int64(len(content))
	if p.f.midway != "" {
		p.f.enter(p.f.midway)
	}
	return fakeObject{bytes.NewReader(content), f}, nil
}

func (p fakeProcess) Close() error { return nil }

type fakeObject struct {
	io.Reader
	f facts
}

func (o fakeObject) Facts() (facts, error) { return o.f, nil }
func (o fakeObject) Close() error          { return nil }

func parseFacts(t *testing.T, words []string) facts {
	t.Helper()
	f := facts{LocalFS: true}
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		base := 10
		if key == "mode" {
			base = 8
		}
		n, err := strconv.ParseUint(value, base, 64)
		if err != nil {
			t.Fatalf("fact %q: %v", w, err)
		}
		switch key {
		case "mode":
			f.Mode |= fs.FileMode(n)
		case "uid":
			f.UID = uint32(n)
		case "dev":
			f.Dev = n
		case "ino":
			f.Ino = n
		case "nlink":
			f.Nlink = n
		case "fuse":
			f.LocalFS = false
		case "dir":
			f.Mode |= fs.ModeDir
		default:
			t.Fatalf("unknown fact %q", w)
		}
	}
	return f
}

// fakePin never exits by itself.
type fakePin struct {
	gone chan struct{}
	once *sync.Once
}

func newFakePin() fakePin { return fakePin{make(chan struct{}), new(sync.Once)} }

func (p fakePin) Gone() <-chan struct{} { return p.gone }

func (p fakePin) Alive() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}

func (p fakePin) Close() error { p.once.Do(func() { close(p.gone) }); return nil }
