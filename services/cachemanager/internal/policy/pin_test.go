package policy_test

import (
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

// A pin of a record that is gone keeps nothing, and one that matches says how much it keeps.
func TestPin_SaysHowManyRecordsItKeeps(t *testing.T) {
	a, b := cache.Ref{Daemon: "a"}, cache.Ref{Daemon: "b"}
	listings := []cache.Listing{{Cache: a, Records: []cache.Record{{ID: "x", Type: cache.CacheMount}, {ID: "y", Type: cache.CacheMount}, {ID: "z", Type: cache.Regular}}}}
	mounts := &policy.Match{Types: []cache.Type{cache.CacheMount}}
	for name, c := range map[string]struct {
		pin   policy.Pin
		away  []cache.Ref
		want  int64
		known bool
	}{
		"a record":                    {policy.Pin{Cache: a, Record: "z"}, nil, 1, true},
		"a record that is gone":       {policy.Pin{Cache: a, Record: "gone"}, nil, 0, true},
		"a record of another daemon":  {policy.Pin{Cache: b, Record: "z"}, nil, 0, true},
		"a match":                     {policy.Pin{Match: mounts}, nil, 2, true},
		"a match of none":             {policy.Pin{Match: &policy.Match{Types: []cache.Type{cache.GitCheckout}}}, nil, 0, true},
		"a match, and one is away":    {policy.Pin{Match: mounts}, []cache.Ref{b}, 0, false},
		"a match, another is away":    {policy.Pin{Match: &policy.Match{Types: mounts.Types, Daemons: []string{"a"}}}, []cache.Ref{b}, 2, true},
		"a record, its cache is away": {policy.Pin{Cache: b, Record: "z"}, []cache.Ref{b}, 0, false},
	} {
		if got, known := c.pin.Holds(listings, c.away, time.Now()); got != c.want || known != c.known {
			t.Errorf("%s: %d, %t", name, got, known)
		}
	}
}
