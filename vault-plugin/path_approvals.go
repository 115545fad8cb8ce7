package vaultplugin

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/audit"
	"sealed.dev/sealed/internal/decisionlog"
	"sealed.dev/sealed/internal/sealed"
)

const approvalPattern = `approvals/(?P<id>[0-9A-HJKMNP-TV-Z]{26})`

// pathApprovals is where people say yes or no.
func (b *backend) pathApprovals() []*framework.Path {
	id := &framework.FieldSchema{Type: framework.TypeString, Description: "Id of the approval."}
	return []*framework.Path{
		{
			Pattern:      "approvals/?$",
			DisplayAttrs: display("approvals"),
			Fields: map[string]*framework.FieldSchema{
				"state": {Type: framework.TypeString, Description: "Only approvals in this state.", Query: true},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ListOperation: b.op("List approvals of live runs, newest first", b.listApprovals),
			},
			HelpSynopsis:    "List the approvals of runs that are not over.",
			HelpDescription: "Those of ended runs are read by id.",
		},
		{
			Pattern:      approvalPattern + "$",
			DisplayAttrs: display("approval"),
			Fields:       map[string]*framework.FieldSchema{"id": id},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.ReadOperation: b.op("Read an approval", b.readApprovalPath),
			},
			HelpSynopsis:    "Read an approval: the exact object, its digest, state and votes.",
			HelpDescription: "A vote names the digest of the object that was shown.",
		},
		{
			Pattern:      approvalPattern + "/(?P<vote>approve|deny)$",
			DisplayAttrs: display("vote"),
			Fields: map[string]*framework.FieldSchema{
				"id":     id,
				"vote":   {Type: framework.TypeString, Description: "approve or deny."},
				"digest": {Type: framework.TypeString, Description: "Digest of the object that the voter was shown."},
			},
			Operations: map[logical.Operation]framework.OperationHandler{
				logical.UpdateOperation: b.op("Vote on an approval", b.votePath),
			},
			HelpSynopsis:    "Say yes or no. One no is final.",
			HelpDescription: "Never by the requester, nor by the same person twice; the policy says who may. The digest has to be that of the object shown.",
		},
	}
}

func (b *backend) listApprovals(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	x, err := b.index(ctx, req.Storage)
	if err != nil {
		return nil, err
	}
	want := text(d, "state")
	keys, info := []string{}, map[string]any{}
	for _, a := range x.listApprovals(func(approvalRow) bool { return true }) {
		state := a.state(x, b.now())
		if want != "" && state != want {
			continue
		}
		o := a.object
		line, err := json.Marshal(map[string]any{
			"state": state, "run": o.Run, "key": o.Key, "risk": o.Risk, "requester": o.Requester, "agent": o.Agent,
			"votes": len(a.Votes), "quorum": o.Quorum, "expires_at": o.ExpiresAt,
		})
		if err != nil {
			return nil, fmt.Errorf("encoding approval: %w", err)
		}
		keys = append(keys, string(a.ID))
		info[string(a.ID)] = string(line)
	}
	return map[string]any{"keys": keys, "key_info": info}, nil
}

func (b *backend) readApprovalPath(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	a, err := b.approval(ctx, req.Storage, sealed.ApprovalID(text(d, "id")))
	if err != nil {
		if unlessDenied(err) == nil {
			return nil, errRefused
		}
		return nil, err
	}
	return b.showApproval(ctx, req.Storage, a)
}

func (b *backend) showApproval(ctx context.Context, s logical.Storage, a approvalRow) (map[string]any, error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return nil, err
	}
	view := sealed.ApprovalView{Object: json.RawMessage(a.Object), Digest: a.Digest, State: a.state(x, b.now()), Votes: a.Votes}
	if view.State == sealed.ApprovalConsumed {
		view.Grant = sealed.GrantID(a.ID)
	}
	if view.Votes == nil {
		view.Votes = []sealed.Vote{}
	}
	out, err := json.Marshal(view)
	if err != nil {
		return nil, fmt.Errorf("encoding approval: %w", err)
	}
	return map[string]any{"approval": string(out)}, nil
}

