// Package policy says what of a registry stays: ordered rules, of which for each tag of a
// manifest the first that matches decides. The strongest keep of any tag wins.
package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Policy is what stays in the registry, and what goes.
type Policy struct {
	Version   int64 // 1 is the configured one; 0 was given with a request
	Updated   time.Time
	UpdatedBy string
	Comment   string
	Rules     []Rule
	MaxBytes  *int64 // of the whole registry; nil: no bound
	// BlobGrace is how old what nothing reaches must be to go: longer than any push takes.
	BlobGrace time.Duration
	// Quarantine is how long what was removed can be restored.
	Quarantine time.Duration
	// UploadAge is how old an upload must be to be abandoned.
	UploadAge time.Duration
	// MaxBuildTime is from the removal of a manifest to that of its blobs.
	MaxBuildTime time.Duration
	Budget       Budget
}

// Rule is one rule.
type Rule struct {
	Name     string
	Match    *Match // nil: all
	Keep     *Keep  // nil: no bounds
	Protect  bool
	Disabled bool
}

// Match says which manifests a rule is about: those for which all that is set holds.
type Match struct {
	Repositories []Glob
	Tags         []Glob
	Digests      []content.Digest
	Tagging      Tagging
	Kinds        []content.Kind
}

// Tagging is whether manifests have tags.
type Tagging int

// With or without.
const (
	Any Tagging = iota
	Tagged
	Untagged
)

// Keep is the bounds of a rule. Ages are nil, and counts, where there is none.
type Keep struct {
	Age          *time.Duration // since last use
	PushAge      *time.Duration
	CreateAge    *time.Duration
	NewestByPush *int
	NewestByPull *int
	Bytes        *int64 // of each repository
	DropEmpty    bool   // repositories
}

// Budget bounds one run. What is left over goes in the next.
type Budget struct {
	Time      time.Duration // 0: no bound
	Manifests *int64
	Bytes     *int64
}

// The defaults of the contract.
const (
	DefaultBlobGrace    = 24 * time.Hour
	DefaultQuarantine   = 48 * time.Hour
	DefaultUploadAge    = 24 * time.Hour
	DefaultMaxBuildTime = time.Hour
)

// Default is the policy of a janitor that was told no other: in cache/** what was not
// used for keepAge goes; elsewhere what has no tag and was not used for as long.
func Default(keepAge time.Duration) Policy {
	return Policy{
		Rules: []Rule{
			{Name: "cache", Match: &Match{Repositories: Globs("cache/**")}, Keep: &Keep{Age: &keepAge, DropEmpty: true}},
			{Name: "untagged", Match: &Match{Tagging: Untagged}, Keep: &Keep{Age: &keepAge}},
		},
		BlobGrace: DefaultBlobGrace, Quarantine: DefaultQuarantine, UploadAge: DefaultUploadAge, MaxBuildTime: DefaultMaxBuildTime,
	}
}

// Resolve returns the policy as it is applied, without disabled rules. One that does not
// hold is an INVALID_ARGUMENT fault that names the field.
func Resolve(p Policy) (Policy, error) {
	out := p
	out.Rules = nil
	names := map[string]bool{}
	for i, r := range p.Rules {
		if err := r.check(fmt.Sprintf("rules[%d]", i), names); err != nil {
			return Policy{}, err
		}
		names[r.Name] = true
		if !r.Disabled {
			out.Rules = append(out.Rules, r)
		}
	}
	return out, nil
}

func (r Rule) check(field string, names map[string]bool) error {
	switch {
	case r.Name == "":
		return fault.Invalid(field+".name", "", "is empty", "give each rule a name: verdicts and metrics show it")
	case names[r.Name]:
		return fault.Invalid(field+".name", r.Name, "is the name of another rule too", "give each rule its own name")
	case r.Protect && r.Keep != nil:
		return fault.Invalid(field+".keep", "", "has bounds, and protect keeps everything", "leave out keep, or protect")
	}
	if r.Match != nil {
		if err := CheckRepositories(field+".match.repositories", r.Match.Repositories); err != nil {
			return err
		}
		for i, g := range r.Match.Tags {
			if err := g.check(fmt.Sprintf("%s.match.tags[%d]", field, i), tagGlob, "letters, digits and . _ -"); err != nil {
				return err
			}
		}
		if r.Match.Tagging == Untagged && len(r.Match.Tags) > 0 {
			return fault.Invalid(field+".match.tags", r.Match.Tags[0].String(), "names tags, and tagging is UNTAGGED: nothing fits", "leave one of the two out")
		}
	}
	return nil
}

// ReadsConfigs reports whether a policy asks for when things were made, which their
// configurations say.
func ReadsConfigs(p Policy) bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.Keep != nil && r.Keep.CreateAge != nil })
}

