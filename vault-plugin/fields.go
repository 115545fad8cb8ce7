package vaultplugin

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/vault/sdk/framework"
	"github.com/hashicorp/vault/sdk/logical"

	"sealed.dev/sealed/internal/sealed"
)

// maxText is how long a field may be that is neither a document nor a value, in
// bytes.
const maxText = 4 << 10

// A fieldKind says what is checked of a field before its path sees it.
type fieldKind int

const (
	plain    fieldKind = iota // one line of at most maxText
	prose                     // at most maxText; what people say is cleaned by its path
	document                  // JSON, limited by its parser; belongs to a write
	opaque                    // any bytes, limited by its path; belongs to a write
)

func kindOf(field string) fieldKind {
	switch field {
	case "agent", "claim", "input", "keys", "profile", "request", "run", "source", "spec", "watch":
		return document
	case "bundle", "ca", "credential", "value":
		return opaque
	case "checkpoint", "reason":
		return prose
	}
	return plain
}

// known refuses, for every operation, a field that the path does not know, because
// a misspelled one must not be taken for "unset"; and text that nobody means: too
// long, or with control and format characters, which only deceive a reader.
func (b *backend) known(f framework.OperationFunc) framework.OperationFunc {
	return func(ctx context.Context, req *logical.Request, d *framework.FieldData) (*logical.Response, error) {
		for name, value := range req.Data {
			if _, ok := d.Schema[name]; !ok {
				return nil, b.edge(invalid(sealed.CleanReason(name), "unknown field"))
			}
			if err := checkText(name, value, writes(req.Operation)); err != nil {
				return nil, b.edge(err)
			}
		}
		return f(ctx, req, d)
	}
}

func writes(op logical.Operation) bool {
	return op == logical.UpdateOperation || op == logical.CreateOperation || op == logical.PatchOperation
}

// checkText looks at every text in value. What is no text is left to the type of
// the field.
func checkText(field string, value any, write bool) error {
	switch v := value.(type) {
	case string:
		return checkString(field, v, write)
	case []string:
		for _, s := range v {
			if err := checkString(field, s, write); err != nil {
				return err
			}
		}
	case []any:
		for _, s := range v {
			if err := checkText(field, s, write); err != nil {
				return err
			}
		}
	case map[string]any:
		for name, s := range v {
			if err := errors.Join(checkString(field, name, write), checkText(field, s, write)); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkString(field, s string, write bool) error {
	kind := kindOf(field)
	switch {
	case (kind == document || kind == opaque) && write:
		return nil
	case len(s) > maxText:
		return invalid(field, fmt.Sprintf("is longer than %d bytes", maxText))
	case kind == prose:
		return nil
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }) {
		return invalid(field, "holds control characters")
	}
	return nil
}

// namingField names the document of a path in an error about it that does not
// say which field it is about.
func namingField(err error, d *framework.FieldData) error {
	var named *sealed.FieldError
	var coded logical.HTTPCodedError
	if !errors.Is(err, sealed.ErrInvalid) || errors.As(err, &named) || errors.As(err, &coded) {
		return err
	}
	// run comes last: where there is another document, it is a name in the path.
	for _, name := range []string{"claim", "request", "spec", "source", "profile", "keys", "input", "watch", "agent", "bundle", "run"} {
		if d.Schema[name] != nil {
			return fmt.Errorf("field %s: %w", name, err)
		}
	}
	return err
}
