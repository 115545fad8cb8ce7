package devstack

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// vaultKeys is private/vault-keys.json. It is what makes this a development
// stack: see the package comment.
type vaultKeys struct {
	UnsealKey vaultclient.Token `json:"unseal_key"`
	RootToken vaultclient.Token `json:"root_token"`
}

// startVault leaves b.root, a client with the root token of an unsealed,
// active Vault.
func (b *bringUp) startVault(ctx context.Context) error {
	client, err := vaultclient.New(b.state.VaultAddr, b.ca.pem, "")
	if err != nil {
		return err
	}
	if !b.running("vault") {
		if err := b.clear(ctx, "vault"); err != nil {
			return err
		}
		if err := b.writeVaultConfig(); err != nil {
			return err
		}
		err := b.start(ctx, "vault", []string{b.vault.Path, "server", "-config=" + b.l.private("vault.json")}, func(ctx context.Context) error {
			_, err := client.Sys(ctx, http.MethodGet, "sys/seal-status", nil)
			return err
		})
		if err != nil {
			return err
		}
	}
	keys, err := b.initVault(ctx, client)
	if err != nil {
		return err
	}
	if err := b.unseal(ctx, client, keys); err != nil {
		return err
	}
	b.root, err = client.WithToken(string(keys.RootToken))
	return err
}

func (b *bringUp) writeVaultConfig() error {
	storage := map[string]any{"raft": map[string]any{
		"path": b.l.private("raft"), "node_id": "dev", "performance_multiplier": "1",
	}}
	if b.cfg.InMemory {
		storage = map[string]any{"inmem": map[string]any{}}
	}
	cfg := map[string]any{
		"storage": storage,
		"listener": []any{map[string]any{"tcp": map[string]any{
			"address":       strings.TrimPrefix(b.state.VaultAddr, "https://"),
			"tls_cert_file": b.l.private("vault-cert.pem"), "tls_key_file": b.l.private("vault-key.pem"),
			"tls_min_version": "tls13", "tls_disable_client_certs": true,
		}}},
		"api_addr": b.state.VaultAddr, "cluster_addr": b.state.ClusterAddr,
		"plugin_directory": b.l.private("plugins"),
		// As Vault recommends for raft, whose memory-mapped file would be locked too.
		"disable_mlock": true,
		"ui":            false,
		"log_level":     "info",
	}
	out, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding Vault's configuration: %w", err)
	}
	return writeFile(b.l.private("vault.json"), out, 0o600)
}

// initVault initializes Vault with one share and stores it, or reads the
// stored one.
func (b *bringUp) initVault(ctx context.Context, client *vaultclient.Client) (vaultKeys, error) {
	status, err := client.Sys(ctx, http.MethodGet, "sys/seal-status", nil)
	if err != nil {
		return vaultKeys{}, err
	}
	if done, _ := status["initialized"].(bool); done {
		return readVaultKeys(b.l)
	}
	b.cfg.progress("initializing Vault", 0, 0)
	out, err := client.Sys(ctx, http.MethodPut, "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1})
	if err != nil {
		return vaultKeys{}, err
	}
	shares, _ := out["keys_base64"].([]any)
	token, _ := out["root_token"].(string)
	if len(shares) != 1 || token == "" {
		return vaultKeys{}, errors.New("initializing Vault: no key in the answer")
	}
	key, _ := shares[0].(string)
	doc, err := json.Marshal(map[string]string{"unseal_key": key, "root_token": token})
	if err != nil {
		return vaultKeys{}, fmt.Errorf("encoding Vault's keys: %w", err)
	}
	return vaultKeys{UnsealKey: vaultclient.Token(key), RootToken: vaultclient.Token(token)}, writeFile(b.l.private("vault-keys.json"), doc, 0o600)
}

func readVaultKeys(l layout) (vaultKeys, error) {
	var keys vaultKeys
	data, err := os.ReadFile(l.private("vault-keys.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return keys, fmt.Errorf("reading Vault's keys: they are gone; remove the stack and start anew: %w", sealed.ErrNotFound)
	}
	if err != nil {
		return keys, fmt.Errorf("reading Vault's keys: %w", err)
	}
	return keys, sealed.Decode(data, 64<<10, &keys)
}

// unseal unseals, and waits until the node is active.
func (b *bringUp) unseal(ctx context.Context, client *vaultclient.Client, keys vaultKeys) error {
	status, err := client.Sys(ctx, http.MethodPut, "sys/unseal", map[string]any{"key": string(keys.UnsealKey)})
	if err != nil {
		return err
	}
	if still, _ := status["sealed"].(bool); still {
		return errors.New("unsealing Vault: the stored key does not fit")
	}
	return poll(ctx, startLimit, func(ctx context.Context) error {
		_, err := client.Sys(ctx, http.MethodGet, "sys/health", nil)
		return err
	})
}
