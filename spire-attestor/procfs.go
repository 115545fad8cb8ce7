package spireattestor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// Bytes under /proc/<pid> have two authors. The kernel alone writes stat's
// numbers, status's Uid, NSpid, TracerPid and PPid, uid_map's translation, the
// ns links, the exe link and the fd links. The workload chooses comm (in stat
// between the parentheses, in status behind Name:), cmdline, environ and, for
// fd links, which file it opened. Nothing of the second kind is believed here.

// procfs is what the attestor needs of /proc.
type procfs interface {
	// Process pins the process that has this number now: if the process
	// exits, reads fail, even when the number is taken again.
	Process(pid int) (process, error)
	// PIDs lists thread-group leaders.
	PIDs() ([]int, error)
	// BootID is the kernel's random id of this boot.
	BootID() (string, error)
	// OwnPIDNamespace is the inode of the attestor's pid namespace.
	OwnPIDNamespace() (uint64, error)
}

// process reads one process's files, by name relative to /proc/<pid>.
type process interface {
	Read(name string) ([]byte, error)
	// Stat follows the kernel's magic links without opening their target.
	Stat(name string) (facts, error)
	Open(name string) (object, error)
	Close() error
}

// An object is an open file whose facts come from the descriptor.
type object interface {
	Facts() (facts, error)
	io.ReadCloser
}

// facts are what the kernel says about an inode.
type facts struct {
	Dev, Ino     uint64
	Mode         fs.FileMode
	UID          uint32
	Nlink        uint64
	Size         int64
	Mtime, Ctime int64 // ns since 1970
	// LocalFS: the file system keeps owner and content in this kernel. Where
	// it does not (FUSE, network), its server could show root's uid and the
	// genuine bytes to us, and other bytes to execve.
	LocalFS bool
}

// identity tells one life of a process from any other. A number, a namespace
// inode and even a pair of them recur (R13); start time and boot id do not.
type identity struct {
	PID       int
	Start     uint64 // clock ticks since boot
	Namespace uint64 // inode of ns/pid
	BootID    string
}

// procStatus is the part of /proc/<pid>/status that the kernel writes.
type procStatus struct {
	UIDs   [4]uint32 // real, effective, saved, file system
	NSpid  []int     // own number, outermost namespace first
	Tracer int
	PPid   int
}

var errProc = errors.New("unexpected procfs content")

// parseStart returns field 22 of /proc/<pid>/stat. Field 2 is the command name
// in parentheses, chosen by the workload, which may hold spaces and
// parentheses itself; so fields are counted after the last ')'.
func parseStart(stat []byte) (uint64, error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, fmt.Errorf("parsing stat: %w", errProc)
	}
	const startField = 22 - 3 // index after the name; the first is field 3
	fields := strings.Fields(string(stat[i+1:]))
	if len(fields) <= startField {
		return 0, fmt.Errorf("parsing stat: %w", errProc)
	}
	start, err := strconv.ParseUint(fields[startField], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parsing stat: %w", errProc)
	}
	return start, nil
}

// parseStatus reads the fields of status. The kernel escapes newlines in Name,
// so a workload cannot add a line; a field given twice is refused all the same.
func parseStatus(data []byte) (procStatus, error) {
	var s procStatus
	seen := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		var err error
		switch key {
		case "Uid":
			err = parseUIDs(value, &s.UIDs)
		case "NSpid":
			s.NSpid, err = parseInts(value)
		case "TracerPid":
			s.Tracer, err = strconv.Atoi(strings.TrimSpace(value))
		case "PPid":
			s.PPid, err = strconv.Atoi(strings.TrimSpace(value))
		default:
			continue
		}
		if err != nil || seen[key] {
			return procStatus{}, fmt.Errorf("parsing status %s: %w", key, errProc)
		}
		seen[key] = true
	}
	if len(seen) != 4 || len(s.NSpid) == 0 {
		return procStatus{}, fmt.Errorf("parsing status: %w", errProc)
	}
	return s, nil
}

func parseUIDs(value string, out *[4]uint32) error {
	fields := strings.Fields(value)
	if len(fields) != len(out) {
		return errProc
	}
	for i, f := range fields {
		n, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return errProc
		}
		out[i] = uint32(n)
	}
	return nil
}

func parseInts(value string) ([]int, error) {
	var out []int
	for _, f := range strings.Fields(value) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, errProc
		}
		out = append(out, n)
	}
	return out, nil
}

// An idRange is one line of uid_map, with the outside id already translated
// to the reader's namespace by the kernel.
type idRange struct{ Inside, Outside, Count uint32 }

func parseIDMap(data []byte) ([]idRange, error) {
	var out []idRange
	for line := range strings.Lines(string(data)) {
		var n [3]uint32
		fields := strings.Fields(line)
		if len(fields) != len(n) {
			return nil, fmt.Errorf("parsing uid_map: %w", errProc)
		}
		for i, f := range fields {
			v, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("parsing uid_map: %w", errProc)
			}
			n[i] = uint32(v)
		}
		out = append(out, idRange{n[0], n[1], n[2]})
	}
	return out, nil
}
