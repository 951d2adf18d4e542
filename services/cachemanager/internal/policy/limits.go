package policy

import (
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Limits are the tightest bounds that a policy has for all records of a cache.
type Limits struct {
	Age   *time.Duration
	Bytes *int64
}

// LimitsOf returns what a resolved policy lets a cache hold, whatever is in it.
func LimitsOf(p Policy, ref cache.Ref) Limits {
	var l Limits
	for _, r := range p.Rules {
		if r.Keep == nil || !r.Match.wholeOf(ref) {
			continue
		}
		if age := r.Keep.Age; age != nil && (l.Age == nil || *age < *l.Age) {
			l.Age = age
		}
		if bytes := r.Keep.Bytes; bytes != nil && r.Keep.Scope == PerCache && (l.Bytes == nil || *bytes < *l.Bytes) {
			l.Bytes = bytes
		}
	}
	return l
}

// wholeOf reports whether it fits every record that there may be in a cache.
func (m *Match) wholeOf(ref cache.Ref) bool {
	if m == nil {
		return true
	}
	anywhere := *m
	anywhere.Daemons, anywhere.Directories = nil, nil
	return anywhere.everything() && m.fitsPlace(ref)
}
