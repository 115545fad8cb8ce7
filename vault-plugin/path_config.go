package vaultplugin

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

func (b *backend) pathConfig() []*framework.Path {
	return []*framework.Path{{
		Pattern:      "config/?",
		DisplayAttrs: display("config"),
		Fields: map[string]*framework.FieldSchema{
			"tenant":            {Type: framework.TypeString, Description: "The tenant of this mount. Fixed at first write."},
			"trust_domain":      {Type: framework.TypeString, Description: "SPIFFE trust domain of the agents. Fixed at first write."},
			"allow_embedded":    {Type: framework.TypeBool, Description: "Accept the embedded authority of one machine. Only at first write."},
			"agent_accessor":    {Type: framework.TypeString, Description: "Accessor of the auth/jwt mount that agents log in by."},
			"claims_accessor":   {Type: framework.TypeStringSlice, Description: "Accessors of auth mounts whose alias metadata are a requester's claims."},
			"person_claim":      {Type: framework.TypeString, Description: "Metadata key that names the human behind an entity. Empty: the entity is the person."},
			"source_helpers":    {Type: framework.TypeKVPairs, Description: "Helper programs of sources, beside the plug-in: type of source = SHA-256, hex."},
			"sops_root":         {Type: framework.TypeString, Description: "Directory on this host, absolute: the only one that SOPS files are read from."},
			"detect":            {Type: framework.TypeStringSlice, Description: "Kinds of detectors that look at what runs have printed before it is stored: credentials, personal-data (default none)."},
			"freeze_after":      {Type: framework.TypeString, Description: "Out of contact for this long, a run's proxy freezes (default 5s)."},
			"stop_after":        {Type: framework.TypeString, Description: "Out of contact for this long, a run stops (default 60s)."},
			"silent_after":      {Type: framework.TypeString, Description: "A run silent for this long is closed by the engine (default 15s)."},
			"unconfirmed_after": {Type: framework.TypeString, Description: "A grant not confirmed for this long is revoked (default 10s)."},
			"second_person":     {Type: framework.TypeBool, Description: "Whether a change that widens waits for a second person (default true). False only at first write; later it takes a second person."},
			"proposals_expire":  {Type: framework.TypeString, Description: "A change that waits for a second person is dropped after this time (default 168h, 7 days)."},
			"keep_runs":         {Type: framework.TypeString, Description: "What lists and runs/<id> show of an ended run is deleted after this time (default 2160h, 90 days). Log and record stay."},
		},
		Operations: map[logical.Operation]framework.OperationHandler{
			logical.ReadOperation:   b.op("Read the configuration and the public keys.", b.configRead),
			logical.UpdateOperation: b.op("Write the configuration; the first write makes the mount's keys.", b.configWrite),
		},
		HelpSynopsis: "Configure the mount: its tenant, its trust domain, who is who, and time limits.",
		HelpDescription: "Fields that are not given keep their value. The private keys of the mount are made here and never shown. " +
			"After the first write a change that widens waits for a second person (proposals/config).",
	}}
}

func (b *backend) configRead(ctx context.Context, req *logical.Request, _ *framework.FieldData) (map[string]any, error) {
	cfg, err := b.config(ctx, req.Storage)
	if errors.Is(err, sealed.ErrUnavailable) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	keys, err := b.engineKeys(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"tenant": string(cfg.Tenant), "trust_domain": cfg.TrustDomain, "allow_embedded": cfg.AllowEmbedded,
		"agent_accessor": cfg.AgentAccessor, "claims_accessor": cfg.ClaimsAccessor, "person_claim": cfg.PersonClaim,
		"source_helpers": cfg.SourceHelpers, "sops_root": cfg.SOPSRoot,
		"freeze_after": cfg.FreezeAfter.Std().String(), "stop_after": cfg.StopAfter.Std().String(),
		"silent_after": cfg.SilentAfter.Std().String(), "unconfirmed_after": cfg.UnconfirmedAfter.Std().String(),
		"detect":        cfg.Detect,
		"keep_runs":     cfg.keepFor().String(),
		"second_person": !cfg.SecondPersonOff, "proposals_expire": cfg.proposalsLast().String(),
		"answer_key": keys.answerPublic, "log_key": keys.logVerifier,
	}, nil
}

func (b *backend) configWrite(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	return b.putConfig(ctx, req, func(cfg *engineConfig) error { return applyConfig(cfg, d) }, nil)
}

