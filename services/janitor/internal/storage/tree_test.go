package storage

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// Links give a repository other names. What is behind one alone is read, for it names blobs of the
// registry, and nothing of it can go.
func TestInventory_FollowsSymbolicLinks(t *testing.T) {
	f := filled{t, New(t.TempDir())}
	layer := f.layer("prod/app", "layer")
	f.push("prod/app", layer)
	f.push("cache/own")
	outside := filled{t, New(t.TempDir())}
	far := outside.push("far", outside.layer("far", "only far names it"))
	for _, d := range outside.repository("far").Manifests[0].Blobs {
		text, err := os.ReadFile(outside.data(d.Digest()))
		f.ok(err)
		f.write(f.data(d.Digest()), string(text))
	}
	text, err := os.ReadFile(outside.data(far))
	f.ok(err)
	f.write(f.data(far), string(text))
	link := func(to string, name ...string) {
		path := f.path(append([]string{"repositories"}, name...)...)
		f.ok(os.MkdirAll(filepath.Dir(path), 0o750))
		f.ok(os.Symlink(to, path))
	}
	link("../prod/app", "cache", "app")
	link("prod", "mirror")
	link(outside.repositoryDir("far"), "cache", "far")
	link("..", "cache", "loop")
	link("nowhere", "cache", "broken")

	all := f.look()
	if len(all.Orphans) > 0 {
		t.Errorf("orphans: %+v", all.Orphans)
	}
	got := map[string]inventory.Repository{}
	for _, r := range all.Repositories {
		got[r.Name] = r
	}
	if len(all.Repositories) != 3 || len(got) != 3 || got["cache/far"].Elsewhere == "" || got["prod/app"].Elsewhere != "" || len(got["cache/far"].Manifests) != 1 {
		t.Errorf("%+v", all.Repositories)
	}
	if names := got["prod/app"].Aliases; !slices.Contains(names, "cache/app") || !slices.Contains(names, "mirror/app") {
		t.Errorf("prod/app is also called %q", names)
	}
	again := f.look()
	if len(again.Repositories) != 3 || again.Repositories[0].Elsewhere == "" || len(again.Repositories[2].Aliases) == 0 {
		t.Errorf("again: %+v", again.Repositories)
	}
}
