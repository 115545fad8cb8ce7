package supervise

import (
	"errors"
	"testing"

	"sealed.dev/sealed/internal/sealed"
)

// What init said before a run that did not start is in the result, from where
// it goes into the engine's entry about the end. It is cleaned.
func TestFailedHasInitsWords(t *testing.T) {
	cause := errors.New("the process has gone")
	for name, tt := range map[string]struct {
		said *sealed.RelayControl
		want string
	}{
		"nothing":     {nil, ""},
		"a refusal":   {&sealed.RelayControl{Type: "failed", Exit: 125, Message: "refusing environment GODEBUG"}, "refusing environment GODEBUG"},
		"a line feed": {&sealed.RelayControl{Type: "failed", Message: "a\nb\x1b[2J"}, "a b [2J"},
		"a success":   {&sealed.RelayControl{Type: "failed", Exit: 0, Message: "fine"}, "fine"},
	} {
		o := &owner{failure: tt.said}
		res, err := o.failed(cause)
		if res.Message != tt.want || res.Exit != sealed.ExitSealed || !errors.Is(err, cause) {
			t.Errorf("%s: %+v, %v", name, res, err)
		}
	}
}
