package enforce_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// rules are those of the model, in words that it can compute with.
func modelPolicy(protects bool) policy.Policy {
	week, two := 7*day, 2*day
	p := policy.Default(week)
	p.Rules = []policy.Rule{
		{Name: "prod", Match: &policy.Match{Repositories: policy.Globs("prod")}, Protect: true},
		{Name: "nightly", Match: &policy.Match{Tags: policy.Globs("nightly-*")}, Keep: &policy.Keep{Age: &two}},
		{Name: "v", Match: &policy.Match{Tags: policy.Globs("v*")}, Protect: protects, Keep: map[bool]*policy.Keep{false: {Age: &week}}[protects]},
		{Name: "cache", Match: &policy.Match{Repositories: policy.Globs("cache/**")}, Keep: &policy.Keep{Age: &week}},
		{Name: "untagged", Match: &policy.Match{Tagging: policy.Untagged}, Keep: &policy.Keep{Age: &week}},
	}
	return p
}

// model says what has to stay.
type model struct {
	*world
	protects bool // v*
}

// used is when a manifest, or something that it lists, was used last.
func (m model) used(d *doc, seen map[*doc]bool) time.Time {
	if seen[d] {
		return time.Time{}
	}
	seen[d] = true
	last := d.pushed
	for _, at := range append(m.pulls(d), d.pulled) {
		if at.After(last) {
			last = at
		}
	}
	for _, child := range d.children {
		if part := m.docs[d.repository+"@"+child]; part != nil {
			if at := m.used(part, seen); at.After(last) {
				last = at
			}
		}
	}
	return last
}

func (m model) pulls(d *doc) (all []time.Time) {
	for _, name := range d.layers {
		if short := m.stored[name]; short != "" {
			name = short
		}
		all = append(all, m.blobs["pull "+d.repository+"@"+name])
	}
	return all
}

// own reports whether a manifest stays for itself: by its tags, or for having none.
func (m model) own(d *doc) (stays, tagged bool) {
	age := m.at.Sub(m.used(d, map[*doc]bool{})) + time.Minute
	for tag, digest := range m.tags[d.repository] {
		if digest != d.digest || strings.HasPrefix(tag, "sha256-") {
			continue
		}
		tagged = true
		cache := strings.HasPrefix(d.repository, "cache/")
		switch {
		case strings.HasPrefix(tag, "nightly-"):
			stays = stays || age < 2*day
		case strings.HasPrefix(tag, "v"):
			stays = stays || m.protects || age < 7*day
		case !cache || age < 7*day:
			stays = true
		}
	}
	protected := d.repository == "mirror" && exists(m.path("repositories/prod"))
	return stays || protected || !tagged && age < 7*day, tagged
}

// owners are the manifests by which another lives.
func (m model) owners(d *doc) (all []*doc) {
	for _, other := range m.in(d.repository) {
		signs := m.tags[d.repository]["sha256-"+other.digest[7:]+".sig"] == d.digest
		if other != d && (slices.Contains(other.children, d.digest) || d.subject == other.digest || signs) {
			all = append(all, other)
		}
	}
	return all
}

// kept are the manifests that have to stay: those that do for themselves, and what lives by them.
func (m model) kept() map[*doc]bool {
	kept := map[*doc]bool{}
	for _, repository := range repositories {
		all := m.in(repository)
		doubt := slices.ContainsFunc(all, func(d *doc) bool { return d.unread })
		for _, d := range all {
			stays, tagged := m.own(d)
			if (stays && (tagged || len(m.owners(d)) == 0)) || d.unread || doubt && !tagged {
				kept[d] = true
			}
		}
		for range all {
			for _, d := range all {
				kept[d] = kept[d] || slices.ContainsFunc(m.owners(d), func(o *doc) bool { return kept[o] })
			}
		}
	}
	return kept
}

