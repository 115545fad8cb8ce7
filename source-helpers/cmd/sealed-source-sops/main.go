// Command sealed-source-sops is the helper process of the sources of type
// sops. The Sealed secrets engine starts it; see package helper for how, and
// package sops for what it does.
package main

import (
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source/helper"
	"sealed.dev/sealed/source-helpers/sops"
)

func main() {
	helper.Serve(func(cfg sealed.SourceConfig, root string, credential *secret.Value) (helper.Source, error) {
		s, err := sops.Open(cfg, root, credential)
		if err != nil {
			return nil, err
		}
		return s, nil
	})
}
