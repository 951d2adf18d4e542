package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// rulesOf are the rules that decide on a manifest, each once: for each of its tags, or for its
// having none, and for each name of its repository, the first that matches. nil stands for a tag
// that none matches.
func (s *simulation) rulesOf(n *node) []*policy.Rule {
	var rules []*policy.Rule
	add := func(r *policy.Rule) {
		if !slices.Contains(rules, r) {
			rules = append(rules, r)
		}
	}
	for _, name := range n.names {
		for _, tag := range n.tags {
			add(s.first(func(r *policy.Rule) bool { return r.Fits(name, n.manifest.Digest, []string{tag}, n.manifest.Of) }))
		}
		if len(n.tags) == 0 {
			add(s.first(func(r *policy.Rule) bool { return fitsUntagged(r, name, n) }))
		}
	}
	return rules
}

// fitsUntagged reports whether a rule is about a manifest without a tag of its own. A rule may
// name the tags of signatures.
func fitsUntagged(r *policy.Rule, repository string, n *node) bool {
	if r.Fits(repository, n.manifest.Digest, nil, n.manifest.Of) {
		return true
	}
	return r.Match != nil && len(r.Match.Tags) > 0 && r.Fits(repository, n.manifest.Digest, n.verdict.Tags, n.manifest.Of)
}

func (s *simulation) first(fits func(*policy.Rule) bool) *policy.Rule {
	for i := range s.in.Policy.Rules {
		if r := &s.in.Policy.Rules[i]; fits(r) {
			return r
		}
	}
	return nil
}

// judge is the verdict of a root by its rules, of which the strongest keep wins: it goes when all
// of them have it go.
func (s *simulation) judge(n *node) {
	if n.lease != "" {
		n.stays(Leased, n.lease, "a build uses it: lease "+n.lease)
		return
	}
	if n.held.reason != "" {
		n.stays(n.held.reason, n.held.by, n.held.explain)
		return
	}
	if slices.Contains(n.rules, nil) {
		n.verdict.Rule = ""
		return
	}
	for _, kept := range []func(*policy.Rule) bool{
		func(r *policy.Rule) bool { return r.Protect }, func(r *policy.Rule) bool { return r.Keep == nil },
	} {
		if i := slices.IndexFunc(n.rules, kept); i >= 0 {
			n.keptBy(n.rules[i])
			return
		}
	}
	s.weigh(n)
}

// keptBy notes that a rule without bounds keeps it.
func (n *node) keptBy(r *policy.Rule) {
	n.verdict.Rule = r.Name
	if r.Protect {
		n.stays(Protected, "", fmt.Sprintf("rule %s protects it", r.Name))
	} else {
		n.stays(WithinBounds, "", fmt.Sprintf("rule %s has no bounds", r.Name))
	}
}

// weigh removes a root that is beyond a bound of each of its rules.
func (s *simulation) weigh(n *node) {
	for _, r := range n.rules {
		if reason, _ := n.beyond(r, s.in.Now); reason == "" {
			n.verdict.Rule = r.Name
			n.stays(WithinBounds, "", "unused for "+human.Span(n.verdict.Age)+", within the bounds of rule "+r.Name)
			return
		}
	}
	reason, why := n.beyond(n.rules[0], s.in.Now)
	if n.newest {
		n.stays(Newest, "", "among the newest that rule "+n.verdict.Rule+" keeps")
		return
	}
	s.remove(n, reason, why)
}

// beyond is the first bound of a rule that a manifest is beyond.
func (n *node) beyond(r *policy.Rule, now time.Time) (reason Reason, why string) {
	k := r.Keep
	over := func(bound *time.Duration, since time.Time) bool {
		return bound != nil && !since.IsZero() && now.Sub(since) > *bound
	}
	switch {
	case k.Age != nil && n.verdict.Age > *k.Age:
		return Age, "unused for " + human.Span(n.verdict.Age) + "; " + r.Name + " keeps " + human.Span(*k.Age)
	case over(k.PushAge, n.pushed):
		return PushAge, fmt.Sprintf("pushed %s ago; %s keeps %s", human.Span(now.Sub(n.pushed)), r.Name, human.Span(*k.PushAge))
	case over(k.CreateAge, n.manifest.Created):
		since := now.Sub(n.manifest.Created)
		return CreateAge, fmt.Sprintf("made %s ago; %s keeps %s", human.Span(since), r.Name, human.Span(*k.CreateAge))
	case k.Age == nil && k.PushAge == nil && k.CreateAge == nil && k.Bytes == nil && (k.NewestByPush != nil || k.NewestByPull != nil):
		return Surplus, fmt.Sprintf("not among the newest that %s keeps", r.Name)
	}
	return "", ""
}
