package storage

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/inmemory"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// between does something before an object is deleted.
type between struct {
	driver.StorageDriver
	before func(path string)
}

func (b *between) Delete(ctx context.Context, path string) error {
	if do := b.before; do != nil && !strings.HasPrefix(path, "/"+ownDir) {
		b.before = nil
		do(path)
	}
	return b.StorageDriver.Delete(ctx, path)
}

// What is written between the last look at an object and its deletion is lost for a moment, and
// comes back: a tag by what its push has noted first, a manifest by the tag that leads to it,
// and a link by the manifest that names its blob.
func TestWhatIsWrittenAsObjectsGoComesBack(t *testing.T) {
	start := func(t *testing.T) (filled, *between) {
		t.Helper()
		b := &between{StorageDriver: inmemory.New()}
		return filled{t, NewObjects(b, "memory")}, b
	}
	t.Run("a tag", func(t *testing.T) {
		f, b := start(t)
		old, next := f.push("r", f.layer("r", "old")), f.push("r", f.layer("r", "next"))
		f.tag("r", "t", old)
		is := f.repository("r")
		time.Sleep(time.Millisecond)
		b.before = func(path string) {
			if !strings.HasSuffix(path, "tags/t/current/link") {
				t.Errorf("%s is the first to go", path)
			}
			f.tag("r", "t", next)
		}
		lost := inventory.Tag{Name: "t", Digest: old, Moved: is.Tags[0].Moved}
		_, err := f.begin("run").tag("r", lost.Name, lost.Moved, func(text string) bool { return text == string(old) })
		if f.ok(err); f.leadsTo("r", "t") != string(next) {
			t.Errorf("it leads to %q", f.leadsTo("r", "t"))
		}
	})
	t.Run("a manifest", func(t *testing.T) {
		f, b := start(t)
		digest := f.push("r", f.layer("r", "layer"))
		marked := f.look()
		b.before = func(string) { f.revision("r", digest) }
		q := f.begin("run")
		taken, err := q.Manifest("r", digest, marked.Repositories[0].Manifests[0].Linked, nil)
		if f.ok(err); !taken || f.has(f.link("r", revisionsDir, digest)) {
			t.Fatalf("taken %t: the test is wrong", taken)
		}
		f.tag("r", "t", digest) // the rest of the push
		f.mendAll(marked, digest)
		if !f.has(f.link("r", revisionsDir, digest)) {
			t.Error("it is gone, and a tag leads to it")
		}
	})
	t.Run("a link", func(t *testing.T) {
		f, b := start(t)
		layer := f.layer("r", "layer")
		marked := f.look()
		b.before = func(string) { f.write(f.link("r", layersDir, layer), string(layer)) } // mounted
		q := f.begin("run")
		_, err := q.Hide(marked.Orphans[0])
		f.ok(err)
		if f.has(f.link("r", layersDir, layer)) {
			t.Fatal("the test is wrong")
		}
		manifest := f.blob(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"` + string(layer) + `","size":5},"layers":[]}`)
		f.revision("r", manifest)
		f.mendAll(marked, layer)
		if !f.has(f.link("r", layersDir, layer)) {
			t.Error("it is gone, and a manifest names it")
		}
	})
}

// Without locks of a kernel, a holder that this kernel knows to have ended is not waited for, and
// any other is.
func TestLockOfObjects(t *testing.T) {
	ended := exec.CommandContext(t.Context(), "true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	me := newHolder("run")
	for name, c := range map[string]struct {
		change func(h *holder)
		waits  bool
	}{
		"ended":                   {func(*holder) {}, false},
		"had this number":         {func(h *holder) { h.PID = me.PID }, false},
		"lives":                   {func(h *holder) { h.PID = os.Getppid() }, true},
		"of another kernel":       {func(h *holder) { h.Boot = "another" }, true},
		"of another namespace":    {func(h *holder) { h.Pids = "pid:[1]" }, true},
		"does not say its number": {func(h *holder) { h.PID = 0 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := filled{t, NewObjects(inmemory.New(), "memory")}
			was := me
			was.ID, was.PID = "another", ended.ProcessState.Pid()
			c.change(&was)
			raw, err := json.Marshal(was)
			f.ok(err)
			f.write(f.own("lock"), string(raw))
			ctx, cancel := context.WithTimeout(t.Context(), watchFor/2)
			defer cancel()
			_, unlock, err := f.Lock(ctx, "run")
			if waits := errors.Is(err, context.DeadlineExceeded); waits != c.waits || (err == nil) == c.waits {
				t.Errorf("it is waited for: %t, %v", waits, err)
			}
			if err == nil {
				unlock()
			}
		})
	}
}

func (f filled) mendAll(marked inventory.Registry, gone content.Digest) {
	f.t.Helper()
	lacks, err := f.Wanted(f.t.Context(), marked, func(d content.Digest) bool { return d == gone })
	f.ok(err)
	for _, l := range lacks {
		_, err := f.Mend(l)
		f.ok(err)
	}
}

// A process that is killed between the copy of an object and its deletion leaves both: it is
// held, it is there, and to take it again or to bring it back ends well.
func TestObjectsThatWereCopiedOnly(t *testing.T) {
	f := filled{t, NewObjects(inmemory.New(), "memory")}
	digest := f.layer("r", "layer")
	o := f.look().Orphans[0]
	q := f.begin("run")
	f.write(q.in(f.data(digest)), "layer")
	f.write(q.in(f.link("r", layersDir, digest)), string(digest))
	hidden, err := q.Hide(o)
	if f.ok(err); !hidden {
		t.Error("not hidden")
	}
	taken, err := q.Blob(o)
	if f.ok(err); !taken || f.has(f.data(digest)) {
		t.Error("not taken")
	}
	f.write(f.data(digest), "layer")
	there, err := q.Return(digest)
	if f.ok(err); !there {
		t.Error("not back")
	}
	f.ok(q.Show(digest, o.Repositories))
	if !f.has(f.data(digest), f.link("r", layersDir, digest)) || f.has(filepath.Dir(q.in(f.data(digest)))) {
		t.Error("not as it was")
	}
}
