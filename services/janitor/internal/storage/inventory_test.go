package storage_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
)

// laid is a storage that a test lays out.
type laid struct {
	t    *testing.T
	root string
}

func (l laid) write(body string, path ...string) string {
	l.t.Helper()
	file := filepath.Join(append([]string{l.root, "docker/registry/v2"}, path...)...)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return file
}

func hexOf(body string) string {
	sum := sha256.Sum256([]byte(body))
	return hex.EncodeToString(sum[:])
}

func (l laid) blob(body string) content.Digest {
	name := hexOf(body)
	l.write(body, "blobs", "sha256", name[:2], name, "data")
	return content.Digest("sha256:" + name)
}

func (l laid) layer(repository string, digest content.Digest) string {
	return l.write(string(digest), "repositories", repository, "_layers", "sha256", strings.TrimPrefix(string(digest), "sha256:"), "link")
}

// image is a manifest of a config and layers, with its revision.
func (l laid) image(repository string, layers ...content.Digest) content.Digest {
	config := l.blob(`{"created":"2026-01-01T00:00:00Z"}`)
	var list []string
	for _, d := range layers {
		list = append(list, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":5}`, d))
	}
	return l.revision(repository, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":34},"layers":[%s]}`,
		config, strings.Join(list, ",")))
}

func (l laid) revision(repository, body string) content.Digest {
	digest := l.blob(body)
	l.write(string(digest), "repositories", repository, "_manifests", "revisions", "sha256", strings.TrimPrefix(string(digest), "sha256:"), "link")
	return digest
}

func (l laid) tag(repository, name string, digest content.Digest) string {
	return l.write(string(digest), "repositories", repository, "_manifests", "tags", name, "current", "link")
}

func (l laid) inventory(s *storage.Storage) inventory.Registry {
	l.t.Helper()
	r, err := s.Inventory(l.t.Context(), inventory.Look{})
	if err != nil {
		l.t.Fatal(err)
	}
	return r
}

func orphansOf(r inventory.Registry) (all []content.Digest) {
	for _, o := range r.Orphans {
		all = append(all, o.Digest)
	}
	slices.Sort(all)
	return all
}

