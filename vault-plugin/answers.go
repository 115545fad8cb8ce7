package vaultplugin

import (
	"net/http"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"
)

// What every operation answers, for path-help and OpenAPI. A value crosses the
// plugin edge as text, number, bool or list of text; a document is JSON in one
// text field.

// fields are the data of one answer, by name. Nil: there is no data, status 204.
type fields map[string]*framework.FieldSchema

// described attaches to each operation what it answers on success, and the check
// of the fields that it is given. An operation that the table does not name
// stays without an answer; a test refuses that.
func (b *backend) described(paths []*framework.Path) []*framework.Path {
	table := answers()
	for _, p := range paths {
		for op, handler := range p.Operations {
			o, ours := handler.(*framework.PathOperation)
			if !ours || p.DisplayAttrs == nil {
				continue
			}
			o.Callback = b.known(o.Callback)
			out, known := table[p.DisplayAttrs.OperationSuffix+" "+string(op)]
			if !known {
				continue
			}
			status, description := http.StatusOK, http.StatusText(http.StatusOK)
			if out == nil {
				status, description = http.StatusNoContent, "done"
			}
			o.Responses = map[int][]framework.Response{status: {{Description: description, Fields: out}}}
		}
	}
	return paths
}

func answers() map[string]fields {
	out := map[string]fields{}
	for _, part := range []map[string]fields{configAnswers(), catalogAnswers(), proposalAnswers(), stoppingAnswers(), runAnswers(), logAnswers()} {
		for name, f := range part {
			out[name] = f
		}
	}
	return out
}

func answered(t framework.FieldType, required bool, description string) *framework.FieldSchema {
	return &framework.FieldSchema{Type: t, Required: required, Description: description}
}

func shown(description string) *framework.FieldSchema {
	return answered(framework.TypeString, true, description)
}
func counted(description string) *framework.FieldSchema {
	return answered(framework.TypeInt, true, description)
}
func told(description string) *framework.FieldSchema {
	return answered(framework.TypeBool, true, description)
}
func named(description string) *framework.FieldSchema {
	return answered(framework.TypeStringSlice, true, description)
}
func sometimes(f *framework.FieldSchema) *framework.FieldSchema { f.Required = false; return f }

// signedAnswer is what init gets.
func signedAnswer() fields {
	return fields{"answer": shown("The answer, signed by the mount's answer key: one JSON document.")}
}

// listed is a list; Vault sends none of it when it is empty. info, which may be
// empty, says what is told about each item.
func listed(of, info string) fields {
	f := fields{"keys": sometimes(named(of))}
	if info != "" {
		f["key_info"] = sometimes(answered(framework.TypeMap, false, info))
	}
	return f
}

