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
		"one":              {TranscriptMasks{Spans: []MaskSpan{{Start: 2, End: 4, Key: "K"}}}, "01[sealed:K]456789"},
		"all":              {TranscriptMasks{Spans: []MaskSpan{{Start: 0, End: 10, Key: "K"}}}, "[sealed:K]"},
		"two side by side": {TranscriptMasks{Spans: []MaskSpan{{Start: 0, End: 2, Key: "A"}, {Start: 2, End: 3, Key: "B"}}}, "[sealed:A][sealed:B]3456789"},
		"empty":            {TranscriptMasks{Spans: []MaskSpan{{Start: 2, End: 2, Key: "K"}}}, ""},
		"negative":         {TranscriptMasks{Spans: []MaskSpan{{Start: -1, End: 2, Key: "K"}}}, ""},
		"overlap":          {TranscriptMasks{Spans: []MaskSpan{{Start: 0, End: 3, Key: "K"}, {Start: 2, End: 4, Key: "K"}}}, ""},
		"beyond the end":   {TranscriptMasks{Spans: []MaskSpan{{Start: 8, End: 11, Key: "K"}}}, ""},
		"not a key":        {TranscriptMasks{Spans: []MaskSpan{{Start: 0, End: 1, Key: "a\x1b[2J"}}}, ""},
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
