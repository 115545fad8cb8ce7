package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/agent"
	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

func newAgentCmd(a *app) *cobra.Command {
	return group("agent", "Say which agents there are and how to recognize them",
		`An agent definition names the digests of an agent's executable and the variables
it is started with. A run pins the definition; sealed-init measures the program
before it starts it, and the engine compares.

  sealedctl agent create claude-code --preset --binary claude
  sealedctl agent list`,
		newAgentCreateCmd(a), newAgentListCmd(a), newAgentShowCmd(a), newAgentDeleteCmd(a))
}

type agentFlags struct {
	binaries, digests, env  []string
	anyBinary, preset, over bool
}

func newAgentCreateCmd(a *app) *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use: "create NAME (--binary PROGRAM | --digest SHA256 | --any-binary) [flags]", Short: "Create or, with --replace, change an agent definition",
		Args: cobra.ExactArgs(1),
		Long: `Create writes an agent definition. --binary measures a program of this machine;
links are followed, and behind the launcher script of an npm package the native
program is measured too. --preset adds what a known agent needs to talk to its
sandbox's proxy: ` + join(agent.Presets()) + `.

In values of --env, {proxy} is the proxy's address, {base:KEY} the base URL of
KEY's first binding, {placeholder:KEY} what stands for the value of KEY.

  sealedctl agent create claude-code --preset --binary claude
  sealedctl agent create bot --any-binary --env API_URL={base:BOT_TOKEN}`,
		ValidArgsFunction: cobra.FixedCompletions(texts(agent.Presets()), cobra.ShellCompDirectiveNoFileComp),
		RunE:              func(cmd *cobra.Command, args []string) error { return createAgent(cmd.Context(), a, f, args[0]) },
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&f.binaries, "binary", nil, "program to measure: a path, or a name in PATH (repeatable)")
	fl.StringArrayVar(&f.digests, "digest", nil, "SHA-256 of an executable, hex (repeatable)")
	fl.BoolVar(&f.anyBinary, "any-binary", false, "recognize by name only; every record says so")
	fl.StringArrayVar(&f.env, "env", nil, "NAME=VALUE for the agent; not secret (repeatable)")
	fl.BoolVar(&f.preset, "preset", false, "add the variables of a known agent")
	fl.BoolVar(&f.over, "replace", false, "change a definition that exists")
	return cmd
}

func createAgent(ctx context.Context, a *app, f agentFlags, name string) error {
	def, err := f.definition(a, sealed.Name(name))
	if err != nil {
		return err
	}
	doc, err := jsonOf(def)
	if err != nil {
		return err
	}
	if _, err := sealed.ParseAgentDefinition(doc); err != nil {
		return fmt.Errorf("creating agent: %w", err)
	}
	e, err := a.engine(ctx)
	if err != nil {
		return err
	}
	if f.over {
		old, err := e.Agent(ctx, def.Name)
		if err != nil && !errors.Is(err, sealed.ErrNotFound) {
			return err
		}
		def.Version = old.Version
	}
	version, err := e.WriteAgent(ctx, def)
	if errors.Is(err, sealed.ErrConflict) && !f.over {
		return &hintError{err: fmt.Errorf("creating agent %s: it exists: %w", name, sealed.ErrConflict), hint: "--replace changes it"}
	}
	if err != nil {
		return err
	}
	out := struct {
		Name    sealed.Name `json:"name"`
		Version int         `json:"version"`
	}{def.Name, version}
	return a.print(out, func(w io.Writer) { row(w, out.Name, "version", out.Version) })
}

func (f agentFlags) definition(a *app, name sealed.Name) (sealed.AgentDefinition, error) {
	def := sealed.AgentDefinition{Name: name, AnyBinary: f.anyBinary, Digests: f.digests, AgentEnv: map[string]string{}}
	if len(f.binaries) == 0 && len(f.digests) == 0 && !f.anyBinary {
		return def, usagef("agent create wants --binary, --digest or --any-binary")
	}
	if f.preset {
		env, ok := agent.Preset(name)
		if !ok {
			return def, usagef("there is no preset for %q: %s", name, join(agent.Presets()))
		}
		maps.Copy(def.AgentEnv, env)
	}
	for _, pair := range f.env {
		k, v, ok := strings.Cut(pair, "=")
		if !ok || k == "" {
			return def, usagef("--env wants NAME=VALUE")
		}
		def.AgentEnv[k] = v
	}
	for _, b := range f.binaries {
		found, err := agent.Measure(b, a.getenv("PATH"))
		if err != nil {
			return def, err
		}
		for _, x := range found {
			a.talk("measured %s %s", x.SHA256, x.Path)
			if x.Script {
				a.talk("warning: this is a script: its interpreter and what it loads are not measured; run the native program where there is one")
			}
			if !slices.Contains(def.Digests, x.SHA256) {
				def.Digests = append(def.Digests, x.SHA256)
			}
		}
	}
	return def, nil
}

func newAgentListCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List agent definitions", Args: cobra.NoArgs,
		Long: `List shows the names of the agents.

  sealedctl agent list`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			names, err := e.Agents(cmd.Context())
			if err != nil {
				return err
			}
			return a.names(names)
		},
	}
}

func newAgentShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show an agent definition", Args: cobra.ExactArgs(1),
		Long: `Show prints a definition and its digest, which runs pin.

  sealedctl agent show claude-code`,
		ValidArgsFunction: a.complete(agentNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			def, err := e.Agent(cmd.Context(), sealed.Name(args[0]))
			if err != nil {
				return err
			}
			return a.print(def, func(w io.Writer) {
				row(w, "name", def.Name)
				row(w, "version", def.Version)
				row(w, "digest", def.Digest)
				row(w, "any binary", yesNo(def.AnyBinary))
				for _, d := range def.Digests {
					row(w, "executable", d)
				}
				for _, name := range slices.Sorted(maps.Keys(def.AgentEnv)) {
					row(w, "env", name+"="+def.AgentEnv[name])
				}
			})
		},
	}
}

func newAgentDeleteCmd(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "delete NAME", Short: "Delete an agent definition", Args: cobra.ExactArgs(1),
		Long: `Delete removes a definition. New runs of the agent are refused; those that are
running go on until they end or are revoked.

  sealedctl agent delete bot`,
		ValidArgsFunction: a.complete(agentNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := a.engine(cmd.Context())
			if err != nil {
				return err
			}
			if err := a.sure("delete agent "+args[0]+"?", yes); err != nil {
				return err
			}
			if err := e.DeleteAgent(cmd.Context(), sealed.Name(args[0])); err != nil {
				return err
			}
			a.talk("deleted agent %s", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "don't ask")
	return cmd
}

func agentNames(ctx context.Context, e *vaultclient.Engine) ([]string, error) { return e.Agents(ctx) }

// texts converts names.
func texts[T ~string](in []T) []string {
	out := make([]string, len(in))
	for i, v := range in {
		out[i] = string(v)
	}
	return out
}
