package spireattestor

import (
	"io/fs"
	"time"
)

// The hooks below switch one control off, so that a security test can show
// that it fails without it.

// BlindToSiblings makes the attestor see no process but pid.
func (a *Attestor) BlindToSiblings(pid int) { a.proc = onlyPID{a.proc, pid} }

type onlyPID struct {
	procfs
	pid int
}

func (p onlyPID) PIDs() ([]int, error) { return []int{p.pid}, nil }

// BlindToExe shows every executable as root's with mode 0711; the real mode
// and owner are not seen.
func (a *Attestor) BlindToExe() { a.proc = anyExe{a.proc} }

type anyExe struct{ procfs }

func (p anyExe) Process(pid int) (process, error) {
	proc, err := p.procfs.Process(pid)
	return anyExeProcess{proc}, err
}

type anyExeProcess struct{ process }

func (p anyExeProcess) Open(name string) (object, error) {
	o, err := p.process.Open(name)
	return anyExeObject{o}, err
}

func (p anyExeProcess) Stat(name string) (facts, error) {
	f, err := p.process.Stat(name)
	if name == "environ" {
		f.UID = 0
	}
	return f, err
}

type anyExeObject struct{ object }

func (o anyExeObject) Facts() (facts, error) {
	f, err := o.object.Facts()
	f.Mode, f.UID = fs.FileMode(0o711), 0
	return f, err
}

// BlindToTrustFD shows the trust file behind every descriptor.
func (a *Attestor) BlindToTrustFD(path string) { a.proc = anyFD{a.proc, path} }

type anyFD struct {
	procfs
	path string
}

func (p anyFD) Process(pid int) (process, error) {
	proc, err := p.procfs.Process(pid)
	return anyFDProcess{proc, p.path}, err
}

type anyFDProcess struct {
	process
	path string
}

func (p anyFDProcess) Stat(name string) (facts, error) {
	if name == "fd/5" {
		return statTrusted(p.path, 0)
	}
	return p.process.Stat(name)
}

// Registered reports whether a descriptor exists.
func (a *Attestor) Registered(pid int) bool { return a.lookup(pid) != nil }

// SetSettle shortens the wait for a sandbox's set-up.
func (a *Attestor) SetSettle(d time.Duration) { a.settle = d }