// check compares what is stored with what had to stay.
func (m model) check(t *testing.T, kept map[*doc]bool) {
	t.Helper()
	after := m.kept() // clients may have deleted some as the run went on
	for d, stays := range kept {
		if stays && after[d] && !m.has(d.repository, d.digest) {
			m.fail(t, "%s went", m.describe(d))
		}
	}
	m.forget()
	for _, repository := range repositories {
		for _, d := range m.in(repository) { // of what is left, all is whole
			for _, name := range append(slices.Clone(d.layers), d.digest) {
				short := name
				if stored := m.stored[name]; stored != "" {
					short = stored
				}
				if !exists(m.data(short)) || name != d.digest && !exists(m.link(repository, name)) {
					m.fail(t, "%s@%s lacks %s", repository, d.digest, name)
				}
			}
			for _, child := range d.children {
				if !m.has(repository, child) {
					m.fail(t, "%s@%s lacks its part %s", repository, d.digest, child)
				}
			}
		}
	}
	for key, at := range m.blobs { // blobs that were uploaded a short while ago
		repository, digest, _ := strings.Cut(key, "@")
		if !strings.HasPrefix(key, "pull ") && m.at.Sub(at) < policy.DefaultBlobGrace-time.Minute && (!exists(m.data(digest)) || !exists(m.link(repository, digest))) {
			m.fail(t, "%s in %s went", digest, repository)
		}
	}
}

// describe says what the model knows of a manifest.
func (m model) describe(d *doc) string {
	stays, tagged := m.own(d)
	text := fmt.Sprintf("%s@%s stays for itself: %t, tagged: %t, used %s ago", d.repository, d.digest, stays, tagged, m.at.Sub(m.used(d, map[*doc]bool{})))
	for tag, digest := range m.tags[d.repository] {
		if digest == d.digest {
			text += ", tag " + tag
		}
	}
	for _, o := range m.owners(d) {
		if len(text) < 2000 {
			text += ", of " + m.describe(o)
		}
	}
	return text
}

func (m model) fail(t *testing.T, format string, args ...any) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	t.Fatalf(format+"\n%s", append(args, strings.Join(m.log[max(0, len(m.log)-60):], "\n"))...)
}

// change does something that clients of a registry do.
func (m model) change(t *testing.T) {
	t.Helper()
	w, repository := m.world, pick(m.world, repositories)
	tag := pick(w, []string{"", "", fmt.Sprint("nightly-", w.rand.IntN(3)), fmt.Sprint("v", w.rand.IntN(3)), fmt.Sprint("t", w.rand.IntN(2))})
	all := w.in(repository)
	switch n := w.rand.IntN(22); {
	case n < 6:
		w.image(repository, tag)
	case n < 9:
		w.index(repository, tag)
	case n < 11:
		w.sign(repository)
	case n < 12:
		w.upload(repository, fmt.Sprint("layer ", w.rand.IntN(6)), w.rand.IntN(2) == 0)
	case n < 15 && len(all) > 0:
		d := pick(w, all)
		d.pulled = w.at
		w.use(repository, lastuse.ByDigest(content.Digest(d.digest)))
		w.note("pull %s@%.14s", repository, d.digest)
	case n < 17 && len(all) > 0:
		if d := pick(w, all); len(d.layers) > 0 {
			name := pick(w, d.layers)
			if short := w.stored[name]; short != "" {
				name = short
			}
			w.blobs["pull "+repository+"@"+name] = w.at
			w.use(repository, lastuse.ByBlob(content.Digest(name)))
			w.note("pull of blob %.14s in %s", name, repository)
		}
	case n < 19 && len(all) > 0 && tag != "":
		d := pick(w, all)
		for _, name := range slices.Sorted(maps.Keys(w.tags[repository])) {
			if other := w.docs[repository+"@"+w.tags[repository][name]]; other != nil && w.rand.IntN(2) == 0 {
				d = other // a second tag
			}
		}
		w.tag(repository, tag, d.digest)
		w.note("tag %s:%s to %.14s", repository, tag, d.digest)
	case n < 20:
		w.delete(repository)
	case n < 21 && w.rand.IntN(4) == 0:
		w.n++
		w.store(&doc{repository: repository, unread: true}, fmt.Sprintf(`{"unread":%d}`, w.n), tag)
	case w.rand.IntN(8) == 0:
		w.alias()
	}
}

