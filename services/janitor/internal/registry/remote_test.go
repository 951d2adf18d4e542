package registry_test

import (
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	ggreg "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	ggremote "github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/registry"
	"github.com/kilnbuild/kiln/services/janitor/internal/remote"
)

// flaky is a registry that fails requests whose path ends in a text.
type flaky struct {
	*httptest.Server
	mu      sync.Mutex
	suffix  string // empty: none fails
	fail    http.HandlerFunc
	deleted []string
}

func newFlaky(t *testing.T) *flaky {
	t.Helper()
	f := &flaky{}
	inner := ggreg.New(ggreg.Logger(slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)))
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.Method == http.MethodDelete {
			f.deleted = append(f.deleted, r.URL.Path)
		}
		if f.suffix != "" && strings.HasSuffix(r.URL.Path, f.suffix) {
			f.fail(w, r)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// breaks has requests fail from now on; with an empty suffix none.
func (f *flaky) breaks(suffix string, how http.HandlerFunc) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.suffix, f.fail = suffix, how
}

func (f *flaky) host() string { return strings.TrimPrefix(f.URL, "http://") }

func (f *flaky) view(t *testing.T) *remote.View {
	t.Helper()
	c, err := registry.New(&configv1.RegistryConfig{Address: f.host(), PlainHttp: true}, telemetry.Discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return remote.New(c)
}

func (f *flaky) push(t *testing.T, ref string, what ggremote.Taggable) v1.Hash {
	t.Helper()
	tag, err := name.NewTag(f.host()+"/"+ref, name.Insecure)
	if err == nil {
		err = ggremote.Push(tag, what)
	}
	if err != nil {
		t.Fatal(err)
	}
	desc, err := ggremote.Head(tag)
	if err != nil {
		t.Fatal(err)
	}
	return desc.Digest
}

func image(t *testing.T) v1.Image {
	t.Helper()
	i, err := random.Image(64, 1)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func index(images ...v1.Image) v1.ImageIndex {
	var out v1.ImageIndex = empty.Index
	for _, i := range images {
		out = mutate.AppendManifests(out, mutate.IndexAddendum{Add: i})
	}
	return out
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// cut sends less than it has announced.
func cut(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", string(content.OCIIndex))
	w.Header().Set("Content-Length", "1000")
	_, _ = io.WriteString(w, `{"schemaVersion":2,"manifests":[`) // the client sees the rest missing
}

// Only a 404 is absence: after any other failure nothing of the repository is seen, and so nothing of
// it goes; other repositories are seen whole.
func TestInventory_LeavesOutWhatCannotBeRead(t *testing.T) {
	f := newFlaky(t)
	shared := image(t)
	f.push(t, "app:old", index(shared, image(t)))
	held := f.push(t, "app:new", index(shared, image(t)))
	f.push(t, "other:v1", image(t))
	for what, suffix := range map[string]string{"an index": held.String(), "a tag": "manifests/new", "the list of tags": "app/tags/list"} {
		for why, how := range map[string]http.HandlerFunc{"429": status(429), "500": status(500), "503": status(503), "403": status(403), "a cut body": cut} {
			f.breaks(suffix, how)
			r, warnings, err := f.view(t).Inventory(t.Context(), false)
			if err != nil || len(r.Repositories) != 1 || r.Repositories[0].Name != "other" || len(warnings) != 1 || !strings.Contains(warnings[0], "app") {
				t.Errorf("%s for %s: %+v, %q, %v", why, what, r.Repositories, warnings, err)
			}
		}
	}
	f.breaks(held.String(), status(404))
	if r, warnings, err := f.view(t).Inventory(t.Context(), false); err != nil || len(r.Repositories) != 2 || len(warnings) > 0 {
		t.Errorf("404: %+v, %q, %v", r.Repositories, warnings, err)
	}
}

// A signature stays while its subject is in the registry, though no tag leads to it, or may be in a
// repository that cannot be read.
func TestInventory_KeepsSignaturesOfWhatIsNotSeen(t *testing.T) {
	f := newFlaky(t)
	one := image(t)
	subject := f.push(t, "app:latest", one)
	signature := strings.Replace(subject.String(), ":", "-", 1) + ".sig"
	f.push(t, "app:"+signature, image(t))
	f.push(t, "signatures:"+signature, image(t))
	f.push(t, "app:latest", image(t)) // whoever uses the one before has its digest
	week := 7 * 24 * time.Hour
	untagged := policy.Rule{Name: "untagged", Match: &policy.Match{Tagging: policy.Untagged}, Keep: &policy.Keep{Age: &week}}
	goes := func() (gone []string) {
		t.Helper()
		r, _, err := f.view(t).Inventory(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		for i := range r.Repositories {
			for k := range r.Repositories[i].Manifests {
				r.Repositories[i].Manifests[k].Pushed = time.Now().Add(-2 * week)
			}
		}
		made := plan.Make(plan.Input{Registry: r, Now: time.Now(), Policy: policy.Policy{Rules: []policy.Rule{untagged}}})
		for _, v := range made.Removals() {
			gone = append(gone, v.Repository)
		}
		return gone
	}
	if gone := goes(); len(gone) > 0 {
		t.Errorf("the subject has no tag: of %q", gone)
	}
	f.breaks("app/tags/list", status(503))
	if gone := goes(); len(gone) > 0 {
		t.Errorf("the repository of the subject cannot be read: of %q", gone)
	}
	f.breaks("manifests/"+subject.String(), status(404))
	if gone := goes(); len(gone) != 2 {
		t.Errorf("the subject is gone: of %q", gone)
	}
}

// A tag or an index that came after the plan keeps what it leads to, and so does one that cannot be
// read.
func TestDelete_ReadsTagsAndIndexesAgain(t *testing.T) {
	f := newFlaky(t)
	one := image(t)
	digest := f.push(t, "app:old", one)
	v := f.view(t)
	if _, _, err := v.Inventory(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	stays := func(why string, broken bool) {
		t.Helper()
		deleted, err := v.Delete(t.Context(), "app", content.Digest(digest.String()), []string{"old"})
		if deleted || len(f.deleted) > 0 || errors.Is(err, content.ErrBroken) != broken || (err != nil) != broken {
			t.Errorf("%s: %v, %v, %v", why, deleted, err, f.deleted)
		}
	}
	remove := func(ref string) {
		t.Helper()
		tag, err := name.ParseReference(f.host()+"/"+ref, name.Insecure)
		if err == nil {
			err = ggremote.Delete(tag)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.deleted = nil
	}
	f.push(t, "app:release", one)
	stays("a new tag leads to it", false)
	remove("app:release")
	list := f.push(t, "app:list", index(one))
	f.breaks(list.String(), status(503))
	stays("a new index cannot be read", true)
	f.breaks("manifests/list", status(429))
	stays("a tag cannot be read", true)
	f.breaks("", nil)
	stays("a new index lists it", false)
	remove("app:list")
	remove("app@" + list.String())
	if deleted, err := v.Delete(t.Context(), "app", content.Digest(digest.String()), []string{"old"}); !deleted || err != nil || !slices.Contains(f.deleted, "/v2/app/manifests/"+digest.String()) {
		t.Errorf("%v, %v, %v", deleted, err, f.deleted)
	}
}