// putConfig makes the keys first, because the log needs one; then it logs,
// then it writes. Interrupted anywhere, the same write can be made again.
func (b *backend) putConfig(ctx context.Context, req *logical.Request, change func(*engineConfig) error, yes *consent) (map[string]any, error) {
	defer b.locks.lock("config")()
	old := defaultConfig()
	exists, err := get(ctx, req.Storage, storeConfig, &old)
	if err != nil {
		return nil, err
	}
	cfg := old
	cfg.ClaimsAccessor = slices.Clone(old.ClaimsAccessor)
	if err := change(&cfg); err != nil {
		return nil, err
	}
	if exists {
		if err := fixedFields(old, cfg); err != nil {
			return nil, err
		}
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if exists {
		w := widening{kind: sealed.ProposalConfig, before: textOf(old), after: textOf(cfg), widens: configWidens(old, cfg)}
		if answer, err := b.gate(ctx, req, w, yes); answer != nil || err != nil {
			return answer, err
		}
	} else if err := b.firstConfig(ctx, req.Storage, cfg.Tenant); err != nil {
		return nil, err
	}
	if err := b.change(ctx, req, "config.changed", yes.sign(map[string]any{"fields": changedFields(old, cfg)})); err != nil {
		return nil, err
	}
	defer b.nouns.sources.drop() // they know their helpers
	defer b.nouns.config.drop()
	if err := put(ctx, req.Storage, storeConfig, cfg); err != nil {
		return nil, err
	}
	keys, err := b.engineKeys(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	return map[string]any{"answer_key": keys.answerPublic, "log_key": keys.logVerifier}, nil
}

// firstConfig makes what a mount has from its first configuration on.
func (b *backend) firstConfig(ctx context.Context, s logical.Storage, tenant sealed.Name) error {
	if err := b.makeKeys(ctx, s, tenant); err != nil {
		return err
	}
	return put(ctx, s, storeVersion, versionRow{Version: storageVersion})
}

func applyConfig(cfg *engineConfig, d *framework.FieldData) error {
	for field, to := range map[string]*string{"trust_domain": &cfg.TrustDomain, "agent_accessor": &cfg.AgentAccessor, "person_claim": &cfg.PersonClaim, "sops_root": &cfg.SOPSRoot} {
		if v, ok := d.GetOk(field); ok {
			*to = v.(string)
		}
	}
	if v, ok := d.GetOk("tenant"); ok {
		cfg.Tenant = sealed.Name(v.(string))
	}
	if v, ok := d.GetOk("allow_embedded"); ok {
		cfg.AllowEmbedded = v.(bool)
	}
	if v, ok := d.GetOk("second_person"); ok {
		cfg.SecondPersonOff = !v.(bool)
	}
	if v, ok := d.GetOk("source_helpers"); ok {
		cfg.SourceHelpers = v.(map[string]string)
	}
	if v, ok := d.GetOk("claims_accessor"); ok {
		cfg.ClaimsAccessor = v.([]string)
	}
	if v, ok := d.GetOk("detect"); ok {
		cfg.Detect = v.([]string)
	}
	for field, to := range map[string]*sealed.Duration{
		"freeze_after": &cfg.FreezeAfter, "stop_after": &cfg.StopAfter, "silent_after": &cfg.SilentAfter, "unconfirmed_after": &cfg.UnconfirmedAfter,
		"keep_runs": &cfg.KeepRuns, "proposals_expire": &cfg.ProposalsExpire,
	} {
		if v, ok := d.GetOk(field); ok {
			if err := to.UnmarshalText([]byte(v.(string))); err != nil {
				return invalid(field, "wants a duration such as 5s")
			}
		}
	}
	return nil
}

// fixedFields refuses to change what runs, keys and log are bound to.
func fixedFields(old, cfg engineConfig) error {
	switch {
	case cfg.Tenant != old.Tenant:
		return invalid("tenant", "can't be changed: one mount is one tenant")
	case cfg.TrustDomain != old.TrustDomain:
		return invalid("trust_domain", "can't be changed: make another mount")
	case cfg.AllowEmbedded != old.AllowEmbedded:
		return invalid("allow_embedded", "can only be set at first write")
	}
	return nil
}

// changedFields names the JSON fields in which two configurations differ.
func changedFields(a, b engineConfig) []string {
	out := []string{}
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			name, _, _ := strings.Cut(x.Type().Field(i).Tag.Get("json"), ",")
			out = append(out, name)
		}
	}
	return out
}