func configAnswers() map[string]fields {
	update, read := string(logical.UpdateOperation), string(logical.ReadOperation)
	publicKeys := fields{"answer_key": shown("Public key that answers are signed by."), "log_key": shown("Verifier key of the log, as signed notes spell it.")}
	return map[string]fields{
		"config " + update: orProposed(fields{"answer_key": sometimes(shown("Public key that answers are signed by.")), "log_key": sometimes(shown("Verifier key of the log."))}),
		"config " + read: {
			"tenant": shown("Tenant of this mount."), "trust_domain": shown("SPIFFE trust domain of the agents."), "allow_embedded": told("Whether the embedded authority is accepted."),
			"agent_accessor": shown("Accessor of the auth mount of agents."), "claims_accessor": sometimes(named("Accessors whose alias metadata are claims.")),
			"person_claim": shown("Metadata key that names the person."), "freeze_after": shown("Duration."), "stop_after": shown("Duration."),
			"detect":       sometimes(named("Kinds of detectors that look at what is stored.")),
			"silent_after": shown("Duration."), "unconfirmed_after": shown("Duration."), "keep_runs": shown("Duration."),
			"second_person": told("Whether a change that widens waits for a second person."), "proposals_expire": shown("Duration."),
			"sops_root": sometimes(shown("Directory of SOPS files.")), "source_helpers": sometimes(answered(framework.TypeMap, false, "Digests of the programs that reach other sources.")),
			"answer_key": publicKeys["answer_key"], "log_key": publicKeys["log_key"],
		},
		"trust-bundle " + update: orProposed(fields{}),
		"trust-bundle " + read: {
			"bundle": shown("SPIFFE bundle document."), "sequence": shown("Its sequence number."), "endpoint": shown("Where it is refreshed from; empty: pushed by hand."),
			"ca": shown("CA of the endpoint, PEM."), "refreshed_at": shown("RFC 3339."),
		},
		"policy-keys " + update: orProposed(fields{"version": sometimes(counted("Version of the set."))}),
		"policy-keys " + read:   {"keys": shown("JSON object: key id to PEM public key."), "version": counted("Version of the set.")},
		"attest-rollback " + read: {
			"rolled_back": told("Whether storage went back and nobody has attested it."),
			"given_up_to": sometimes(shown("Entries that were given up by the last attestation.")), "given_up_at": sometimes(shown("RFC 3339.")),
			"lost": sometimes(shown("The checkpoint that was lost.")), "restored": sometimes(shown("The checkpoint that was restored.")),
			"lost_size": sometimes(shown("Entries of the lost head.")), "restored_size": sometimes(shown("Entries of the restored head.")),
			"seen_at": sometimes(shown("RFC 3339.")), "seen_by": sometimes(shown("Who presented the proof.")),
		},
		"attest-rollback " + update: {"aborted": counted("Runs that were aborted.")},
		"policy " + read: {
			"digest": shown("Digest of the bundle in force; empty: none."), "sequence": shown("Its sequence."), "previous": shown("Digest of the one before."),
			"key_ids": sometimes(named("Ids of the trusted keys.")), "keys_version": counted("Version of the set of keys."),
			"expires": sometimes(shown("RFC 3339.")), "activated_at": sometimes(shown("RFC 3339.")),
			"overlay": sometimes(shown("Digest of the overlay; empty: one was lost, and is awaited.")), "overlay_sequence": sometimes(shown("Its sequence.")),
		},
		"policy " + update: {
			"digest": shown("Digest of the bundle."), "sequence": shown("Its sequence."), "expires": shown("RFC 3339."),
			"shadow_removed": sometimes(told("Whether the bundle was the shadow, whose trial is over.")),
		},
		"policy-shadow " + read:                             shadowAnswer(),
		"policy-shadow " + update:                           shadowAnswer(),
		"policy-shadow " + string(logical.DeleteOperation):  nil,
		"policy-overlay " + read:                            overlayAnswer(),
		"policy-overlay " + update:                          overlayAnswer(),
		"policy-overlay " + string(logical.DeleteOperation): orProposed(fields{}),
		"policy-bundle " + read:                             {"bundle": shown("The signed bundle, base64.")},
		"policy-decide " + update:                           {"decision": shown("The decision (JSON)."), "bundle": shown("Digest of the bundle that decided."), "overlay": sometimes(shown("Digest of the overlay that decided with it."))},
	}
}

func shadowAnswer() fields {
	return fields{
		"digest": shown("Digest of the bundle on trial."), "sequence": shown("Its sequence."), "expires": shown("RFC 3339."),
		"since": shown("RFC 3339."), "by": shown("Entity that put it on trial."), "state": shown("asked, expired, or unusable: it can't be opened."),
	}
}

func overlayAnswer() fields {
	return fields{
		"digest": shown("Digest of the overlay; empty: there is none."), "sequence": shown("Its sequence, or the floor for the next one."), "previous": shown("Digest of the one before."),
		"expires": sometimes(shown("RFC 3339.")), "activated_at": sometimes(shown("RFC 3339.")),
		"state": shown("in_force, expired: it denies, unusable: it can't be opened, awaited: a restored snapshot has lost it, or removed."),
	}
}

