package opabundle

import (
	"context"
	"time"

	"sealed.dev/sealed/internal/sealed"
)

// DecideUnder answers like Decide, under an overlay: a second bundle that is
// asked the same and whose answer is combined with b's (sealed.Combine). The
// overlay can only narrow: the stronger effect wins and obligations intersect.
// Neither bundle sees the other's rules or data.
//
// An overlay that is nil, expired or fails to answer denies, like any bundle.
// Where a tenant has none, call Decide. The engine, which logs both answers,
// combines them itself.
func (b *Bundle) DecideUnder(ctx context.Context, overlay *Bundle, question string, input any, at time.Time) sealed.Decision {
	return sealed.Combine(b.Decide(ctx, question, input, at), overlay.Decide(ctx, question, input, at))
}