// Orders reports whether a policy asks which manifests are the newest, or the longest unused.
func Orders(p Policy) bool {
	return p.MaxBytes != nil || slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return r.Keep != nil && (r.Keep.NewestByPush != nil || r.Keep.NewestByPull != nil || r.Keep.Bytes != nil)
	})
}

// RemovesAll reports whether a resolved policy would keep nothing, whatever there is. One
// without rules keeps every manifest.
func RemovesAll(p Policy) bool {
	if p.MaxBytes != nil && *p.MaxBytes == 0 {
		return true
	}
	for _, r := range p.Rules {
		if r.Keep == nil || !r.Keep.nothing() {
			return false
		}
		if r.Match == nil || r.Match.everything() {
			return true
		}
	}
	return false
}

func (m *Match) everything() bool {
	return len(m.Tags) == 0 && len(m.Digests) == 0 && m.Tagging == Any && len(m.Kinds) == 0 &&
		(len(m.Repositories) == 0 || slices.ContainsFunc(m.Repositories, func(g Glob) bool { return strings.Trim(g.text, "*") == "" && len(g.text) > 1 }))
}

// nothing reports whether bounds leave nothing.
func (k *Keep) nothing() bool {
	newest := k.NewestByPush != nil && *k.NewestByPush > 0 || k.NewestByPull != nil && *k.NewestByPull > 0
	zero := func(d *time.Duration) bool { return d != nil && *d == 0 }
	counts := k.NewestByPush != nil || k.NewestByPull != nil
	return !newest && (zero(k.Age) || zero(k.PushAge) || zero(k.CreateAge) || k.Bytes != nil && *k.Bytes == 0 ||
		counts && k.Age == nil && k.PushAge == nil && k.CreateAge == nil && k.Bytes == nil)
}

// Fits reports whether a rule is about a manifest of a repository.
func (r Rule) Fits(repository string, digest content.Digest, tags []string, kind content.Kind) bool {
	m := r.Match
	if m == nil {
		return true
	}
	return (len(m.Repositories) == 0 || anyGlob(m.Repositories, repository)) &&
		(len(m.Tags) == 0 || slices.ContainsFunc(tags, func(tag string) bool { return anyGlob(m.Tags, tag) })) &&
		(len(m.Digests) == 0 || slices.Contains(m.Digests, digest)) &&
		(m.Tagging == Any || (m.Tagging == Tagged) == (len(tags) > 0)) &&
		(len(m.Kinds) == 0 || slices.Contains(m.Kinds, kind))
}

// Covers reports whether a rule may be about manifests of a repository.
func (r Rule) Covers(repository string) bool {
	return r.Match == nil || len(r.Match.Repositories) == 0 || anyGlob(r.Match.Repositories, repository)
}

// Glob is a pattern of names: "*" is any run of characters but "/", "**" any run of
// characters, and all others are themselves.
type Glob struct {
	text string
	form *regexp.Regexp // which takes time that is linear in the name
}

// Globs are those that are written so.
func Globs(texts ...string) (all []Glob) {
	for _, text := range texts {
		form := strings.NewReplacer(`\*\*`, `.*`, `\*`, `[^/]*`).Replace(regexp.QuoteMeta(strings.ToValidUTF8(text, "\uFFFD")))
		all = append(all, Glob{text, regexp.MustCompile(`(?s)^` + form + `$`)})
	}
	return all
}

// Globs that some name may fit (distribution/reference, "repository name" and "tag").
var (
	repositoryGlob = regexp.MustCompile(`^[a-z0-9._/*-]+$`)
	tagGlob        = regexp.MustCompile(`^[A-Za-z0-9._*-]+$`)
)

// check is an INVALID_ARGUMENT fault for a glob that no name can fit, as one with the "?" or "[0-9]"
// of other dialects: a rule that was meant to protect would protect nothing.
func (g Glob) check(field string, form *regexp.Regexp, has string) error {
	if form.MatchString(g.text) {
		return nil
	}
	return fault.Invalid(field, g.text, "fits no name: names have only "+has,
		`write "*" for any run of characters but "/", and "**" for any run: there are no other wildcards`)
}

// CheckRepositories is an INVALID_ARGUMENT fault for a glob that no repository can fit.
func CheckRepositories(field string, globs []Glob) error {
	for i, g := range globs {
		if err := g.check(fmt.Sprintf("%s[%d]", field, i), repositoryGlob, "lower-case letters, digits and . _ - /"); err != nil {
			return err
		}
	}
	return nil
}

// String is how it is written.
func (g Glob) String() string { return g.text }

// Fits reports whether a name fits.
func (g Glob) Fits(name string) bool { return g.form.MatchString(name) }

func anyGlob(globs []Glob, name string) bool {
	return slices.ContainsFunc(globs, func(g Glob) bool { return g.Fits(name) })
}
