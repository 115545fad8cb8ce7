// Command sealed-bench measures Sealed on a stack of its own and prints one
// table of ratios. See the README of test/bench.
//
// It starts a Vault with the engine and the embedded authority in a new
// directory below the temporary one, and removes everything when it ends, also
// when it is interrupted. It needs bubblewrap and, the first time, minutes to
// build Vault. It exits with 0 whether goals are met or not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"sealed.dev/sealed/test/bench"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	cancel()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		_, _ = fmt.Fprintf(os.Stderr, "sealed-bench: %v\n", err)
		os.Exit(1)
	}
}

// A section makes some rows.
type section struct {
	name  string
	stack bool // needs one
	run   func(context.Context, *stack, int) ([]bench.Row, error)
}

func sections() []section {
	return []section{
		{"decision", false, func(ctx context.Context, _ *stack, n int) ([]bench.Row, error) { return decisionRows(ctx, n) }},
		{"redaction", false, func(_ context.Context, _ *stack, n int) ([]bench.Row, error) { return redactionRows(n) }},
		{"audit", false, func(ctx context.Context, _ *stack, n int) ([]bench.Row, error) { return auditRows(ctx, n) }},
		{"engine", true, engineRows},
		{"start", true, startRows},
		{"claude", true, claudeRows},
		{"stop", true, stopRows},
		{sizeSection, true, sizeRows},
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var names []string
	for _, s := range sections() {
		names = append(names, s.name)
	}
	fl := flag.NewFlagSet("sealed-bench", flag.ContinueOnError)
	fl.SetOutput(stderr)
	output := fl.String("o", "table", "table or json (one object a line)")
	only := fl.String("only", "", "comma-separated sections of: "+strings.Join(names, " ")+" ("+sizeSection+" takes minutes and runs only where it is named)")
	storage := fl.String("storage", "memory", "Vault's storage: memory (ratios without the disk) or raft (every write is synced)")
	percent := fl.Int("percent", 100, "percentage of the usual number of measurements")
	if err := fl.Parse(args); err != nil {
		return err
	}
	wanted := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == sizeSection })
	if *only != "" {
		wanted = strings.Split(*only, ",")
	}
	for _, name := range wanted {
		if !slices.Contains(names, name) {
			return fmt.Errorf("no section %q; there are: %s", name, strings.Join(names, " "))
		}
	}
	if fl.NArg() > 0 || *percent < 1 || (*output != "table" && *output != "json") || (*storage != "memory" && *storage != "raft") {
		fl.Usage()
		return flag.ErrHelp
	}
	rows, err := measure(ctx, wanted, *percent, *storage == "memory", stderr)
	if *output == "json" {
		return errors.Join(err, bench.WriteJSON(stdout, rows))
	}
	return errors.Join(err, bench.WriteTable(stdout, rows))
}

// measure runs the sections. What was measured before an error is returned
// with it.
func measure(ctx context.Context, wanted []string, percent int, inMemory bool, stderr io.Writer) (rows []bench.Row, err error) {
	var st *stack
	defer func() {
		if st != nil {
			err = errors.Join(err, st.close(context.WithoutCancel(ctx)))
		}
	}()
	for _, s := range sections() {
		if !slices.Contains(wanted, s.name) {
			continue
		}
		if s.stack && st == nil {
			if st, err = openStack(ctx, inMemory, stderr); err != nil {
				return rows, err
			}
		}
		_, _ = fmt.Fprintf(stderr, "sealed-bench: %s\n", s.name)
		more, err := s.run(ctx, st, percent)
		rows = append(rows, more...)
		if err != nil {
			return rows, fmt.Errorf("measuring %s: %w", s.name, err)
		}
	}
	return rows, nil
}

// times is a number of measurements, scaled, at least three.
func times(usual, percent int) int { return max(usual*percent/100, 3) }
