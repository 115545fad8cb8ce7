package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"text/tabwriter"
)

// A Row is one comparison. Figures that do not apply are NaN.
type Row struct {
	What     string
	N        int    // measurements
	Unit     string // of P50, P99 and Baseline
	P50, P99 float64
	// Against names the baseline, whose median is Baseline.
	Against  string
	Baseline float64
	Ratio    float64 // P50 to Baseline
	Goal     string  // empty: none, the row explains another one
	Met      bool    // if there is a goal
}

// Compare makes the row of a sample against its baseline, without a goal.
func Compare(what, unit string, s *Sample, against string, baseline *Sample) Row {
	return Row{
		What: what, N: s.Len(), Unit: unit, P50: s.Median(), P99: s.P99(),
		Against: against, Baseline: baseline.Median(), Ratio: s.Median() / baseline.Median(),
	}
}

// Alone makes the row of a sample that has no baseline.
func Alone(what, unit string, s *Sample) Row {
	return Row{What: what, N: s.Len(), Unit: unit, P50: s.Median(), P99: s.P99(), Baseline: math.NaN(), Ratio: math.NaN()}
}

// Want sets the goal of a row and whether it is met.
func (r Row) Want(goal string, met bool) Row {
	r.Goal, r.Met = goal, met
	return r
}

func (r Row) met() string {
	switch {
	case r.Goal == "":
		return ""
	case r.Met:
		return "yes"
	}
	return "no"
}

// WriteTable writes rows for people.
func WriteTable(w io.Writer, rows []Row) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "what\tn\tp50\tp99\tunit\tbaseline\tp50\tratio\tgoal\tmet")
	for _, r := range rows {
		_, _ = fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			r.What, r.N, figure(r.P50), figure(r.P99), r.Unit, r.Against, figure(r.Baseline), figure(r.Ratio), r.Goal, r.met())
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("writing table: %w", err)
	}
	return nil
}

// figure prints three significant digits, and nothing for NaN.
func figure(v float64) string {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return ""
	case math.Abs(v) >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// WriteJSON writes one JSON object a line. Figures that do not apply are absent.
func WriteJSON(w io.Writer, rows []Row) error {
	enc := json.NewEncoder(w)
	for _, r := range rows {
		doc := map[string]any{"what": r.What, "n": r.N, "unit": r.Unit}
		for name, v := range map[string]float64{"p50": r.P50, "p99": r.P99, "baseline_p50": r.Baseline, "ratio": r.Ratio} {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				doc[name] = v
			}
		}
		if r.Against != "" {
			doc["baseline"] = r.Against
		}
		if r.Goal != "" {
			doc["goal"], doc["met"] = r.Goal, r.Met
		}
		if err := enc.Encode(doc); err != nil {
			return fmt.Errorf("writing row: %w", err)
		}
	}
	return nil
}
