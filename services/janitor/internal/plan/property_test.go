package plan_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

func drawRegistry(t *rapid.T) inventory.Registry {
	var out inventory.Registry
	for i := range rapid.IntRange(1, 3).Draw(t, "repositories") {
		r := inventory.Repository{Name: fmt.Sprintf("%s/%d", rapid.SampledFrom([]string{"cache", "app"}).Draw(t, "name"), i)}
		for j := range rapid.IntRange(0, 8).Draw(t, "manifests") {
			id := content.Digest(fmt.Sprintf("m%d-%d", rapid.IntRange(0, 1).Draw(t, "shared")*(i+1), j))
			m := man(string(id), rapid.IntRange(0, 20).Draw(t, "days"))
			for range rapid.IntRange(0, 3).Draw(t, "blobs") {
				b := fmt.Sprintf("b%d", rapid.IntRange(1, 9).Draw(t, "blob"))
				if !slices.ContainsFunc(m.Blobs, func(have content.Blob) bool { return string(have.Digest()) == b }) {
					m.Blobs = append(m.Blobs, man("", 0, b).Blobs...)
				}
			}
			if j > 0 { // what it lists or refers to is older, as digests have it
				other := r.Manifests[rapid.IntRange(0, j-1).Draw(t, "other")].Digest
				switch rapid.IntRange(0, 3).Draw(t, "kind") {
				case 0:
					m.Of, m.Children = content.Index, []content.Digest{other}
				case 1:
					m.Of, m.Subject = content.Referrer, other
				}
			}
			if rapid.IntRange(0, 2).Draw(t, "tagged") == 0 {
				r.Tags = append(r.Tags, tag(fmt.Sprint("t", j), string(id)))
			}
			r.Manifests = append(r.Manifests, m)
		}
		out.Repositories = append(out.Repositories, r)
	}
	return out
}

func drawPolicy(t *rapid.T) policy.Policy {
	var p policy.Policy
	for i := range rapid.IntRange(0, 3).Draw(t, "rules") {
		r := policy.Rule{Name: fmt.Sprint("r", i)}
		switch rapid.IntRange(0, 3).Draw(t, "match") {
		case 0:
			r.Match = &policy.Match{Repositories: policy.Globs("cache/**")}
		case 1:
			r.Match = &policy.Match{Tagging: policy.Untagged}
		case 2:
			r.Match = &policy.Match{Tags: policy.Globs("t1*", "t3")}
		}
		switch rapid.IntRange(0, 4).Draw(t, "keep") {
		case 0:
			r.Protect = true
		case 1:
			r.Keep = &policy.Keep{Age: ptr(time.Duration(rapid.IntRange(0, 20).Draw(t, "age")) * day)}
		case 2:
			r.Keep = &policy.Keep{NewestByPush: ptr(rapid.IntRange(0, 3).Draw(t, "newest"))}
		case 3:
			r.Keep = &policy.Keep{Bytes: ptr(int64(rapid.IntRange(0, 40).Draw(t, "bytes")))}
		}
		p.Rules = append(p.Rules, r)
	}
	if rapid.IntRange(0, 3).Draw(t, "budget") == 0 {
		p.Budget.Manifests = ptr(int64(rapid.IntRange(0, 6).Draw(t, "most")))
	}
	if rapid.Bool().Draw(t, "bounded") {
		p.MaxBytes = ptr(int64(rapid.IntRange(0, 60).Draw(t, "max")))
	}
	return p
}

// bytesOf are those of all blobs that are held by manifests which keep says are left, each
// counted once.
func bytesOf(r inventory.Registry, keep func(repository string, digest content.Digest) bool) (sum int64) {
	held := map[content.Digest]int64{}
	for _, repository := range r.Repositories {
		for _, m := range repository.Manifests {
			if keep(repository.Name, m.Digest) {
				held[m.Digest] = m.Bytes
				for _, b := range m.Blobs {
					held[b.Digest()] = b.Bytes
				}
			}
		}
	}
	for _, n := range held {
		sum += n
	}
	return sum
}

