// Command sealed-init is process 1 of a Sealed sandbox. It is started by
// supervise through the sandbox driver, never by hand: it takes no arguments,
// no environment, and everything it needs as inherited descriptors.
package main

import (
	"os"

	"sealed.dev/sealed/internal/sandboxinit"
)

func main() { os.Exit(sandboxinit.Main(os.Environ(), os.Stdout, os.Stderr)) }
