package main

import "encoding/json"

// line writes v as one element of a stream: one JSON object on a line, one
// YAML document, or what table prints.
func (a *app) line(v any, table func()) error {
	switch a.output {
	case "json":
		return json.NewEncoder(a.stdout).Encode(v)
	case "yaml":
		a.printf("---\n")
		return a.printYAML(v)
	}
	table()
	return nil
}
