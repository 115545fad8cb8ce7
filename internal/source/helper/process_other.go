//go:build !linux

package helper

import "syscall"

// dieWithUs leaves it to the process to notice that the engine is gone.
func dieWithUs() *syscall.SysProcAttr { return nil }
