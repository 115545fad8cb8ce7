package helper

import "syscall"

// dieWithUs makes the kernel kill the process with the engine.
func dieWithUs() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
