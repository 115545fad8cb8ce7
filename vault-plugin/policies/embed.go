// Package policies holds the ready-made Vault ACL policies of the engine, one
// file per role.
//
// In a file, {{mount}} stands for the path of the mount without a final slash;
// replace it before writing the policy to Vault. No role alone gets a value:
// who writes values or points sources can't say who uses them, and who says so
// can't write them. What widens takes effect when a second holder of the role has
// confirmed it. Where the mount's configuration says that one person is enough, a
// person who holds two roles is outside that promise.
package policies

import "embed"

// Policies holds <role>.hcl for each role. It is an fs.FS and can't be changed.
//
//go:embed *.hcl
var Policies embed.FS
