package opabundle

import (
	"slices"

	"github.com/open-policy-agent/opa/v1/ast"
)

// allowed are the built-in functions that a policy may name: those that give
// the same answer anywhere, touch neither network, clock, randomness, host nor
// keys, and whose work is bounded by the size of their arguments. A new
// version of OPA adds nothing to this list by itself (E12).
//
// Left out on purpose, among others: http.send, net.lookup_ip_addr,
// net.cidr_expand, opa.runtime, rand.intn, uuid.rfc4122, time.now_ns (the time
// is in the input), io.jwt.* and crypto.* with keys, json.match_schema (it can
// fetch a schema), numbers.range (memory), trace and print (a way out for the
// input), and functions that OPA deprecates.
func allowed() []string {
	return []string{
		// operators and keywords
		"assign", "eq", "equal", "neq", "lt", "lte", "gt", "gte",
		"plus", "minus", "mul", "div", "rem", "and", "or",
		"internal.member_2", "internal.member_3", "internal.template_string",
		// numbers and aggregates
		"abs", "ceil", "floor", "round", "to_number", "count", "max", "min", "sum", "sort",
		// types
		"is_array", "is_boolean", "is_null", "is_number", "is_object", "is_set", "is_string", "type_name",
		// collections
		"array.concat", "array.flatten", "array.reverse", "array.slice", "intersection", "union",
		"object.filter", "object.get", "object.keys", "object.remove", "object.subset", "object.union", "object.union_n",
		// text
		"concat", "contains", "endswith", "format_int", "indexof", "indexof_n", "lower", "upper",
		"replace", "split", "sprintf", "startswith", "substring",
		"strings.any_prefix_match", "strings.any_suffix_match", "strings.count", "strings.replace_n", "strings.reverse",
		"trim", "trim_left", "trim_prefix", "trim_right", "trim_space", "trim_suffix",
		"glob.match", "glob.quote_meta", "regex.is_valid", "regex.match", "regex.split", "regex.replace",
		"semver.compare", "semver.is_valid", "units.parse", "units.parse_bytes",
		// encodings, addresses, hashes
		"base64.decode", "base64.encode", "base64url.decode", "base64url.encode", "hex.decode", "hex.encode",
		"json.marshal", "json.unmarshal", "json.is_valid", "crypto.sha256",
		"net.cidr_contains", "net.cidr_intersects", "net.cidr_is_valid", "uri.is_valid", "uri.parse",
		// arithmetic on a time that is given
		"time.add_date", "time.diff", "time.parse_duration_ns", "time.parse_ns", "time.parse_rfc3339_ns",
	}
}

// capabilities returns the allow-list in OPA's form. AllowNet is empty, not
// nil: nil would mean any host.
func capabilities() *ast.Capabilities {
	caps := ast.CapabilitiesForThisVersion()
	names := allowed()
	caps.Builtins = slices.DeleteFunc(slices.Clone(caps.Builtins), func(b *ast.Builtin) bool {
		return !slices.Contains(names, b.Name)
	})
	caps.AllowNet = []string{}
	return caps
}

// forbiddenBuiltin returns the first built-in function that modules name and
// the allow-list does not hold, or "". It only explains a refusal of the
// compiler; the compiler is the control.
func forbiddenBuiltin(modules map[string]*ast.Module) string {
	names := allowed()
	found := ""
	for _, b := range ast.CapabilitiesForThisVersion().Builtins {
		if slices.Contains(names, b.Name) {
			continue
		}
		want := b.Ref()
		for _, m := range modules {
			ast.WalkRefs(m, func(ref ast.Ref) bool {
				if ref.Equal(want) {
					found = b.Name
				}
				return found != ""
			})
			if found != "" {
				return found
			}
		}
	}
	return found
}
