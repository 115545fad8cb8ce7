package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sealed.dev/sealed/internal/redact"
	"sealed.dev/sealed/internal/sealed"
)

const (
	maxValuesFile = 64 << 20
	redactBuffer  = 256 << 10
)

type redactOptions struct {
	values                 string
	weak                   []string
	events, stored, detect bool
	counts                 bool
}

func newRedactCmd(a *app) *cobra.Command {
	var o redactOptions
	cmd := &cobra.Command{
		Use: "redact --values-from FILE|fd:N", Short: "Mask values in what passes from standard input to standard output", Args: cobra.NoArgs,
		Long: `Redact copies standard input to standard output and puts [sealed:KEY] in the
place of every value, in all the forms that it knows (go doc ./internal/redact).
It needs no Vault. The values are a JSON object {"KEY": "value"} in a file, or on
an open descriptor, so that they are in no argument and in no environment.

What may still become a value is held back until it can't, also for long.
--events reads JSON lines or server-sent events and joins the deltas of models.
--stored reads everything first, and looks deeper, also into encodings within
encodings; --detect adds what looks like a credential or like personal data.

  make 2>&1 | sealedctl redact --values-from values.json
  make 2>&1 | sealedctl redact --values-from fd:3 3< <(pass show ci.json)
  sealedctl redact --values-from values.json --stored --detect <old.log >clean.log`,
		RunE: func(*cobra.Command, []string) error { return a.redact(o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.values, "values-from", "", "file with the values, or fd:N for an open descriptor")
	f.StringSliceVar(&o.weak, "allow-weak", nil, "keys whose values may be short or easily guessed")
	f.BoolVar(&o.events, "events", false, "the input is JSON lines or server-sent events")
	f.BoolVar(&o.stored, "stored", false, "read all of the input first, and look deeper")
	f.BoolVar(&o.detect, "detect", false, "with --stored: mask unknown credentials and structured personal data too")
	f.BoolVar(&o.counts, "counts", false, "say on standard error what was masked, one JSON object a line")
	_ = cmd.MarkFlagRequired("values-from")
	cmd.AddCommand(newRedactBenchCmd(a))
	return cmd
}

func (a *app) redact(o redactOptions) error {
	switch {
	case o.events && o.stored:
		return usagef("--events and --stored exclude each other")
	case o.detect && !o.stored:
		return usagef("--detect wants --stored")
	}
	set, err := valuesFrom(o.values, o.weak)
	if err != nil {
		return err
	}
	defer set.Wipe()
	var counts []redact.Count
	switch {
	case o.stored:
		counts, err = a.redactStored(set, o.detect)
	case o.events:
		j := redact.NewJSON(a.stdout, set, "stdin")
		err = pour(j, a.stdin)
		counts = j.Counts()
		if n := j.Fallbacks(); n > 0 && !a.quiet {
			_, _ = fmt.Fprintf(a.stderr, "sealedctl: %d lines or events were redacted as bytes\n", n)
		}
	default:
		w := redact.NewWriter(a.stdout, set, "stdin")
		err = pour(w, a.stdin)
		counts = w.Counts()
	}
	if o.counts {
		enc := json.NewEncoder(a.stderr)
		for _, c := range counts {
			_ = enc.Encode(map[string]any{"key": c.Key, "form": c.Form, "count": c.N})
		}
	}
	return err
}

// pour copies src to w to its end and closes w.
func pour(w io.WriteCloser, src io.Reader) error {
	buf := make([]byte, redactBuffer)
	defer clear(buf)
	for {
		n, err := src.Read(buf)
		if _, werr := w.Write(buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return w.Close()
		}
		if err != nil {
			return errors.Join(fmt.Errorf("reading standard input: %w", err), w.Close())
		}
	}
}

func (a *app) redactStored(set *redact.Set, detect bool) ([]redact.Count, error) {
	in, err := io.ReadAll(a.stdin)
	if err != nil {
		return nil, fmt.Errorf("reading standard input: %w", err)
	}
	defer clear(in)
	var d redact.Deep
	if detect {
		d.Detectors = append(redact.Credentials(), redact.PersonalData()...)
	}
	out, report, err := d.Redact(in, set, "stdin")
	if err != nil {
		return nil, err
	}
	if _, err := a.stdout.Write(out); err != nil {
		return nil, fmt.Errorf("writing standard output: %w", err)
	}
	if report.Exhausted {
		return report.Counts, errors.New("there was more to decode than the limit allows: a value may be left in the output")
	}
	return report.Counts, nil
}

// valuesFrom reads the values and registers them. No error carries a value.
func valuesFrom(from string, weak []string) (*redact.Set, error) {
	raw, err := readValues(from)
	if err != nil {
		return nil, err
	}
	defer clear(raw)
	var values map[string]json.RawMessage
	if err := json.Unmarshal(raw, &values); err != nil {
		return nil, fmt.Errorf("reading values from %s: wants a JSON object {\"KEY\": \"value\"}: %w", from, sealed.ErrInvalid)
	}
	if len(values) == 0 {
		return nil, fmt.Errorf("reading values from %s: there is none: %w", from, sealed.ErrInvalid)
	}
	allowed := map[string]bool{}
	for _, k := range weak {
		if _, ok := values[k]; !ok {
			return nil, usagef("--allow-weak names %s, which is no key in %s", printable(k), from)
		}
		allowed[k] = true
	}
	set := redact.NewSet()
	for key, text := range values {
		var value string
		if len(text) == 0 || text[0] != '"' || json.Unmarshal(text, &value) != nil {
			return nil, fmt.Errorf("reading values from %s: the value of a key is no string: %w", from, sealed.ErrInvalid)
		}
		err := set.Add(key, []byte(value), redact.Options{AllowWeak: allowed[key]})
		if errors.Is(err, redact.ErrWeak) {
			return nil, &hintError{err: err, hint: "--allow-weak " + key + ", if masks of harmless text do no harm"}
		}
		if err != nil {
			return nil, err
		}
	}
	return set, nil
}

func readValues(from string) ([]byte, error) {
	var f *os.File
	if n, ok := strings.CutPrefix(from, "fd:"); ok {
		fd, err := strconv.ParseUint(n, 10, 16)
		if err != nil || fd < 3 {
			return nil, usagef("--values-from fd:N wants the number of an open descriptor from 3 on")
		}
		f = os.NewFile(uintptr(fd), "fd:"+n)
	} else {
		var err error
		if f, err = os.Open(from); err != nil {
			return nil, fmt.Errorf("reading values: %w", err)
		}
	}
	defer func() { _ = f.Close() }()
	var b bytes.Buffer
	if _, err := io.Copy(&b, io.LimitReader(f, maxValuesFile+1)); err != nil {
		return nil, fmt.Errorf("reading values from %s: %w", from, err)
	}
	if b.Len() > maxValuesFile {
		return nil, fmt.Errorf("reading values from %s: more than 64 MiB: %w", from, sealed.ErrInvalid)
	}
	return b.Bytes(), nil
}
