package workspace

import (
	"path"
	"strings"
)

// Protected reports whether a path names something that programs on the host
// execute or obey merely because it lies in a directory (B22, R17): hooks,
// configuration of git and of editors, settings of agents. Letter case is
// ignored, for file systems that ignore it. The rules hold at any depth.
func Protected(p string) bool {
	parts := strings.Split(strings.ToLower(path.Clean(p)), "/")
	for i, part := range parts {
		if protectedAt(part, parts[i+1:]) {
			return true
		}
	}
	return false
}

func protectedAt(part string, below []string) bool {
	first := ""
	if len(below) > 0 {
		first = below[0]
	}
	switch part {
	case ".vscode", ".idea", ".envrc", ".direnv", ".husky", ".codex", ".mcp.json", ".gitmodules", ".pre-commit-config.yaml":
		return true
	case ".claude":
		return first == "hooks" || strings.HasPrefix(first, "settings") && strings.HasSuffix(first, ".json")
	case ".gemini":
		return first == "settings.json"
	case ".git":
		return protectedGit(below)
	}
	return false
}

// protectedGit judges a path below .git, .git/modules/… and .git/worktrees/…
// included. What redirects git elsewhere counts like its configuration.
func protectedGit(below []string) bool {
	if len(below) == 0 {
		return true // a file or link in the place of the directory
	}
	for i, part := range below {
		last := i == len(below)-1
		switch {
		case part == "refs" || part == "logs":
			return false // branches may have any name
		case part == "hooks":
			return true
		case last && strings.HasPrefix(part, "config"),
			last && (part == "commondir" || part == "gitdir" || part == "alternates" || part == "http-alternates"),
			part == "attributes" && i > 0 && below[i-1] == "info":
			return true
		}
	}
	return false
}

// linkedSettings reports whether a link at p could put a directory of the
// agent's making in the place of one that holds settings.
func linkedSettings(p string) bool {
	for _, part := range strings.Split(strings.ToLower(p), "/") {
		if part == ".git" || part == ".claude" || part == ".gemini" {
			return true
		}
	}
	return false
}

// insideLink reports whether a link at p may come back: relative, and inside
// the root whatever else is a link. Dots are allowed at the front only, where
// they climb real directories; further on they could climb out of another
// link's target.
func insideLink(p, target string) bool {
	if target == "" || path.IsAbs(target) || len(target) > 4096 {
		return false
	}
	depth := strings.Count(p, "/")
	named := false
	for _, part := range strings.Split(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; named || depth < 0 {
				return false
			}
		default:
			named = true
		}
	}
	return true
}
