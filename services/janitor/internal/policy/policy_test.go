package policy_test

import (
	"errors"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		glob, name string
		want       bool
	}{
		{"cache/**", "cache/app", true},
		{"cache/**", "cache/team/app", true},
		{"cache/**", "cache", false},
		{"cache/**", "cached/app", false},
		{"cache/*", "cache/app", true},
		{"cache/*", "cache/team/app", false},
		{"**", "a/b/c", true},
		{"*", "a/b", false},
		{"*", "", true},
		{"v*.*", "v1.2", true},
		{"v*.*", "v1", false},
		{"**/app", "team/app", true},
		{"**/app", "app", false},
		{"a**z", "a/b/z", true},
		{"a*b*c", "axbxc", true},
		{"[a]", "a", false},
		{"a", "ab", false},
		{"", "", true},
	} {
		if got := policy.Globs(c.glob)[0].Fits(c.name); got != c.want {
			t.Errorf("%q, %q: %t", c.glob, c.name, got)
		}
	}
}

func FuzzGlob(f *testing.F) {
	f.Add("cache/**", "cache/app")
	f.Fuzz(func(t *testing.T, glob, name string) {
		if !policy.Globs("**")[0].Fits(name) || policy.Globs(glob)[0].Fits(name) && !policy.Globs(glob + "**")[0].Fits(name) {
			t.Errorf("%q, %q", glob, name)
		}
	})
}

func TestResolve(t *testing.T) {
	age := time.Hour
	for name, c := range map[string]struct {
		rules []policy.Rule
		field string
	}{
		"no name":       {[]policy.Rule{{}}, "rules[0].name"},
		"two of a name": {[]policy.Rule{{Name: "a"}, {Name: "a"}}, "rules[1].name"},
		"a glob of another dialect that protects": {[]policy.Rule{{Name: "a", Protect: true, Match: &policy.Match{Tags: policy.Globs("v*", "v?")}}}, "rules[0].match.tags[1]"},
		"a class of characters":                   {[]policy.Rule{{Name: "a", Match: &policy.Match{Tags: policy.Globs("v[0-9]*")}}}, "rules[0].match.tags[0]"},
		"alternatives":                            {[]policy.Rule{{Name: "a", Match: &policy.Match{Repositories: policy.Globs("{prod,live}/**")}}}, "rules[0].match.repositories[0]"},
		"upper case":                              {[]policy.Rule{{Name: "a", Match: &policy.Match{Repositories: policy.Globs("Prod/**")}}}, "rules[0].match.repositories[0]"},
		"a registry's name":                       {[]policy.Rule{{Name: "a", Match: &policy.Match{Repositories: policy.Globs("localhost:5000/prod")}}}, "rules[0].match.repositories[0]"},
		"an empty glob":                           {[]policy.Rule{{Name: "a", Match: &policy.Match{Tags: policy.Globs("")}}}, "rules[0].match.tags[0]"},
		"a tag with a slash":                      {[]policy.Rule{{Name: "a", Match: &policy.Match{Tags: policy.Globs("a/b")}}}, "rules[0].match.tags[0]"},
		"a rule that is off":                      {[]policy.Rule{{Name: "a", Disabled: true, Match: &policy.Match{Tags: policy.Globs("v?")}}}, "rules[0].match.tags[0]"},
		"protected with bounds":                   {[]policy.Rule{{Name: "a", Protect: true, Keep: &policy.Keep{Age: &age}}}, "rules[0].keep"},
		"untagged with tags":                      {[]policy.Rule{{Name: "a", Match: &policy.Match{Tagging: policy.Untagged, Tags: policy.Globs("x")}}}, "rules[0].match.tags"},
	} {
		_, err := policy.Resolve(policy.Policy{Rules: c.rules})
		if wrong, ok := errors.AsType[*fault.Error](err); !ok || wrong.Field != c.field || wrong.Remedy == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, err := policy.Resolve(policy.Policy{Rules: []policy.Rule{{Name: "a"}, {Name: "b", Disabled: true}}})
	if err != nil || len(p.Rules) != 1 {
		t.Errorf("%v, %v", p, err)
	}
	if p, err := policy.Resolve(policy.Default(age)); err != nil || len(p.Rules) != 2 || !p.Rules[0].Fits("cache/app", "sha256:1", []string{"main"}, content.Cache) ||
		p.Rules[1].Fits("app", "sha256:1", []string{"v1"}, content.Image) || !p.Rules[1].Fits("app", "sha256:1", nil, content.Image) {
		t.Errorf("%v, %v", p, err)
	}
}

// What keeps nothing, whatever there is, has to be meant.
func TestExtreme(t *testing.T) {
	zero, day, none, one := time.Duration(0), 24*time.Hour, 0, 1
	for name, c := range map[string]struct {
		p       policy.Policy
		extreme bool
	}{
		"nothing":              {policy.Policy{}, true},
		"a bound of 0 bytes":   {policy.Policy{MaxBytes: new(int64)}, true},
		"the default":          {policy.Default(day), false},
		"all of age 0":         {policy.Policy{Rules: []policy.Rule{{Name: "a", Keep: &policy.Keep{Age: &zero}}}}, true},
		"all of a day":         {policy.Policy{Rules: []policy.Rule{{Name: "a", Keep: &policy.Keep{Age: &day}}}}, false},
		"none of the newest":   {policy.Policy{Rules: []policy.Rule{{Name: "a", Keep: &policy.Keep{NewestByPush: &none}}}}, true},
		"one of the newest":    {policy.Policy{Rules: []policy.Rule{{Name: "a", Keep: &policy.Keep{NewestByPush: &one, Age: &zero}}}}, false},
		"some are protected":   {policy.Policy{Rules: []policy.Rule{{Name: "p", Protect: true, Match: &policy.Match{Tags: policy.Globs("v*")}}, {Name: "a", Keep: &policy.Keep{Age: &zero}}}}, false},
		"in some repositories": {policy.Policy{Rules: []policy.Rule{{Name: "a", Match: &policy.Match{Repositories: policy.Globs("cache/**")}, Keep: &policy.Keep{Age: &zero}}}}, false},
		"in all repositories":  {policy.Policy{Rules: []policy.Rule{{Name: "a", Match: &policy.Match{Repositories: policy.Globs("**")}, Keep: &policy.Keep{Age: &zero}}}}, true},
	} {
		if err := policy.Extreme(c.p); (err != nil) != c.extreme {
			t.Errorf("%s: %v", name, err)
		}
	}
}
