package demo

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// profileName is the demo's profile.
const profileName = sealed.ProfileName("demo/attacked")

// fill plays the administrator: three values, the agent, the profile.
func (s *show) fill(ctx context.Context) error {
	for _, key := range []string{"API_TOKEN", "ENV_TOKEN", "ADMIN_TOKEN"} {
		b := make([]byte, 24)
		if _, err := rand.Read(b); err != nil {
			return fmt.Errorf("making a value: %w", err)
		}
		s.values[key] = "demo_" + base64.RawURLEncoding.EncodeToString(b)
		if _, err := s.admin.PutSecret(ctx, "demo/"+key, []byte(s.values[key])); err != nil {
			return err
		}
	}
	digest, err := s.buildAgent(ctx)
	if err != nil {
		return err
	}
	if _, err := s.admin.WriteAgent(ctx, sealed.AgentDefinition{Name: "demo", Digests: []string{digest}}); err != nil {
		return err
	}
	key := func(path, host, risk string, delivery sealed.Delivery) sealed.KeySpec {
		k := sealed.KeySpec{Source: "builtin", Ref: sealed.KeyRef{Path: "demo/" + path}, Agents: []string{"demo"}, Risk: risk, Delivery: delivery,
			TTL: sealed.Duration(5 * time.Minute), MaxTTL: sealed.Duration(time.Hour)}
		if host != "" {
			k.Bindings = []sealed.Binding{{Host: host, Methods: []string{"GET"}, Paths: []string{"/v1/**"}}}
		}
		return k
	}
	_, err = s.admin.WriteProfile(ctx, sealed.Profile{
		Name: profileName, Level: sealed.LevelWorkflow, Owner: "demo", AllowedWorkflows: []string{"demo"},
		Requesters: sealed.Requesters{Groups: []string{"sealed-operators"}},
		Keys: map[sealed.KeyName]sealed.KeySpec{
			"API_TOKEN":   key("API_TOKEN", "api.demo.test", sealed.RiskLow, sealed.DeliveryProxy),
			"ENV_TOKEN":   key("ENV_TOKEN", "", sealed.RiskLow, sealed.DeliveryEnv),
			"ADMIN_TOKEN": key("ADMIN_TOKEN", "admin.demo.test", sealed.RiskHigh, sealed.DeliveryProxy),
		},
	})
	return err
}

// buildAgent builds the scripted agent into the workspace and returns its
// digest, by which the engine will recognise it.
func (s *show) buildAgent(ctx context.Context) (string, error) {
	ws := filepath.Join(s.dir, "workspace")
	if err := os.Mkdir(ws, 0o755); err != nil {
		return "", fmt.Errorf("making the workspace: %w", err)
	}
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(ws, "agent"), "./internal/demo/agent")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the demo's agent: %w: %s", err, out)
	}
	b, err := os.ReadFile(filepath.Join(ws, "agent"))
	if err != nil {
		return "", fmt.Errorf("reading the demo's agent: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// moduleRoot finds the directory of this repository, from here upwards.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the repository: %w", err)
	}
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && len(b) > 24 && string(b[:24]) == "module sealed.dev/sealed" {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("finding the repository: run this below it: %w", sealed.ErrNotFound)
		}
		dir = parent
	}
}