// Whatever the registry and the policy: what an index that stays lists, stays, and so does
// what refers to a subject that stays; what is protected stays; the bytes that the plan
// frees are those that are held no more; and nothing depends on the order of the input.
func TestPlansHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := plan.Input{Registry: drawRegistry(t), Policy: drawPolicy(t), Now: now}
		p := plan.Make(in)
		type name struct{ repository, digest string }
		stays := map[name]bool{}
		for _, v := range p.Verdicts {
			if v.Explain == "" {
				t.Fatalf("%+v: without a word", v)
			}
			stays[name{v.Repository, v.Digest}] = !v.Remove
			if v.Reason == plan.Protected && v.Remove {
				t.Fatalf("%+v", v)
			}
		}
		kept := func(repository string, digest content.Digest) bool { return stays[name{repository, string(digest)}] }
		for _, r := range in.Registry.Repositories {
			for _, m := range r.Manifests {
				if _, told := stays[name{r.Name, string(m.Digest)}]; !told {
					t.Fatalf("%s/%s: no verdict", r.Name, m.Digest)
				}
				for _, child := range m.Children {
					if kept(r.Name, m.Digest) && !kept(r.Name, child) {
						t.Fatalf("%s: %s stays, and its part %s goes: %s", r.Name, m.Digest, child, said(p))
					}
				}
				if m.Subject != "" && kept(r.Name, m.Subject) && !kept(r.Name, m.Digest) {
					t.Fatalf("%s: %s stays, and %s, which refers to it, goes: %s", r.Name, m.Subject, m.Digest, said(p))
				}
			}
		}
		if most := in.Policy.Budget.Manifests; most != nil && p.Removes.Manifests > *most {
			t.Fatalf("%d go, with a budget of %d", p.Removes.Manifests, *most)
		}
		all := bytesOf(in.Registry, func(string, content.Digest) bool { return true })
		left := bytesOf(in.Registry, kept)
		if all-left != p.Removes.Bytes || left != p.Keeps.Bytes {
			t.Fatalf("frees %d and keeps %d, of %d with %d left: %s", p.Removes.Bytes, p.Keeps.Bytes, all, left, said(p))
		}

		for i := range in.Registry.Repositories {
			m := in.Registry.Repositories[i].Manifests
			rand.Shuffle(len(m), func(a, b int) { m[a], m[b] = m[b], m[a] })
			tags := in.Registry.Repositories[i].Tags
			rand.Shuffle(len(tags), func(a, b int) { tags[a], tags[b] = tags[b], tags[a] })
		}
		repositories := in.Registry.Repositories
		rand.Shuffle(len(repositories), func(a, b int) { repositories[a], repositories[b] = repositories[b], repositories[a] })
		if diff := cmp.Diff(said(p), said(plan.Make(in))); diff != "" {
			t.Fatalf("by the order of the input: %s", diff)
		}
		if diff := cmp.Diff(said(p), said(plan.Make(in))); diff != "" {
			t.Fatalf("by the plans before: %s", diff)
		}
	})
}

// There is one verdict for each thing that the plan is about: first on what goes, in the order of
// going, manifests before the rest, then on what stays, manifests by repository and digest.
func TestVerdictsAreInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := plan.Input{Registry: drawRegistry(t), Policy: drawPolicy(t), Now: now}
		var want []string
		if rapid.Bool().Draw(t, "within") {
			in.Within = func(repository string) bool { return repository[0] == 'c' }
		} else {
			for i := range rapid.IntRange(0, 4).Draw(t, "orphans") {
				o := inventory.Orphan{Digest: content.Digest(fmt.Sprint("o", i)), Changed: now.Add(-time.Duration(rapid.IntRange(0, 2).Draw(t, "old")) * day)}
				in.Registry.Orphans = append(in.Registry.Orphans, o)
				want = append(want, "@"+string(o.Digest))
			}
			in.Policy.BlobGrace = day
		}
		for i := range in.Registry.Repositories {
			r := &in.Registry.Repositories[i]
			if in.Within != nil && !in.Within(r.Name) {
				continue
			}
			for _, m := range r.Manifests {
				want = append(want, r.Name+"@"+string(m.Digest))
			}
			for k := range rapid.IntRange(0, 2).Draw(t, "lost") {
				name := fmt.Sprint("lost", k)
				r.Tags = append(r.Tags, inventory.Tag{Name: name, Lost: "none"})
				want = append(want, r.Name+"@"+name)
			}
		}
		p := plan.Make(in)
		var got, stay []string
		var last plan.Verdict
		for i, v := range p.Verdicts {
			name := v.Repository + "@" + v.Digest
			got = append(got, name)
			if v.Remove && v.Order != int64(i)+1 || !v.Remove && v.Order != 0 || v.Remove && i > 0 && !last.Remove {
				t.Fatalf("%+v is at %d: %s", v, i, said(p))
			}
			if i > 0 && v.Remove == last.Remove && v.Kind == plan.Manifest && last.Kind != plan.Manifest {
				t.Fatalf("%+v comes after a %s: %s", v, last.Kind, said(p))
			}
			if !v.Remove && v.Kind == plan.Manifest {
				stay = append(stay, name)
			}
			last = v
		}
		if !slices.IsSorted(stay) {
			t.Fatalf("what stays: %v", stay)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("verdicts on %v, want those on %v", got, want)
		}
		if n := len(p.Removals()); n > 0 && (!p.Verdicts[n-1].Remove || n < len(p.Verdicts) && p.Verdicts[n].Remove) {
			t.Fatalf("%d go: %s", n, said(p))
		}
	})
}
