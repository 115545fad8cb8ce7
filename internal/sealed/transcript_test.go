package sealed

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestTranscriptMasks(t *testing.T) {
	const text = "0123456789"
	for name, c := range map[string]struct {
		masks TranscriptMasks
		want  string // empty: refused
	}{
		"none":             {TranscriptMasks{}, text},
		"one":              {TranscriptMasks{Spans: []MaskSpan{{2, 4, "K"}}}, "01[sealed:K]456789"},
		"all":              {TranscriptMasks{Spans: []MaskSpan{{0, 10, "K"}}}, "[sealed:K]"},
		"two side by side": {TranscriptMasks{Spans: []MaskSpan{{0, 2, "A"}, {2, 3, "B"}}}, "[sealed:A][sealed:B]3456789"},
		"empty":            {TranscriptMasks{Spans: []MaskSpan{{2, 2, "K"}}}, ""},
		"negative":         {TranscriptMasks{Spans: []MaskSpan{{-1, 2, "K"}}}, ""},
		"overlap":          {TranscriptMasks{Spans: []MaskSpan{{0, 3, "K"}, {2, 4, "K"}}}, ""},
		"beyond the end":   {TranscriptMasks{Spans: []MaskSpan{{8, 11, "K"}}}, ""},
		"not a key":        {TranscriptMasks{Spans: []MaskSpan{{0, 1, "a\x1b[2J"}}}, ""},
		"withheld":         {TranscriptMasks{Withhold: true}, ""},
		"too many":         {TranscriptMasks{Spans: make([]MaskSpan, MaxMaskSpans+1)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := c.masks.Apply(&out, strings.NewReader(text))
			if c.want == "" {
				if !errors.Is(err, ErrInvalid) {
					t.Errorf("got %q, %v", out.String(), err)
				}
				return
			}
			if err != nil || out.String() != c.want {
				t.Errorf("got %q, %v; want %q", out.String(), err, c.want)
			}
		})
	}
}
