package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms"
	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/handler"
)

// A kmsDouble is a key management system that keeps keys in files. It is a
// double: it speaks the protocol of sigstore's plugins through sigstore's own
// handler.
type kmsDouble struct{ signature.SignerVerifier }

func (kmsDouble) CreateKey(context.Context, string) (crypto.PublicKey, error) {
	return nil, errors.New("no key is made here")
}
func (kmsDouble) CryptoSigner(context.Context, func(error)) (crypto.Signer, crypto.SignerOpts, error) {
	return nil, nil, errors.New("no key leaves this place")
}
func (kmsDouble) SupportedAlgorithms() []string { return []string{kmsDouble{}.DefaultAlgorithm()} }
func (kmsDouble) DefaultAlgorithm() string      { return "ecdsa-p256-sha256" }

// A liar signs with a key that is not the one it shows.
type liar struct{ kmsDouble }

func (l liar) PublicKey(...signature.PublicKeyOption) (crypto.PublicKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return key.Public(), nil
}

// kmsMain is the main of sigstore-kms-double and, lying, of sigstore-kms-liar.
func kmsMain(lies bool) {
	if err := serveKMS(lies); err != nil {
		_ = handler.WriteErrorResponse(os.Stdout, err)
		os.Exit(1)
	}
}

func serveKMS(lies bool) error {
	args, err := handler.GetPluginArgs(os.Args)
	if err != nil {
		return err
	}
	key, err := readSigningKey(args.InitOptions.KeyResourceID)
	if err != nil {
		return fmt.Errorf("no such key: %w", err)
	}
	sv, err := signature.LoadSignerVerifier(key, args.InitOptions.HashFunc)
	if err != nil {
		return err
	}
	var of kms.SignerVerifier = kmsDouble{sv}
	if lies {
		of = liar{kmsDouble{sv}}
	}
	resp, err := handler.Dispatch(io.Discard, os.Stdin, args, of)
	if err != nil {
		return err
	}
	return handler.WriteResponse(os.Stdout, resp)
}