func catalogAnswers() map[string]fields {
	update, read, list, del := string(logical.UpdateOperation), string(logical.ReadOperation), string(logical.ListOperation), string(logical.DeleteOperation)
	version := func() *framework.FieldSchema { return counted("Version.") }
	return map[string]fields{
		"sources " + list:      listed("Names of the sources.", ""),
		"source " + read:       {"source": shown("Source configuration (JSON).")},
		"source " + update:     orProposed(fields{"credential_dropped": told("Whether the stored login was dropped, because the source points elsewhere, or that of the request was not kept.")}),
		"source " + del:        nil,
		"source-check " + read: {"ok": told("Whether the source can be used."), "error": sometimes(shown("Why not."))},
		"secret " + list:       listed("Names; those that end in a slash hold more.", ""),
		"secret " + read:       {"version": version(), "versions": shown("JSON list of versions and their times.")},
		"secret " + update:     {"version": version()},
		"secret " + del:        nil,
		"agents " + list:       listed("Names of the agents.", ""),
		"agent " + read:        {"agent": shown("Agent definition (JSON)."), "digest": shown("Its digest."), "version": version()},
		"agent " + update:      {"version": version(), "digest": shown("Digest of the definition.")},
		"agent " + del:         nil,
		"profiles " + list:     listed("Names of the profiles.", ""),
		"profile " + list:      listed("Names of the profiles below a prefix.", ""),
		"profile " + read: {
			"profile": shown("The profile (JSON)."), "version": version(), "newest": counted("Newest version."), "deleted": told("Whether the profile is deleted."),
			"history": shown("Who wrote which version, and when (JSON)."),
		},
		"profile " + string(logical.PatchOperation): orProposed(fields{"version": sometimes(version())}),
		"profile-preview " + update:                 {"preview": shown("For each key its origin, decision and reasons; never a value (JSON).")},
		"profile-preview-as " + update:              {"preview": shown("For each key its origin, decision and reasons; never a value (JSON).")},
		"profile " + update:                         orProposed(fields{"version": sometimes(version())}),
		"profile " + del:                            orProposed(fields{}),
	}
}

// orProposed adds what a change answers that waits for a second person, and
// changed nothing.
func orProposed(f fields) fields {
	f["proposal"] = sometimes(shown("Id of the proposal that the change has become."))
	f["kind"] = sometimes(shown("Its kind."))
	f["digest"] = sometimes(shown("Its digest."))
	f["widens"] = sometimes(named("Fields that let more happen than before."))
	f["expires"] = sometimes(shown("RFC 3339."))
	return f
}

func proposalAnswers() map[string]fields {
	update, read, list := string(logical.UpdateOperation), string(logical.ReadOperation), string(logical.ListOperation)
	id := func() *framework.FieldSchema { return shown("Id of the proposal.") }
	return map[string]fields{
		"proposals " + list: listed("Ids, oldest first.", "By id: target, proposer, digest and expiry (JSON)."),
		"proposal " + read:  {"proposal": shown("The object, its digest, its state, and what is there now (JSON).")},
		"proposal-confirm " + update: {
			"proposal": id(), "kind": shown("Its kind."), "target": shown("Profile or source that was changed."), "version": sometimes(counted("Version that came of it.")),
		},
		"proposal-reject " + update: {"proposal": id()},
	}
}

