package quota_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/quota"
)

func TestReserve_BoundsEachTenantAndAll(t *testing.T) {
	a := quota.New(quota.Limits{All: 100, Each: 60})
	if !a.Reserve("web", 60) || a.Reserve("web", 1) {
		t.Error("the bound of a tenant does not hold")
	}
	if !a.Reserve("ops", 40) || a.Reserve("ops", 1) || a.Reserve("new", 1) {
		t.Error("the bound of all does not hold")
	}
	a.Free("web", 60)
	a.Keep("web", 60, 60)
	if a.Reserve("web", 1) || a.Reserve("new", 1) {
		t.Error("what was written is not counted any more")
	}
	a.Keep("web", -30, -30)
	if !a.Reserve("new", 30) {
		t.Error("what is gone is still counted")
	}
}

func TestFull_NamesTheBoundThatIsReached(t *testing.T) {
	a := quota.New(quota.Limits{All: 100, Each: 60})
	a.Keep("web", 60, 60)
	for tenant, key := range map[string]string{"web": "each", "ops": "all"} {
		if tenant == "ops" {
			a.Keep("other", 40, 40)
		}
		err := a.Full(tenant, "contexts", "each", "all")
		if err.Kind != fault.ResourceExhausted || err.RetryAfter == 0 || err.Metadata["limit"] != key {
			t.Errorf("%s: %+v", tenant, err)
		}
	}
}

// However writers take, end and keep: the bounds hold, and in the end the account has
// what is kept.
func TestAccount_NeverExceedsItsLimits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := quota.New(quota.Limits{All: 5 << 20, Each: 3 << 20})
		kept := map[string]int64{}
		type writer struct {
			tenant string
			grant  *quota.Grant
			bytes  int64
		}
		var open []*writer
		total := func() (n int64) {
			for _, b := range kept {
				n += b
			}
			for _, w := range open {
				n += w.bytes
			}
			return n
		}
		t.Repeat(map[string]func(*rapid.T){
			"begin": func(t *rapid.T) {
				tenant := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "tenant")
				open = append(open, &writer{tenant: tenant, grant: a.Grant(tenant)})
			},
			"write": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip()
				}
				w := rapid.SampledFrom(open).Draw(t, "writer")
				n := rapid.Int64Range(0, 2<<20).Draw(t, "bytes")
				if w.grant.Take(n) {
					w.bytes += n
				}
			},
			"end": func(t *rapid.T) {
				if len(open) == 0 {
					t.Skip()
				}
				w := open[0]
				open = open[1:]
				if rapid.Bool().Draw(t, "keep") {
					a.Keep(w.tenant, w.bytes, w.bytes)
					kept[w.tenant] += w.bytes
				}
				w.grant.Close()
			},
			"": func(t *rapid.T) {
				if total() > 5<<20 {
					t.Errorf("%d bytes are written", total())
				}
			},
		})
		for _, w := range open {
			w.grant.Close()
		}
		for tenant, bytes := range kept {
			if a.Of(tenant) != bytes {
				t.Errorf("%s has %d bytes, counted %d", tenant, bytes, a.Of(tenant))
			}
		}
	})
}
