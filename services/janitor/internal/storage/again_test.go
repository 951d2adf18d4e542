package storage_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
)

// Whatever is changed in a storage, one that was looked at before sees it as one that is new
// to it does.
func TestALookSeesEveryChange(t *testing.T) {
	defer storage.SettleAtOnce()()
	l := laid{t, t.TempDir()}
	s := storage.New(l.root)
	var tags, revisions, layers []string // files
	var digests []content.Digest
	repository := func() string { return fmt.Sprintf("r%d", rand.IntN(3)) }
	pick := func(all []string) string { return all[rand.IntN(len(all))] }
	n := 0
	push := func() {
		n++
		layer := l.blob(fmt.Sprint("layer", n))
		r := repository()
		layers = append(layers, l.layer(r, layer))
		d := l.image(r, layer)
		digests = append(digests, d)
		revisions = append(revisions, l.write(string(d), "repositories", r, "_manifests", "revisions", "sha256", string(d[7:]), "link"))
		tags = append(tags, l.tag(r, fmt.Sprint("t", n%4), d))
	}
	push()
	for step, changes := range slices.Repeat([]map[string]func(){{
		"push": push,
		"push again": func() {
			l.write(string(digests[0]), "repositories", "r0", "_manifests", "revisions", "sha256", string(digests[0][7:]), "link")
		},
		"touch a revision":    func() { touch(t, pick(revisions)) },
		"touch a tag":         func() { touch(t, pick(tags)) },
		"move a tag":          func() { l.tag(repository(), "t1", digests[rand.IntN(len(digests))]) },
		"a tag of nothing":    func() { l.tag(repository(), "lost", content.Digest("sha256:"+hexOf(fmt.Sprint("none", n)))) },
		"delete a tag":        func() { _ = os.RemoveAll(filepath.Dir(filepath.Dir(pick(tags)))) },
		"delete a revision":   func() { _ = os.Remove(pick(revisions)) },
		"remove a revision":   func() { _ = os.RemoveAll(filepath.Dir(pick(revisions))) },
		"delete a layer link": func() { _ = os.Remove(pick(layers)) },
		"touch a layer link":  func() { touch(t, pick(layers)) },
		"an orphan":           func() { n++; layers = append(layers, l.layer(repository(), l.blob(fmt.Sprint("orphan", n)))) },
		"a link to nothing":   func() { n++; l.layer(repository(), content.Digest("sha256:"+hexOf(fmt.Sprint("no blob", n)))) },
		"remove a blob": func() {
			d := digests[rand.IntN(len(digests))]
			_ = os.RemoveAll(filepath.Join(l.root, "docker/registry/v2/blobs/sha256", string(d[7:9]), string(d[7:])))
		},
		"an upload": func() { n++; l.write("x", "repositories", repository(), "_uploads", fmt.Sprint("u", n), "data") },
		"end of uploads": func() {
			_ = os.RemoveAll(filepath.Join(l.root, "docker/registry/v2/repositories", repository(), "_uploads"))
		},
		"nothing":      func() {},
		"a repository": func() { n++; l.tag(fmt.Sprintf("new/%d", n), "x", digests[0]) },
	}}, 12) {
		for name, change := range changes { // in any order
			change()
			time.Sleep(15 * time.Millisecond) // a tick of the file system's clock
			for range 2 {
				if diff := gocmp.Diff(sorted(l.inventory(storage.New(l.root))), sorted(l.inventory(s)), cmpopts.IgnoreFields(inventory.Registry{}, "Time", "Took"), cmpopts.EquateEmpty(), cmpopts.EquateComparable(content.Blob{})); diff != "" {
					t.Fatalf("round %d, after %q: %s", step, name, diff)
				}
			}
		}
	}
}

// A look ahead of a run sees each push, and not a tag that something other than a registry has
// moved, which a run sees.
func TestALookAheadSeesEveryPush(t *testing.T) {
	defer storage.SettleAtOnce()()
	const image = `{"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[],"annotations":{"n":%q}}`
	old := time.Now().Add(-time.Hour).Truncate(time.Second)
	for name, c := range map[string]struct {
		between time.Duration // from the revision's link to the first look
		push    bool          // the revision's link, too
		sees    bool
	}{
		"pushed again, long after":                   {time.Hour, true, true},
		"moved by hand, long after":                  {time.Hour, false, false},
		"the tag of a push that the look was within": {time.Minute, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := laid{t, t.TempDir()}
			s := storage.New(l.root)
			age := func(file string, at time.Time) {
				if err := os.Chtimes(file, at, at); err != nil {
					t.Fatal(err)
				}
			}
			link := func(d content.Digest) string {
				return filepath.Join(l.root, "docker/registry/v2/repositories/app/_manifests/revisions/sha256", string(d[7:]), "link")
			}
			first, second := l.revision("app", fmt.Sprintf(image, "1")), l.revision("app", fmt.Sprintf(image, "2"))
			for _, d := range []content.Digest{first, second} {
				age(link(d), time.Now().Add(-c.between))
			}
			age(l.tag("app", "latest", first), old)
			time.Sleep(15 * time.Millisecond) // a tick of the file system's clock
			leads := func(look inventory.Look) content.Digest {
				r, err := s.Inventory(t.Context(), look)
				if err != nil || len(r.Repositories) != 1 || len(r.Repositories[0].Tags) != 1 {
					t.Fatalf("%+v, %v", r, err)
				}
				return r.Repositories[0].Tags[0].Digest
			}
			for range 2 {
				if got := leads(inventory.Look{Ahead: true}); got != first {
					t.Fatalf("before: %s", got)
				}
			}
			if c.push {
				l.write(string(second), "repositories/app/_manifests/revisions/sha256", string(second[7:]), "link")
			}
			l.tag("app", "latest", second)
			time.Sleep(6 * time.Millisecond)
			if got := leads(inventory.Look{Ahead: true}); (got == second) != c.sees {
				t.Errorf("ahead: %s", got)
			}
			if got := leads(inventory.Look{}); got != second {
				t.Errorf("by a run: %s", got)
			}
		})
	}
}

func touch(t *testing.T, file string) {
	t.Helper()
	now := time.Now()
	_ = os.Chtimes(file, now, now) // it may be gone
}

func sorted(r inventory.Registry) inventory.Registry {
	slices.SortFunc(r.Orphans, func(a, b inventory.Orphan) int { return cmp.Compare(a.Digest, b.Digest) })
	for i := range r.Repositories {
		slices.SortFunc(r.Repositories[i].Dangling, func(a, b inventory.Link) int { return cmp.Compare(a.Digest, b.Digest) })
	}
	return r
}
