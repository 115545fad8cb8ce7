package sealed

import (
	"encoding/base64"
	"unicode/utf8"
)

// Bounds of a RedactedInput, in bytes of UTF-8.
const (
	MaxInputText     = 24 << 10  // of Input
	MaxArgvText      = 8 << 10   // of all of Argv together
	MaxRedactedInput = 256 << 10 // of the document: in JSON a control character is six
)

// A RedactedInput is what is kept of a run's command and standard input. The
// engine got digests at enqueue, because nobody could redact then. Init makes
// this document when it knows the values of the keys that the run starts with,
// and the agent starts only after the engine has stored it. Keys that are
// granted later do not change it: what was said before they were known stays.
//
// Command and input are redacted whole and then cut. Lengths and digests are
// those of the redacted whole, so that a copy kept elsewhere can be compared.
// Text that is not UTF-8 is repaired with U+FFFD before it is cut; lengths and
// digests are of the bytes before that.
type RedactedInput struct {
	// Salt keeps the document's digest, which log and record name, from being
	// a test for guesses once the document has been erased.
	Salt       string   `json:"salt"` // 16 random bytes, base64 std
	Argv       []string `json:"argv"` // a value that spanned arguments has joined them
	ArgvBytes  int      `json:"argv_bytes"`
	ArgvDigest Digest   `json:"argv_digest"` // of the arguments joined by NUL
	HasInput   bool     `json:"has_input"`   // false: none, or live input of a terminal
	Input      string   `json:"input,omitempty"`
	InputBytes int      `json:"input_bytes,omitempty"`
	// InputDigest is empty exactly when HasInput is false.
	InputDigest Digest `json:"input_digest,omitempty"`
}

// ParseRedactedInput decodes and validates the document. It can't know whether
// the text was redacted.
func ParseRedactedInput(text string) (RedactedInput, error) {
	var in RedactedInput
	if err := Decode([]byte(text), MaxRedactedInput, &in); err != nil {
		return in, err
	}
	return in, in.validate()
}

func (in RedactedInput) validate() error {
	salt, err := base64.StdEncoding.DecodeString(in.Salt)
	if err != nil || len(salt) != 16 {
		return fieldErr("salt", "wants 16 bytes of base64")
	}
	total := 0
	for _, a := range in.Argv {
		if total += len(a); !utf8.ValidString(a) {
			return fieldErr("argv", "wants UTF-8")
		}
	}
	switch {
	case len(in.Argv) == 0 || total > MaxArgvText:
		return fieldErr("argv", "wants an argument, and at most 8 KiB")
	case in.ArgvBytes < 0 || in.InputBytes < 0:
		return fieldErr("argv_bytes", "wants lengths that are not negative")
	case !utf8.ValidString(in.Input) || len(in.Input) > MaxInputText:
		return fieldErr("input", "wants at most 24 KiB of UTF-8")
	case !in.HasInput && (in.Input != "" || in.InputBytes != 0 || in.InputDigest != ""):
		return fieldErr("has_input", "is false beside an input")
	}
	if in.HasInput {
		if err := in.InputDigest.Validate("input_digest"); err != nil {
			return err
		}
	}
	return in.ArgvDigest.Validate("argv_digest")
}
