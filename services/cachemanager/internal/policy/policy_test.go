package policy_test

import (
	"errors"
	"regexp"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

func ptr[T any](v T) *T { return &v }

func TestResolveFillsIn(t *testing.T) {
	mounts := &policy.Match{Types: []cache.Type{cache.CacheMount}}
	week := &policy.Keep{Age: ptr(168 * time.Hour)}
	p, err := policy.Resolve(policy.Policy{Version: 3, Rules: []policy.Rule{
		{Name: "c", Extends: "b", Keep: &policy.Keep{Bytes: ptr(int64(1))}},
		{Name: "a", Match: mounts, Keep: week, Disabled: true},
		{Name: "b", Extends: "a"},
		{Name: "d", Extends: "a", Protect: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if p.Version != 3 || len(p.Rules) != 3 {
		t.Fatalf("%+v", p)
	}
	c, b, d := p.Rules[0], p.Rules[1], p.Rules[2]
	if c.Match != mounts || *c.Keep.Bytes != 1 || c.Keep.Age != nil || b.Match != mounts || b.Keep != week || d.Match != mounts || d.Keep != nil {
		t.Errorf("%+v", p.Rules)
	}
}

func TestResolveRefuses(t *testing.T) {
	age := func(d time.Duration) *policy.Keep { return &policy.Keep{Age: &d} }
	for name, c := range map[string]struct {
		rules  []policy.Rule
		budget policy.Budget
		field  string
	}{
		"no name":           {rules: []policy.Rule{{}}, field: "rules[0].name"},
		"a name twice":      {rules: []policy.Rule{{Name: "a"}, {Name: "a"}}, field: "rules[1].name"},
		"an unknown rule":   {rules: []policy.Rule{{Name: "a", Extends: "x"}}, field: "rules[0].extends"},
		"itself":            {rules: []policy.Rule{{Name: "a", Extends: "a"}}, field: "rules[0].extends"},
		"a cycle":           {rules: []policy.Rule{{Name: "z"}, {Name: "a", Extends: "b"}, {Name: "b", Extends: "c"}, {Name: "c", Extends: "a"}}, field: "rules[1].extends"},
		"a cycle beside it": {rules: []policy.Rule{{Name: "a", Extends: "b"}, {Name: "b", Extends: "c"}, {Name: "c", Extends: "b"}}, field: "rules[0].extends"},
		"protect and keep":  {rules: []policy.Rule{{Name: "a", Protect: true, Keep: age(1)}}, field: "rules[0].keep"},
		"a negative age":    {rules: []policy.Rule{{Name: "a", Keep: age(-1)}}, field: "rules[0].keep.age"},
		"negative bytes":    {rules: []policy.Rule{{Name: "a", Keep: &policy.Keep{Bytes: ptr(int64(-5))}}}, field: "rules[0].keep.bytes"},
		"negative records":  {rules: []policy.Rule{{Name: "a", Keep: &policy.Keep{Records: ptr(int64(-5))}}}, field: "rules[0].keep.records"},
		"high below low":    {rules: []policy.Rule{{Name: "a", Keep: &policy.Keep{FreeDisk: &policy.FreeDisk{LowBytes: 2, HighBytes: 1}}}}, field: "rules[0].keep.free_disk.high_bytes"},
		"ages without room": {rules: []policy.Rule{{Name: "a", Match: &policy.Match{MinAge: ptr(2 * time.Hour), MaxAge: ptr(time.Hour)}}}, field: "rules[0].match.min_age"},
		"a budget":          {budget: policy.Budget{Bytes: ptr(int64(-1))}, field: "budget.bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := policy.Resolve(policy.Policy{Rules: c.rules, Budget: c.budget})
			refused, ok := errors.AsType[*fault.Error](err)
			if !ok || refused.Kind != fault.InvalidArgument || refused.Field != c.field || refused.Remedy == "" {
				t.Errorf("%#v", err)
			}
		})
	}
}

func TestRemovesAll(t *testing.T) {
	nothing, some := &policy.Keep{Bytes: ptr(int64(0))}, &policy.Keep{Bytes: ptr(int64(1))}
	for name, c := range map[string]struct {
		rule policy.Rule
		want bool
	}{
		"the default":          {policy.Default(48*time.Hour, 1).Rules[0], false},
		"no bytes":             {policy.Rule{Keep: nothing}, true},
		"no age":               {policy.Rule{Keep: &policy.Keep{Age: ptr(time.Duration(0))}}, true},
		"no records":           {policy.Rule{Keep: &policy.Keep{Records: ptr(int64(0))}}, true},
		"a byte":               {policy.Rule{Keep: some}, false},
		"only what is old":     {policy.Rule{Match: &policy.Match{MinAge: ptr(time.Hour)}, Keep: nothing}, false},
		"only of one type":     {policy.Rule{Match: &policy.Match{Types: []cache.Type{cache.Regular}}, Keep: nothing}, false},
		"a match without word": {policy.Rule{Match: &policy.Match{}, Keep: nothing}, true},
	} {
		if got := policy.RemovesAll(policy.Policy{Rules: []policy.Rule{c.rule}}); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestFits(t *testing.T) {
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	r := cache.Record{ID: "a", Type: cache.CacheMount, Description: "cached mount /root/.npm from exec npm ci", Created: now.Add(-9 * time.Hour), LastUsed: now.Add(-time.Hour), UsageCount: 4, Projects: []string{"shop", "web-2"}}
	daemon, directory := cache.Ref{Daemon: "build-1"}, cache.Ref{Directory: "/var/cache/x"}
	for name, c := range map[string]struct {
		match *policy.Match
		ref   cache.Ref
		want  bool
	}{
		"nil":                       {nil, daemon, true},
		"empty":                     {&policy.Match{}, daemon, true},
		"type":                      {&policy.Match{Types: []cache.Type{cache.Regular, cache.CacheMount}}, daemon, true},
		"another type":              {&policy.Match{Types: []cache.Type{cache.Regular}}, daemon, false},
		"description, anywhere":     {&policy.Match{Description: regexp.MustCompile(`npm ci$`)}, daemon, true},
		"another description":       {&policy.Match{Description: regexp.MustCompile(`^npm`)}, daemon, false},
		"old enough, just":          {&policy.Match{MinAge: ptr(time.Hour)}, daemon, true},
		"not old enough":            {&policy.Match{MinAge: ptr(time.Hour + 1)}, daemon, false},
		"young enough, just":        {&policy.Match{MaxAge: ptr(time.Hour)}, daemon, true},
		"not young enough":          {&policy.Match{MaxAge: ptr(time.Hour - 1)}, daemon, false},
		"used enough":               {&policy.Match{MinUsageCount: ptr(int64(4)), MaxUsageCount: ptr(int64(4))}, daemon, true},
		"not used enough":           {&policy.Match{MinUsageCount: ptr(int64(5))}, daemon, false},
		"used too much":             {&policy.Match{MaxUsageCount: ptr(int64(3))}, daemon, false},
		"project":                   {&policy.Match{Projects: []string{"web-*"}}, daemon, true},
		"another project":           {&policy.Match{Projects: []string{"web"}}, daemon, false},
		"daemon":                    {&policy.Match{Daemons: []string{"build-*"}}, daemon, true},
		"another daemon":            {&policy.Match{Daemons: []string{"b"}}, daemon, false},
		"a daemon, in a directory":  {&policy.Match{Daemons: []string{"*"}}, directory, false},
		"directory":                 {&policy.Match{Directories: []string{"/var/cache/x"}}, directory, true},
		"another directory":         {&policy.Match{Directories: []string{"/var/cache"}}, directory, false},
		"a directory or any daemon": {&policy.Match{Directories: []string{"/y"}, Daemons: []string{"*"}}, daemon, true},
	} {
		if got := c.match.Fits(c.ref, r, now); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
