package sealed

import "time"

// A Claim is what sealed-init says when it asks for its run. It is signed
// twice: by the SVID key (an attested init of this agent kind) and by the new
// run key (proof of possession). The ticket ties it to one run.
type Claim struct {
	Run         RunID       `json:"run"`
	Ticket      string      `json:"ticket"`
	RunKey      string      `json:"run_key"`  // Ed25519 public key, base64 std
	HPKEKey     string      `json:"hpke_key"` // HPKE public key (see package secret), base64 std
	Nonce       string      `json:"nonce"`    // 32 bytes, base64 std; echoed in the signed answer
	Measurement Measurement `json:"measurement"`
}

// A Measurement is what init found in its own sandbox before it started
// anything. The engine compares it with the manifest.
type Measurement struct {
	InitVersion     string   `json:"init_version"`
	ExeDigest       string   `json:"exe_digest"` // plain SHA-256 of the agent's executable, hex
	CommandDigest   Digest   `json:"command_digest"`
	InputDigest     Digest   `json:"input_digest,omitempty"`
	WorkspaceDigest Digest   `json:"workspace_digest,omitempty"`
	TrustDigest     Digest   `json:"trust_digest"`
	Backend         string   `json:"backend"`
	PID             int      `json:"pid"`               // 1
	UID             int      `json:"uid"`               // inside the sandbox
	UIDMap          string   `json:"uid_map"`           // the one line of /proc/self/uid_map
	Interfaces      []string `json:"interfaces"`        // network interfaces; ["lo"]
	CapEff          string   `json:"cap_eff"`           // hex, all zero
	CapBnd          string   `json:"cap_bnd"`           // hex, all zero
	NoNewPrivs      bool     `json:"no_new_privs"`      // true
	Seccomp         int      `json:"seccomp"`           // 2 once the filter is in
	RootReadOnly    bool     `json:"root_read_only"`    // nothing but workspace, home and tmp is writable
	Writable        []string `json:"writable"`          // mount points that are writable
	Interactive     bool     `json:"interactive"`       // a PTY
	Environ         []string `json:"environ,omitempty"` // names found in init's environment
}

// A ClaimRequest carries the claim over the wire. ClaimPayload is the exact
// JSON that both signatures cover, in DomainClaim.
type ClaimRequest struct {
	Payload       string   `json:"payload"`
	SVID          []string `json:"svid"`           // DER certificates, leaf first, base64 std
	SVIDSignature string   `json:"svid_signature"` // ASN.1 ECDSA with SHA-256 over SigningBytes, base64 std
	RunSignature  string   `json:"run_signature"`  // Ed25519 over SigningBytes, base64 std
}

// A ClaimAnswer is signed by the engine's answer key in DomainAnswer. Init
// obeys it and nothing the launcher said.
type ClaimAnswer struct {
	Run            RunID  `json:"run"`
	Nonce          string `json:"nonce"` // that of the claim
	Tenant         Name   `json:"tenant"`
	Agent          Name   `json:"agent"`
	SPIFFEID       string `json:"spiffe_id"`
	Isolation      string `json:"isolation"`
	Assurance      string `json:"assurance"`
	ManifestDigest Digest `json:"manifest_digest"`
	// DefinitionDigest is that of the agent definition the executable matched.
	DefinitionDigest Digest            `json:"definition_digest"`
	CommandDigest    Digest            `json:"command_digest"`
	InputDigest      Digest            `json:"input_digest,omitempty"`
	Env              map[string]string `json:"env,omitempty"` // knobs of the profile
	AgentEnv         map[string]string `json:"agent_env,omitempty"`
	Keys             []ClaimKey        `json:"keys,omitempty"`
	Network          string            `json:"network"`
	Allow            []string          `json:"allow,omitempty"`
	WallTime         Duration          `json:"wall_time"`
	Bundle           BundleRef         `json:"bundle"`
	Epoch            uint64            `json:"epoch"`
	Checkpoint       string            `json:"checkpoint"` // signed note, at or after the claim's entry
	Time             time.Time         `json:"time"`
	FreezeAfter      Duration          `json:"freeze_after"`     // out of contact: freeze the proxy
	StopAfter        Duration          `json:"stop_after"`       // out of contact: stop the run
	Detect           []string          `json:"detect,omitempty"` // of DetectKinds: what the second look at the output looks for, too
	Warnings         []string          `json:"warnings,omitempty"`
}

// DetectKinds are the kinds of detectors that a mount's configuration may
// switch on: shapes of credentials that nobody registered, and of structured
// personal data.
var DetectKinds = []string{"credentials", "personal-data"}

// A ClaimKey tells init about one key: what may be fetched at once and what
// waits for a person.
type ClaimKey struct {
	Name     KeyName    `json:"name"`
	Effect   Effect     `json:"effect"`
	Reasons  []Reason   `json:"reasons,omitempty"`
	Delivery Delivery   `json:"delivery"`
	Bindings []Binding  `json:"bindings,omitempty"`
	Approval ApprovalID `json:"approval,omitempty"`
}

// An AgentDefinition says how to recognise an agent and how to start it so
// that it talks to init's proxy. In AgentEnv values, {proxy} stands for
// http://127.0.0.1:PORT, {ca} for the path of the run's CA file in the sandbox,
// {base:KEY} for the base-URL endpoint of KEY's first binding, {placeholder:KEY}
// for the run's placeholder of KEY. A KEY that the run lacks is left as it is.
type AgentDefinition struct {
	Name      Name              `json:"name"`
	Version   int               `json:"version"` // check-and-set, as in Profile
	Digests   []string          `json:"digests,omitempty"`
	AnyBinary bool              `json:"any_binary,omitempty"` // recognise by name only; the record says so
	AgentEnv  map[string]string `json:"agent_env,omitempty"`
}

// ParseAgentDefinition decodes and validates an agent definition.
func ParseAgentDefinition(data []byte) (AgentDefinition, error) {
	var a AgentDefinition
	if err := Decode(data, 64<<10, &a); err != nil {
		return a, err
	}
	if _, err := ParseName("name", string(a.Name)); err != nil {
		return a, err
	}
	if len(a.Digests) == 0 && !a.AnyBinary {
		return a, fieldErr("digests", "wants at least one SHA-256, or any_binary")
	}
	for _, d := range a.Digests {
		if err := Digest(d).Validate("digests"); err != nil {
			return a, err
		}
	}
	for name, v := range a.AgentEnv {
		if name == "" || len(name) > 128 || len(v) > 4096 || hasAny(name, "= \x00\n") || hasAny(v, "\x00") {
			return a, fieldErr("agent_env", "malformed variable")
		}
		if hasPrefixAny(name, "LD_", "GODEBUG", "DYLD_") {
			return a, fieldErr("agent_env."+name, "loader variables may not be set")
		}
	}
	return a, nil
}
