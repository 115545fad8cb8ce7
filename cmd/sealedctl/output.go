package main

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"gopkg.in/yaml.v3"
)

// print writes v to stdout in the chosen form; table writes the human one.
// JSON and YAML have the same fields: YAML is made from the JSON.
func (a *app) print(v any, table func(w io.Writer)) error {
	switch a.output {
	case "json":
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		return a.printYAML(v)
	}
	return aligned(a.stdout, table)
}

// aligned writes a human table with its columns in line.
func aligned(to io.Writer, table func(w io.Writer)) error {
	w := tabwriter.NewWriter(to, 0, 4, 2, ' ', 0)
	table(w)
	return w.Flush()
}

func (a *app) printYAML(v any) error {
	out, err := yamlOf(v)
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(out)
	return err
}

// yamlOf writes v with the fields of its JSON.
func yamlOf(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding output: %w", err)
	}
	var plain any
	if err := yaml.Unmarshal(b, &plain); err != nil {
		return nil, fmt.Errorf("encoding output: %w", err)
	}
	out, err := yaml.Marshal(plain)
	if err != nil {
		return nil, fmt.Errorf("encoding output: %w", err)
	}
	return out, nil
}

// row writes one tab-separated line of a table.
func row(w io.Writer, cells ...any) {
	for i, c := range cells {
		if i > 0 {
			_, _ = fmt.Fprint(w, "\t")
		}
		_, _ = fmt.Fprint(w, printable(fmt.Sprint(c)))
	}
	_, _ = fmt.Fprintln(w)
}

// printable keeps what others wrote from moving the cursor or breaking a row.
func printable(s string) string {
	out := []rune(s)
	for i, r := range out {
		if r < 0x20 || r == 0x7f || (r >= 0x80 && r < 0xa0) || (r >= 0x200b && r <= 0x200f) || (r >= 0x2028 && r <= 0x202e) || (r >= 0x2060 && r <= 0x206f) {
			out[i] = '?'
		}
	}
	return string(out)
}

func jsonOf(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding document: %w", err)
	}
	return b, nil
}
