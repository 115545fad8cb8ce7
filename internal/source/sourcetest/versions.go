package sourcetest

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"sealed.dev/sealed/internal/sealed"
	"sealed.dev/sealed/internal/source"
)

// A versioned source is the engine's Versioned.
type versioned interface {
	Newest(ctx context.Context, ref sealed.KeyRef) (sealed.SourceVersion, error)
}

var errNoUse = errors.New("the source has no such use")

// tells asks for the newest version.
func tells(ctx context.Context, s Source, ref sealed.KeyRef) (bool, error) {
	v, ok := s.(versioned)
	if !ok {
		return false, errNoUse
	}
	newest, err := v.Newest(ctx, ref)
	return newest != "", err
}

// versions checks a source of values at rest: it tells the version of what it
// gave, gives that one when it is pinned, and gives no other one for it.
func (c Case) versions(ctx context.Context, s Source, got source.Minted) (out []string) {
	v, ok := s.(versioned)
	if !ok || got.Version == "" || got.Version.Validate("version") != nil {
		return []string{fmt.Sprintf("it tells no version: %q", got.Version)}
	}
	if newest, err := v.Newest(ctx, c.Ref); newest != got.Version || err != nil {
		out = append(out, fmt.Sprintf("gave version %s, but the newest is %s: %v", got.Version, newest, err))
	}
	ref := c.Ref
	ref.Version = got.Version
	if m, err := get(ctx, s, ref); err != nil || m.Version != got.Version || reveal(m) != reveal(got) {
		out = append(out, fmt.Sprintf("pinning version %s gives %s: %v", got.Version, m.Version, err))
	}
	ref.Version = another(got.Version)
	if m, err := get(ctx, s, ref); !errors.Is(err, sealed.ErrNotFound) || m.Value != nil {
		out = append(out, fmt.Sprintf("pinning version %s, which there is not: %v", ref.Version, err))
	}
	if newest, err := v.Newest(ctx, ref); !errors.Is(err, sealed.ErrNotFound) || newest != "" {
		out = append(out, fmt.Sprintf("version %s, which there is not, is told as %q: %v", ref.Version, newest, err))
	}
	for _, bad := range c.BadRefs {
		if newest, err := v.Newest(ctx, bad); !errors.Is(err, sealed.ErrInvalid) || newest != "" {
			out = append(out, fmt.Sprintf("the version of reference %+v is %q: %v", bad, newest, err))
		}
	}
	return out
}

// another is a version of the same kind that is not v.
func another(v sealed.SourceVersion) sealed.SourceVersion {
	if n, ok := v.Number(); ok {
		return sealed.VersionNumber(n + 1000)
	}
	swapped := strings.Map(func(r rune) rune {
		if '0' <= r && r <= '9' {
			return '0' + '9' - r
		}
		return r
	}, string(v))
	return sealed.SourceVersion(swapped)
}