func stoppingAnswers() map[string]fields {
	update, read, list := string(logical.UpdateOperation), string(logical.ReadOperation), string(logical.ListOperation)
	approval := fields{"approval": shown("The object, its digest, state and votes (JSON).")}
	return map[string]fields{
		"approvals " + list: listed("Ids, newest first.", "By id: state, run, key, requester, votes and expiry (JSON)."),
		"approval " + read:  approval,
		"vote " + update:    approval,
		"reviews " + list:   listed("Ids of open reviews, oldest first.", "By id: run, key, agent, requester, reasons, opening and due time (JSON)."),
		"review " + read:    {"review": shown("The review (JSON)."), "overdue": told("Whether its time is over.")},
		"review-close " + update: {
			"review": shown("Id of the review."), "finding": shown("As given."),
		},
		"revocations " + list: listed("Ids of all revocations, lifted ones too.", ""),
		"revocations " + update: {
			"id": shown("Id of the revocation."), "epoch": shown("Epoch from which it stands."), "logged": told("Whether its entry is in the log yet."),
			"enforced": told("Whether what it covers was stopped yet."), "runs": sometimes(named("Runs that it stopped.")), "grants": sometimes(named("Grants that it ended.")),
		},
		"revocation-preview " + update: {
			"runs": named("Runs that it would stop."), "lease_prefixes": sometimes(named("What to revoke in Vault afterwards.")), "grants": counted("Grants that it would end."),
		},
		"revocation " + read:        {"revocation": shown("The revocation (JSON)."), "standing": told("Whether it was not lifted.")},
		"revocation-lift " + update: {"id": shown("Id of the revocation."), "epoch": shown("Epoch from which it does not stand.")},
	}
}

func runAnswers() map[string]fields {
	update, read, list, del := string(logical.UpdateOperation), string(logical.ReadOperation), string(logical.ListOperation), string(logical.DeleteOperation)
	state := func() *framework.FieldSchema { return shown("State of the run.") }
	return map[string]fields{
		"runs " + update: {"enqueued": shown("Id, ticket, decisions and manifest (JSON). The ticket is shown once.")},
		"runs " + list:   listed("Ids, newest first.", "By id: what is told of the run (JSON)."),
		"run " + read: {
			"run": shown("Id."), "state": state(), "manifest": shown("The manifest, its exact text."), "manifest_digest": shown("Its digest."),
			"history": shown("Changes of state (JSON)."), "grants": shown("Grants (JSON)."), "approvals": shown("Approvals and their states (JSON)."),
			"spiffe_id": sometimes(shown("Who claimed it.")), "isolation": sometimes(shown("Of the sandbox.")), "run_key": sometimes(shown("Public key of the run.")),
			"redacted_input": sometimes(shown("Redacted command and input (JSON).")), "redacted_input_digest": sometimes(shown("Digest of it.")),
		},
		"run-act " + update:    {"run": shown("Id."), "state": state()},
		"run-input " + del:     {"erased": told("Always true.")},
		"run-replay " + update: {"replay": shown("How the replay stands to the run, and what was enqueued (JSON).")},
		"host-watch " + read:   signedAnswer(),
		"claim " + update:      signedAnswer(),
		"creds " + read:        signedAnswer(),
		"confirm " + update:    signedAnswer(),
		"watch " + read:        signedAnswer(),
		"request " + update:    signedAnswer(),
		"head " + update:       signedAnswer(),
		"events " + update:     {"accepted": counted("Events that were taken.")},
		"finish " + update:     {"state": state(), "checkpoint": shown("A signed head of the log that covers the record's entry.")},
		"record " + read:       {"record": shown("DSSE envelope."), "sha256": shown("Of the envelope.")},
	}
}

func logAnswers() map[string]fields {
	update, read := string(logical.UpdateOperation), string(logical.ReadOperation)
	return map[string]fields{
		"log-checkpoint " + read: {"checkpoint": shown("Signed note."), "commits": shown("Writes that entries were committed by, since the engine started.")},
		"log-tile " + read:       {"tile": shown("Bytes of the tile, base64.")},
		"log-entries " + read:    {"entries": shown("JSON lines."), "count": counted("How many."), "next": shown("Where to go on.")},
		"log-entry " + read:      {"leaf": shown("The leaf."), "body": shown("Its body; empty when erased."), "salt": shown("Base64; empty when erased."), "erased": told("Whether the body was erased.")},
		"log-proof " + read:      {"checkpoint": shown("Signed note."), "proof": shown("JSON list of hashes, base64.")},
		"log-seen " + update:     {"checkpoint": shown("Signed note."), "proof": shown("JSON list of hashes, base64.")},
	}
}
