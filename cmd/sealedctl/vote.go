package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/vaultclient"
)

// voteWords says in a sentence why a vote did not count; the engine says it in
// a word. The second text is the next thing to try.
var voteWords = map[string][2]string{
	"voted":          {"you have voted already: another person has to", "sealedctl approvals show "},
	"self":           {"you asked for this run yourself: another person has to decide", ""},
	"person_unknown": {"Vault does not know which person you are", "ask who runs Vault to set the person's claim of your entity"},
	"policy":         {"the policy does not let you decide this", "ask one of the groups it names: sealedctl approvals show "},
	"revoked":        {"what it asks for is revoked", "sealedctl revocations list"},
	"digest":         {"the object has another digest", "sealedctl approvals show "},
	"expired":        {"the time to answer is over; the agent has to ask again", ""},
	"replayed":       {"it is decided already", "sealedctl approvals show "},
}

// voteError puts the engine's refusal of a vote into words.
func voteError(ctx context.Context, e *vaultclient.Engine, v vaultclient.Approval, err error) error {
	word := refusalWord(err, "voting")
	if word == "replayed" && votedAs(ctx, e.Client(), v.Votes) {
		word = "voted"
	}
	return inWords(err, "voting", voteWords, word, string(v.Decoded.ID))
}

// refusalWord is the word in which the engine says why something did not count.
func refusalWord(err error, doing string) string {
	_, word, _ := strings.Cut(err.Error(), ": "+doing+": ")
	word, _, _ = strings.Cut(word, ":")
	return word
}

// inWords puts a refusal into a sentence and the next thing to try, which may end
// in "show " and an id. A word that is not in the table leaves the error as it is.
func inWords(err error, doing string, words map[string][2]string, word, id string) error {
	said, ok := words[word]
	if !ok {
		return err
	}
	hint := said[1]
	if strings.HasSuffix(hint, "show ") {
		hint += id
	}
	return &hintError{err: fmt.Errorf("%s: %s: %w", doing, said[0], sentinelOf(err)), hint: hint}
}

// votedAs reports whether the token's own entity is among the voters.
func votedAs(ctx context.Context, c *vaultclient.Client, votes []sealed.Vote) bool {
	self, err := c.Read(ctx, "auth/token/lookup-self", nil)
	if err != nil {
		return false
	}
	id, _ := self["entity_id"].(string)
	return id != "" && slices.ContainsFunc(votes, func(v sealed.Vote) bool { return v.EntityID == id })
}

// sentinelOf is the one of the two that a refused vote wraps.
func sentinelOf(err error) error {
	if errors.Is(err, sealed.ErrDenied) {
		return sealed.ErrDenied
	}
	return sealed.ErrConflict
}
