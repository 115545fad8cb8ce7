// Command sealed-source-aws is the helper process of the sources of type
// aws-secrets-manager. The Sealed secrets engine starts it; see package helper
// for how, and package aws for what it does.
package main

import (
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/secret"
	"sealed.dev/sealed/internal/source/helper"
	"sealed.dev/sealed/source-helpers/aws"
)

func main() {
	helper.Serve(func(cfg sealed.SourceConfig, _ string, credential *secret.Value) (helper.Source, error) {
		s, err := aws.Open(cfg, credential)
		if err != nil {
			return nil, err
		}
		return s, nil
	})
}
