package policy

import (
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Fits reports whether everything that is set holds for a record. Ages are counted
// to now. A nil Match fits all.
func (m *Match) Fits(ref cache.Ref, r cache.Record, now time.Time) bool {
	if m == nil {
		return true
	}
	return m.fitsPlace(ref) && m.fitsUse(r, now) &&
		(len(m.Types) == 0 || slices.Contains(m.Types, r.Type)) &&
		(m.Description == nil || m.Description.MatchString(r.Description)) &&
		(len(m.Projects) == 0 || slices.ContainsFunc(r.Projects, func(p string) bool { return anyOf(m.Projects, p) }))
}

// fitsPlace reports whether the cache is one of those named. Daemons and directories
// that are both named are either.
func (m *Match) fitsPlace(ref cache.Ref) bool {
	if len(m.Daemons) == 0 && len(m.Directories) == 0 {
		return true
	}
	if ref.Daemon != "" {
		return anyOf(m.Daemons, ref.Daemon)
	}
	return slices.Contains(m.Directories, ref.Directory)
}

func (m *Match) fitsUse(r cache.Record, now time.Time) bool {
	age, count := now.Sub(r.LastActive()), int64(r.UsageCount)
	return (m.MinAge == nil || age >= *m.MinAge) && (m.MaxAge == nil || age <= *m.MaxAge) &&
		(m.MinUsageCount == nil || count >= *m.MinUsageCount) && (m.MaxUsageCount == nil || count <= *m.MaxUsageCount)
}

// everything reports whether it fits every record that there may be.
func (m *Match) everything() bool {
	return m == nil || len(m.Types) == 0 && m.Description == nil && m.MaxAge == nil && (m.MinAge == nil || *m.MinAge <= 0) &&
		(m.MinUsageCount == nil || *m.MinUsageCount <= 0) && m.MaxUsageCount == nil &&
		len(m.Projects) == 0 && len(m.Daemons) == 0 && len(m.Directories) == 0
}

// anyOf reports whether a name is one of the patterns, which may end in "*".
func anyOf(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		prefix, wildcard := strings.CutSuffix(pattern, "*")
		return pattern == name || wildcard && strings.HasPrefix(name, prefix)
	})
}