// Storages as they are found, whole and broken.
func TestInventory(t *testing.T) {
	l := laid{t, t.TempDir()}
	s := storage.New(l.root)
	if r := l.inventory(s); len(r.Repositories)+len(r.Orphans) != 0 {
		t.Errorf("nothing was pushed yet: %+v", r)
	}

	one, two := l.blob("layer one"), l.blob("layer two")
	live := l.image("team/app", one, two)
	pushed := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := os.Chtimes(l.tag("team/app", "v1", live), pushed, pushed); err != nil {
		t.Fatal(err)
	}
	l.tag("team/app", "nowhere", "sha256:"+content.Digest(hexOf("not there")))
	l.tag("team/app", "other", "sha512:"+content.Digest(strings.Repeat("a", 128))) // of an algorithm that is left alone
	// Deleted by the API: the directory is there, its link is not.
	gone := l.write("x", "repositories/team/app/_manifests/revisions/sha256", hexOf("deleted"), "link")
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	empty := l.blob("")
	l.write("x", "repositories/bad/_manifests/revisions/sha256", strings.TrimPrefix(string(empty), "sha256:"), "link")
	truncated := l.revision("bad", `{"layers":[`)
	missing := "sha256:" + content.Digest(hexOf("bytes that are gone"))
	l.write("x", "repositories/bad/_manifests/revisions/sha256", strings.TrimPrefix(string(missing), "sha256:"), "link")
	l.write("data", "repositories/up/_uploads/id-1/data")
	l.write("2026-01-01T00:00:00Z", "repositories/up/_uploads/id-1/startedat")
	// A repository of mounted layers only, which no catalog has; and one inside another.
	orphan := l.blob("nothing names it")
	l.layer("mounted", orphan)
	l.layer("team/app/deep", orphan)
	index := l.blob("a part of an index, of no revision")
	foreign := l.blob("a foreign layer that is here")
	l.revision("team/app", fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"digest":%q,"size":1}]}`, index))
	l.revision("team/app", fmt.Sprintf(`{"layers":[{"digest":%q,"size":1,"urls":["https://example.org/f"]}]}`, foreign))
	// A directory of a digest without data, and names that are none.
	nothing := hexOf("no data")
	if err := os.MkdirAll(filepath.Join(l.root, "docker/registry/v2/blobs/sha256", nothing[:2], nothing), 0o755); err != nil {
		t.Fatal(err)
	}
	l.write("x", "blobs/sha256/zz/stray/data")

	r := l.inventory(s)
	var names []string
	byName := map[string]inventory.Repository{}
	for _, repository := range r.Repositories {
		names = append(names, repository.Name)
		byName[repository.Name] = repository
	}
	if diff := cmp.Diff([]string{"bad", "mounted", "team/app", "team/app/deep", "up"}, names); diff != "" {
		t.Fatal(diff)
	}
	app := byName["team/app"]
	if len(app.Manifests) != 3 || len(app.Tags) != 2 || app.Tags[0].Name != "nowhere" || app.Tags[0].Digest != "" || app.Tags[1].Digest != live || !app.Tags[1].Moved.Equal(pushed) {
		t.Errorf("%+v", app)
	}
	if i := slices.IndexFunc(app.Manifests, func(m inventory.Manifest) bool { return m.Digest == live }); i < 0 || app.Manifests[i].Of != content.Image ||
		len(app.Manifests[i].Blobs) != 3 || time.Since(app.Manifests[i].Pushed) > time.Minute {
		t.Errorf("%+v", app.Manifests)
	}
	doubts := map[content.Digest]inventory.Doubt{}
	for _, d := range byName["bad"].Doubts {
		doubts[d.Digest] = d
	}
	if len(doubts) != 3 || doubts[empty].Bytes != 0 || doubts[empty].Missing || doubts[truncated].Bytes == 0 || !doubts[missing].Missing || doubts[missing].Message == "" {
		t.Errorf("%+v", doubts)
	}
	if up := byName["up"].Uploads; len(up) != 1 || up[0].ID != "id-1" || up[0].Bytes != 4 || time.Since(up[0].Changed) > time.Minute {
		t.Errorf("%+v", up)
	}
	want := []content.Digest{orphan, content.Digest("sha256:" + nothing)}
	slices.Sort(want)
	if diff := cmp.Diff(want, orphansOf(r)); diff != "" {
		t.Error(diff)
	}
	if i := slices.IndexFunc(r.Orphans, func(o inventory.Orphan) bool { return o.Digest == orphan }); i < 0 ||
		!slices.Equal(r.Orphans[i].Repositories, []string{"mounted", "team/app/deep"}) || r.Orphans[i].Bytes != int64(len("nothing names it")) {
		t.Errorf("%+v", r.Orphans)
	}
}

// A manifest that was read is not read again, and one that is gone is forgotten.
func TestInventoryRemembers(t *testing.T) {
	l := laid{t, t.TempDir()}
	s := storage.New(l.root)
	layer := l.blob("layer")
	m := l.image("a", layer)
	l.inventory(s)
	name := strings.TrimPrefix(string(m), "sha256:")
	data := filepath.Join(l.root, "docker/registry/v2/blobs/sha256", name[:2], name, "data")
	if err := os.WriteFile(data, []byte("not what it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := l.inventory(s); len(r.Repositories[0].Manifests) != 1 || len(r.Orphans) != 0 {
		t.Errorf("read again: %+v", r)
	}
	if err := os.Remove(filepath.Join(l.root, "docker/registry/v2/repositories/a/_manifests/revisions/sha256", name, "link")); err != nil {
		t.Fatal(err)
	}
	if r := l.inventory(s); len(r.Repositories[0].Manifests) != 0 || !slices.Contains(orphansOf(r), layer) {
		t.Errorf("still known: %+v", r)
	}
	l.revision("a", "not what it was")
	if r := l.inventory(s); len(r.Repositories[0].Doubts) != 1 {
		t.Errorf("still known: %+v", r)
	}
}