// claim pushes an index of what need not stay, while a run removes that.
func (m model) claim() {
	kept, repository := m.kept(), pick(m.world, repositories)
	for _, d := range m.in(repository) {
		if !kept[d] && m.has(repository, d.digest) {
			m.indexOf(repository, "t0", d)
			m.note("which claims %.14s", d.digest)
			return
		}
	}
}

// Whatever clients and operators do between and during runs, what has to stay by a slow model stays,
// and what is left is whole. It does 2,000 steps, or 100 for each of KILN_SOAK_ROUNDS.
func TestRuns_RemoveNothingThatTheModelKeeps(t *testing.T) {
	seeds := uint64(8)
	if rounds, err := strconv.ParseUint(os.Getenv("KILN_SOAK_ROUNDS"), 10, 32); err == nil {
		seeds = rounds * 100 / stepsOfSeed
	}
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			modelSteps(t, seed, stepsOfSeed)
		})
	}
}

const stepsOfSeed = 250

func modelSteps(t *testing.T, seed uint64, steps int) {
	t.Helper()
	w := newWorld(newDisk(t), seed)
	m, removed := model{w, true}, 0
	e, store := w.engine(modelPolicy(true))
	w.use = func(repository string, name lastuse.Name) {
		if _, err := store.RecordUses(t.Context(), []lastuse.Use{{Repository: repository, Name: name, At: w.at, Heard: w.at.Add(1)}}); err != nil {
			t.Error(err)
		}
	}
	inRun, runs := false, 0
	open := func() {
		e, _ = w.engine(modelPolicy(true))
		e.Settle, e.Now = time.Millisecond, func() time.Time { return w.at }
		e.NewID = func() string {
			runs++
			return fmt.Sprintf("run-%05d", runs)
		}
		e.State = &asked{State: store, leases: func(int) {
			switch n := w.rand.IntN(8); {
			case inRun && n < 2:
				m.change(t)
			case inRun && n < 5:
				m.claim()
			}
		}}
	}
	open()
	for range steps {
		m.change(t)
		w.at = w.at.Add(time.Duration(w.rand.IntN(20*60)) * time.Minute)
		switch w.rand.IntN(10) {
		case 0:
			open() // a restart
		case 1, 2:
			kept := m.kept()
			p := modelPolicy(m.protects)
			order := enforce.Order{Trigger: run.Demand, Policy: &p, Force: true, All: true}
			if w.rand.IntN(2) == 0 {
				made, err := e.Plan(t.Context(), enforce.Ask{Policy: &p})
				if err != nil {
					t.Fatal(err)
				}
				order = enforce.Order{Trigger: run.Demand, PlanDigest: made.Digest, Force: true, All: true}
				m.change(t)
				kept = m.kept()
			}
			inRun = true
			w.note("run, %d have to stay", len(kept))
			out, err := e.RunOnce(context.WithoutCancel(t.Context()), order, func(ev enforce.Event) {
				if v := ev.Removed; v != nil && v.Kind == plan.Manifest {
					w.note("removed %s@%.14s %s: %s", v.Repository, v.Digest, v.Reason, v.Explain)
				}
			})
			inRun = false
			// A run ends as what cannot be read is pushed meanwhile.
			if err != nil || out.State != run.Succeeded && out.State != run.Partial && out.State != run.Failed {
				m.fail(t, "%v, %s, %v", err, out.State, out.Err)
			}
			removed += int(out.Removed.Manifests)
			m.check(t, kept)
		case 3:
			m.protects = !m.protects
		}
	}
	t.Logf("%d manifests went", removed)
	if removed == 0 {
		t.Error("nothing went: the test shows nothing")
	}
}
