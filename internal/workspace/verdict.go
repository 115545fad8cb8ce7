package workspace

import (
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// isFlagged reports whether init objects to a path or to a directory above it.
func (r *returner) isFlagged(p string) bool {
	return slices.ContainsFunc(r.flagged, func(f string) bool { return f == "." || p == f || strings.HasPrefix(p, f+"/") })
}

// wasRenamed reports whether Scan renamed something in a directory of p's path:
// then p may be that, or below it.
func (r *returner) wasRenamed(p string) bool {
	return slices.ContainsFunc(r.flagged, func(f string) bool {
		dir, name := path.Split(f)
		return strings.HasPrefix(name, renamed) && strings.HasPrefix(p, dir)
	})
}

// verdict says why a new or changed entry may not go back; empty: it may.
func (r *returner) verdict(e entry) string {
	switch {
	case r.isFlagged(e.path):
		return ReasonCredential
	case e.kind == 0:
		return ReasonSpecial
	case e.mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 && e.kind == 'f':
		return ReasonSetuid
	case e.kind == 'd':
		return "" // what is in it is judged by itself
	case Protected(e.path) || r.bareConfig(e.path) || e.kind == 'l' && linkedSettings(e.path):
		return ReasonProtected
	case e.kind == 'l' && (!insideLink(e.path, e.target) || r.throughLink(e)):
		return ReasonLink
	}
	return ""
}

// bareConfig finds a repository without a .git: git obeys the config of any
// directory that looks like one.
func (r *returner) bareConfig(p string) bool {
	dir := path.Dir(p)
	for {
		if r.seen[path.Join(dir, "HEAD")] && r.seen[path.Join(dir, "objects")] && r.seen[path.Join(dir, "refs")] {
			return protectedGit(strings.Split(strings.ToLower(strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")), "/"))
		}
		if dir == "." {
			return false
		}
		dir = path.Dir(dir)
	}
}

// throughLink reports whether a link's target passes through another link, in
// the copy or in the original: that one could lead outside.
func (r *returner) throughLink(e entry) bool {
	p := path.Dir(path.Join(path.Dir(e.path), e.target))
	for ; p != "." && p != "/" && !strings.HasPrefix(p, ".."); p = path.Dir(p) {
		for _, t := range []*tree{r.from, r.to} {
			var st unix.Stat_t
			if unix.Fstatat(t.root, p, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
				return true
			}
		}
	}
	return false
}
