package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"sealed.dev/sealed/internal/sealed"
)

// A State is how what is there compares with what is wanted.
type State string

// The states.
const (
	Absent    State = "absent"
	Same      State = "same"
	Different State = "different"
	Present   State = "present"  // and is to go
	Refused   State = "refused"  // the token may not look
	Conflict  State = "conflict" // it belongs to something else
)

// An Action is what applying a step will do.
type Action string

// The actions. Keep and Warn change nothing; a job stops at Stop.
const (
	Create Action = "create"
	Change Action = "change"
	Remove Action = "remove"
	Keep   Action = "keep"
	Warn   Action = "warn"
	Stop   Action = "stop"
)

// A Row is one step of a plan.
type Row struct {
	Step   string `json:"step"` // its name, for Skip
	What   string `json:"what"`
	State  State  `json:"state"`
	Action Action `json:"action"`
	Detail string `json:"detail,omitempty"`
}

// A Plan is what a job would do now.
type Plan []Row

// Pending counts the steps that would change something, or can't be decided.
func (p Plan) Pending() int {
	n := 0
	for _, r := range p {
		if r.Action != Keep && r.Action != Warn {
			n++
		}
	}
	return n
}

// found is what a look at one step has found.
type found struct {
	state  State
	action Action
	detail string
}

func (f found) settled() bool { return f.action == Keep || f.action == Warn }

func absent(detail string) (found, error)    { return found{Absent, Create, detail}, nil }
func same(detail string) (found, error)      { return found{Same, Keep, detail}, nil }
func different(detail string) (found, error) { return found{Different, Change, detail}, nil }
func present(detail string) (found, error)   { return found{Present, Remove, detail}, nil }
func gone() (found, error)                   { return found{Absent, Keep, ""}, nil }

// conflict is what only a person can decide.
func conflict(format string, args ...any) (found, error) {
	return found{}, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), sealed.ErrConflict)
}

// A step wants one thing. look has no effects and may be repeated at any time;
// apply may be called whenever look was not settled, and may meet a world that has
// moved on.
type step struct {
	name, what string
	look       func(context.Context) (found, error)
	apply      func(context.Context) error
}

// A Job is a list of steps in the order in which they depend on each other. Its
// methods may be called again, but not concurrently; different jobs for the same
// target may run at once.
type Job struct{ steps []step }

// Skip leaves steps out, by name: what another administrator does. A name that the
// job does not have wraps sealed.ErrInvalid.
func (j *Job) Skip(names ...string) error {
	for _, name := range names {
		i := slices.IndexFunc(j.steps, func(s step) bool { return s.name == name })
		if i < 0 {
			return &sealed.FieldError{Field: "skip", Reason: "there is no step " + name}
		}
		j.steps = slices.Delete(j.steps, i, i+1)
	}
	return nil
}

// Plan looks at every step and changes nothing. What the token may not look at and
// what belongs to something else are rows with the action Stop; an error is
// anything else.
func (j *Job) Plan(ctx context.Context) (Plan, error) {
	plan := Plan{}
	for _, s := range j.steps {
		f, err := s.look(ctx)
		row := s.row(f)
		switch {
		case errors.Is(err, sealed.ErrDenied):
			row.State, row.Action, row.Detail = Refused, Stop, err.Error()
		case errors.Is(err, sealed.ErrConflict):
			row.State, row.Action, row.Detail = Conflict, Stop, err.Error()
		case err != nil:
			return nil, fmt.Errorf("looking at %s: %w", s.what, err)
		}
		plan = append(plan, row)
	}
	return plan, nil
}

func (s step) row(f found) Row {
	return Row{Step: s.name, What: s.what, State: f.state, Action: f.action, Detail: f.detail}
}

// A StepError is the step at which a job has stopped.
type StepError struct {
	Step, What string
	Done, Of   int // steps that are done, and all
	Err        error
}

func (e *StepError) Error() string {
	return fmt.Sprintf("%s: %v (%d of %d steps are done; running the same again continues)", e.What, e.Err, e.Done, e.Of)
}

func (e *StepError) Unwrap() error { return e.Err }

// Apply makes what is not as wanted, in order, and stops at the first error, which
// is a *StepError. done, which may be nil, is told about every step: State and
// Detail are what was found, and Action is what was done.
func (j *Job) Apply(ctx context.Context, done func(Row)) error {
	for i, s := range j.steps {
		f, err := s.run(ctx)
		if err != nil {
			return &StepError{Step: s.name, What: s.what, Done: i, Of: len(j.steps), Err: err}
		}
		if done != nil {
			done(s.row(f))
		}
	}
	return nil
}

// run settles one step.
func (s step) run(ctx context.Context) (found, error) {
	if err := ctx.Err(); err != nil {
		return found{}, err
	}
	before, err := s.look(ctx)
	if err != nil || before.settled() {
		return before, err
	}
	applied := s.apply(ctx)
	after, err := s.look(ctx)
	switch {
	case err == nil && after.settled():
		// Even if apply has failed: its answer was lost, or another installer was
		// faster. What counts is what is there.
		return before, nil
	case applied != nil:
		return before, applied
	case err != nil:
		return before, err
	}
	return before, fmt.Errorf("it was applied and is still %s (%s): %w", after.state, after.detail, sealed.ErrConflict)
}

// list joins names for a line.
func list(names []string) string {
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}
