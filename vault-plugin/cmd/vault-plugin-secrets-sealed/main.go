// Command vault-plugin-secrets-sealed is the Sealed secrets engine as a Vault
// plug-in. Vault starts it; run by hand it can only tell its version.
//
// It keeps nothing of the environment it inherits from Vault but the names that
// Vault and go-plugin use to talk to it: it starts itself again without the
// rest, so that neither its own libraries nor /proc shows them, and it dies
// without printing a stack, which could hold a value (F19).
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/sdk/helper/pluginutil"
	"github.com/hashicorp/vault/sdk/plugin"

	"sealed.dev/sealed/internal/sealed"
	opabundle "sealed.dev/sealed/opa-bundle"
	vaultplugin "sealed.dev/sealed/vault-plugin"
)

func main() {
	debug.SetTraceback("none")
	followHeap(0) // values are wiped by their owners, not by the collector
	if len(os.Args) == 2 && (os.Args[1] == "-version" || os.Args[1] == "--version") {
		fmt.Println(vaultplugin.Version)
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "vault-plugin-secrets-sealed:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) > 1 {
		return errors.New("takes no arguments but -version; Vault starts this program")
	}
	if env, changed := scrub(os.Environ()); changed {
		return restart(env)
	}
	return plugin.ServeMultiplex(&plugin.ServeOpts{
		BackendFactoryFunc: vaultplugin.Factory(vaultplugin.Deps{OpenBundle: openBundle, OpenSource: openSource, OpenHelped: openHelped}),
		TLSProviderFunc:    requireAutoMTLS,
		Logger:             hclog.New(&hclog.LoggerOptions{Level: hclog.Info, Output: os.Stderr, JSONFormat: true}),
	})
}

// restart replaces this process by itself with another environment. On Linux
// it executes the very file that runs, which Vault has checked, whatever its
// path names by now.
func restart(env []string) error {
	exe := "/proc/self/exe"
	if runtime.GOOS != "linux" {
		var err error
		if exe, err = os.Executable(); err != nil {
			return fmt.Errorf("finding this program: %w", err)
		}
	}
	return fmt.Errorf("starting again: %w", execve(exe, os.Args, env))
}

// requireAutoMTLS refuses a Vault so old (before 1.12) that it would not
// encrypt the connection to its plug-ins by itself.
func requireAutoMTLS() (*tls.Config, error) {
	if os.Getenv(pluginutil.PluginAutoMTLSEnv) == "true" || os.Getenv(pluginutil.PluginMetadataModeEnv) == "true" {
		return nil, nil
	}
	return nil, errors.New("this Vault does not use mutual TLS with its plug-ins; 1.12 or newer does")
}

func openBundle(ctx context.Context, raw []byte, keys map[string]string) (vaultplugin.Bundle, error) {
	b, err := opabundle.Open(ctx, raw, opabundle.Options{Keys: keys})
	if err != nil {
		return nil, err
	}
	return bundle{b}, nil
}

// A bundle is an opened one whose DecideAll speaks the engine's types.
type bundle struct{ *opabundle.Bundle }

// DecideAll implements vaultplugin.BatchBundle.
func (b bundle) DecideAll(ctx context.Context, shared sealed.Input, uses []vaultplugin.Use, at time.Time) []sealed.Decision {
	asked := make([]opabundle.Use, len(uses))
	for i, u := range uses {
		asked[i] = opabundle.Use(u)
	}
	return b.Bundle.DecideAll(ctx, shared, asked, at)
}