func (b *backend) votePath(ctx context.Context, req *logical.Request, d *framework.FieldData) (map[string]any, error) {
	voter, err := b.requester(ctx, req)
	if err != nil {
		return nil, err
	}
	id := sealed.ApprovalID(text(d, "id"))
	a, err := b.approval(ctx, req.Storage, id)
	if err != nil {
		if unlessDenied(err) == nil {
			return nil, errRefused
		}
		return nil, err
	}
	defer b.lockRun(a.object.Run)() // the object never changes, so its run is known before the lock
	if a, err = b.approval(ctx, req.Storage, id); err != nil {
		return nil, err
	}
	yes := text(d, "vote") == "approve"
	what, decided, err := b.checkVote(ctx, req.Storage, a, voter, text(d, "digest"), yes)
	if what != "" || err != nil {
		return nil, b.refuseVote(ctx, req.Storage, a, voter, what, decided, err)
	}
	vote := sealed.Vote{Person: voter.Person, EntityID: voter.EntityID, Name: voter.Name, Groups: voter.Groups, Yes: yes, At: b.now().UTC()}
	a.Votes = append(slices.Clone(a.Votes), vote)
	typ := "approval.granted"
	switch {
	case !yes:
		a.State, typ = sealed.ApprovalDenied, "approval.denied"
	case a.object.Approved(a.Votes):
		a.State = sealed.ApprovalApproved
	}
	if _, err := b.record(ctx, req.Storage, voteEvents(typ, a, voter, map[string]any{"digest": a.Digest, "votes": len(a.Votes), "state": a.State}, decided)...); err != nil {
		return nil, err
	}
	if err := b.saveApproval(ctx, req.Storage, a); err != nil {
		return nil, err
	}
	return b.showApproval(ctx, req.Storage, a)
}

// voteEvents are the entry of a vote, with what the policy was asked for it.
func voteEvents(typ string, a approvalRow, voter sealed.Requester, more map[string]any, decided []decisionlog.Event) []audit.Event {
	body := map[string]any{"approval": a.ID, "key": a.object.Key, "person": voter.Person, "entity": voter.EntityID}
	for k, v := range more {
		body[k] = v
	}
	return withDecided(audit.Event{Type: typ, Run: string(a.object.Run), Essential: true}, body, decided)
}

// checkVote returns why a vote does not count, or "", and what the policy was asked.
// What it checks itself holds even if the policy is wrong.
func (b *backend) checkVote(ctx context.Context, s logical.Storage, a approvalRow, voter sealed.Requester, digest string, yes bool) (what string, decided []decisionlog.Event, err error) {
	x, err := b.index(ctx, s)
	if err != nil {
		return "", nil, err
	}
	o := a.object
	same := func(v sealed.Vote) bool {
		return samePerson(v.Person, voter.Person) || v.EntityID == voter.EntityID
	}
	switch state := a.state(x, b.now()); {
	case digest != string(a.Digest):
		return "digest", nil, nil
	case state == sealed.ApprovalExpired:
		return "expired", nil, nil
	case state == sealed.ApprovalApproved && !yes: // a no still counts until the yes is used
	case state != sealed.ApprovalPending:
		return "replayed", nil, nil
	}
	switch {
	case b.mem.off.self:
	case voter.EntityID == o.RequesterID || samePerson(voter.Person, o.Person):
		return "self", nil, nil
	case voter.Person == "":
		return "person_unknown", nil, nil
	case slices.ContainsFunc(a.Votes, same):
		return "voted", nil, nil
	}
	return b.checkVotePolicy(ctx, s, x, a, voter)
}

func (b *backend) checkVotePolicy(ctx context.Context, s logical.Storage, x *grantIndex, a approvalRow, voter sealed.Requester) (what string, decided []decisionlog.Event, err error) {
	cfg, err := b.config(ctx, s)
	if err != nil {
		return "", nil, err
	}
	r, ok := x.run(a.object.Run)
	if !ok {
		return "replayed", nil, nil
	}
	mk, _ := r.key(a.object.Key)
	if rev, err := b.revoked(ctx, s, r.keySubject(mk, cfg.TrustDomain)); err != nil || rev != nil {
		return "revoked", nil, err
	}
	by, err := b.currentRules(ctx, s)
	if err != nil {
		return "", nil, err
	}
	said, err := b.ruleOnVote(ctx, s, by, a, voter)
	if err != nil {
		return "", nil, err
	}
	if said.Effect != sealed.EffectAllow || !inGroups(a.object.Groups, voter) {
		return "policy", said.decided, nil
	}
	return "", said.decided, nil
}

// refuseVote logs a vote that does not count and says which rule it broke: a
// voter is a person who can do better.
func (b *backend) refuseVote(ctx context.Context, s logical.Storage, a approvalRow, voter sealed.Requester, what string, decided []decisionlog.Event, err error) error {
	if err != nil {
		return err
	}
	typ := "approval.refused"
	switch what {
	case "self", "expired", "replayed":
		typ = "approval." + what
	}
	if _, err := b.record(ctx, s, voteEvents(typ, a, voter, map[string]any{"what": what}, decided)...); err != nil {
		return err
	}
	if what == "digest" || what == "expired" || what == "replayed" || what == "voted" {
		return fmt.Errorf("voting: %s: %w", what, sealed.ErrConflict)
	}
	return fmt.Errorf("voting: %s: %w", what, sealed.ErrDenied)
}
