package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// defaultBuilds bounds the builds in the history of a daemon. buildkitd itself removes a
// build only when it is older than 48 hours and not among the newest 50: what large bakes
// leave within two days is without a bound.
const defaultBuilds = 1000

// Default returns the policy of a cache manager without another one. Records that were unused
// for longer than keepAge go, whatever their type. Of a daemon's history, the oldest builds go
// until 1,000 are left. Then the least recently used records go until each cache has at most
// keepBytes bytes.
func Default(keepAge time.Duration, keepBytes int64) Policy {
	builds := int64(defaultBuilds)
	return Policy{Rules: []Rule{
		{Name: "age", Keep: &Keep{Age: &keepAge}},
		{Name: "history", Match: &Match{Types: []cache.Type{cache.History}}, Keep: &Keep{Records: &builds}},
		{Name: "size", Keep: &Keep{Bytes: &keepBytes}},
	}}
}

// Resolve returns the policy as it is applied: with the fields that rules take from
// others filled in, and without disabled rules. A policy that does not hold is an
// INVALID_ARGUMENT fault that names the field.
func Resolve(p Policy) (Policy, error) {
	byName := map[string]int{}
	for i, r := range p.Rules {
		field := fmt.Sprintf("rules[%d].name", i)
		if r.Name == "" {
			return Policy{}, fault.Invalid(field, "", "is empty", "give each rule a name: verdicts and metrics show it")
		}
		if _, twice := byName[r.Name]; twice {
			return Policy{}, fault.Invalid(field, r.Name, "is the name of another rule too", "give each rule its own name")
		}
		byName[r.Name] = i
	}
	out := p
	out.Rules = nil
	for i := range p.Rules {
		rule, err := extended(p.Rules, byName, i, nil)
		if err == nil {
			err = check(i, rule)
		}
		if err != nil {
			return Policy{}, err
		}
		if !rule.Disabled {
			out.Rules = append(out.Rules, rule)
		}
	}
	return out, checkBudget(p.Budget)
}

// extended is a rule with what it takes from those that it extends. path is the
// names of the rules that led to it.
func extended(rules []Rule, byName map[string]int, at int, path []string) (Rule, error) {
	rule := rules[at]
	path = append(path, rule.Name)
	if rule.Extends == "" {
		return rule, nil
	}
	field := fmt.Sprintf("rules[%d].extends", byName[path[0]])
	from, known := byName[rule.Extends]
	if !known {
		return Rule{}, fault.Invalid(field, rule.Extends, "is not the name of a rule", "name a rule of the same policy")
	}
	if slices.Contains(path, rule.Extends) {
		return Rule{}, fault.Invalid(field, rule.Extends, "makes a cycle: "+strings.Join(append(path, rule.Extends), " -> "),
			"let one of these rules extend none")
	}
	base, err := extended(rules, byName, from, path)
	if err != nil {
		return Rule{}, err
	}
	if rule.Match == nil {
		rule.Match = base.Match
	}
	if rule.Keep == nil && !rule.Protect {
		rule.Keep = base.Keep
	}
	return rule, nil
}

// check makes sure that the figures of a rule are ones that can be meant.
func check(i int, r Rule) error {
	field := func(name string) string { return fmt.Sprintf("rules[%d].%s", i, name) }
	if r.Protect && r.Keep != nil {
		return fault.Invalid(field("keep"), "", "has bounds, and protect keeps everything", "leave out keep, or protect")
	}
	if m := r.Match; m != nil {
		if m.MinAge != nil && m.MaxAge != nil && *m.MinAge > *m.MaxAge {
			return fault.Invalid(field("match.min_age"), m.MinAge.String(), "is above max_age: no record fits", "swap them")
		}
		if m.MinUsageCount != nil && m.MaxUsageCount != nil && *m.MinUsageCount > *m.MaxUsageCount {
			return fault.Invalid(field("match.min_usage_count"), fmt.Sprint(*m.MinUsageCount), "is above max_usage_count: no record fits", "swap them")
		}
	}
	k := r.Keep
	if k == nil {
		return nil
	}
	const remedy = "give a number from 0 on"
	switch {
	case k.Age != nil && *k.Age < 0:
		return fault.Invalid(field("keep.age"), k.Age.String(), "is negative", remedy)
	case k.Bytes != nil && *k.Bytes < 0:
		return fault.Invalid(field("keep.bytes"), fmt.Sprint(*k.Bytes), "is negative", remedy)
	case k.Records != nil && *k.Records < 0:
		return fault.Invalid(field("keep.records"), fmt.Sprint(*k.Records), "is negative", remedy)
	case k.FreeDisk != nil && k.FreeDisk.LowBytes < 0:
		return fault.Invalid(field("keep.free_disk.low_bytes"), fmt.Sprint(k.FreeDisk.LowBytes), "is negative", remedy)
	case k.FreeDisk != nil && k.FreeDisk.HighBytes < k.FreeDisk.LowBytes:
		return fault.Invalid(field("keep.free_disk.high_bytes"), fmt.Sprint(k.FreeDisk.HighBytes), "is below low_bytes",
			"give at least low_bytes, or leave it out")
	}
	return nil
}

func checkBudget(b Budget) error {
	const remedy = "give a number from 0 on, or leave it out for no bound"
	switch {
	case b.Time < 0:
		return fault.Invalid("budget.time", b.Time.String(), "is negative", remedy)
	case b.Records != nil && *b.Records < 0:
		return fault.Invalid("budget.records", fmt.Sprint(*b.Records), "is negative", remedy)
	case b.Bytes != nil && *b.Bytes < 0:
		return fault.Invalid("budget.bytes", fmt.Sprint(*b.Bytes), "is negative", remedy)
	}
	return nil
}

// RemovesAll reports whether a resolved policy empties every cache, whatever is in
// it, but for what is in use, pinned, leased or protected: a rule that is about
// everything keeps nothing.
func RemovesAll(p Policy) bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		k := r.Keep
		return r.Match.everything() && k != nil &&
			(k.Age != nil && *k.Age <= 0 || k.Bytes != nil && *k.Bytes <= 0 || k.Records != nil && *k.Records <= 0)
	})
}
