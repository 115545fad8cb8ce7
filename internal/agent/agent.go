// Package agent knows the coding agents that Sealed ships definitions for, and
// how to recognize an agent by its executable.
//
// An agent definition (sealed.AgentDefinition) lives in the engine. This
// package makes one: the digests from a program on this machine, and the
// variables that point a known agent at the proxy of its sandbox.
//
// # Guarantee
//
// A digest is the plain SHA-256 of one file, the one that execve would open:
// symbolic links are followed, as sealed-init follows them when it measures.
//
// # What it does not guarantee
//
// The digest of a script says nothing about its interpreter and the files that
// it loads. Measure says so, and finds the native program behind a launcher
// script of an npm package where there is one. What is measured here is what
// this machine has: that it is the vendor's is for the caller to know.
package agent

import (
	"maps"
	"slices"

	"sealed.dev/sealed/internal/sealed"
)

// Names of the agents that have a preset.
const (
	ClaudeCode = sealed.Name("claude-code")
	Codex      = sealed.Name("codex")
	Gemini     = sealed.Name("gemini")
)

// presets are the variables of each known agent. Each takes its key from the
// placeholder and its address from the base-URL endpoint of that key, so the
// agent never holds a value. What would phone home, or start a sandbox in the
// sandbox, is switched off.
func presets() map[sealed.Name]map[string]string {
	return map[sealed.Name]map[string]string{
		ClaudeCode: {
			"ANTHROPIC_BASE_URL":                       "{base:ANTHROPIC_API_KEY}",
			"ANTHROPIC_API_KEY":                        "{placeholder:ANTHROPIC_API_KEY}",
			"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
			"DISABLE_TELEMETRY":                        "1",
			"DISABLE_AUTOUPDATER":                      "1",
			"IS_SANDBOX":                               "1",
		},
		Codex: {
			"OPENAI_BASE_URL": "{base:OPENAI_API_KEY}/v1",
			"OPENAI_API_KEY":  "{placeholder:OPENAI_API_KEY}",
		},
		Gemini: {
			"GOOGLE_GEMINI_BASE_URL":     "{base:GEMINI_API_KEY}",
			"GEMINI_API_KEY":             "{placeholder:GEMINI_API_KEY}",
			"GEMINI_CLI_TRUST_WORKSPACE": "true",
			"GEMINI_SANDBOX":             "false",
		},
	}
}

// Preset returns the variables of a known agent, a copy. ok is false for any
// other.
func Preset(name sealed.Name) (env map[string]string, ok bool) {
	env, ok = presets()[name]
	return env, ok
}

// Presets returns the names of the known agents, sorted.
func Presets() []sealed.Name { return slices.Sorted(maps.Keys(presets())) }
