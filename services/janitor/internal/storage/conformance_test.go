package storage

import (
	digester "crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/distribution/distribution/v3/registry/storage/driver/factory"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/s3-aws" // a driver

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
)

// filled is a storage that a test fills.
type filled struct {
	t *testing.T
	*Storage
}

// tick is until what is written has another time: that of objects is in seconds.
func (f filled) tick() {
	if f.files.atomic() {
		time.Sleep(20 * time.Millisecond)
		return
	}
	time.Sleep(1100 * time.Millisecond)
}

func (f filled) write(path, text string) {
	f.t.Helper()
	f.ok(f.files.remove(f.t.Context(), path))
	f.ok(f.files.put(path, []byte(text)))
}

func (f filled) ok(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func (f filled) blob(text string) content.Digest {
	f.t.Helper()
	sum := digester.Sum256([]byte(text))
	d := content.Digest(sha256 + ":" + hex.EncodeToString(sum[:]))
	f.write(f.data(d), text)
	return d
}

func (f filled) layer(repository, text string) content.Digest {
	f.t.Helper()
	d := f.blob(text)
	f.write(f.link(repository, layersDir, d), string(d))
	return d
}

func (f filled) push(repository string, layers ...content.Digest) content.Digest {
	f.t.Helper()
	config := f.layer(repository, "{}")
	var list []string
	for _, d := range layers {
		f.write(f.link(repository, layersDir, d), string(d))
		list = append(list, fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":5}`, d))
	}
	d := f.blob(fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":2},"layers":[%s]}`,
		config, strings.Join(list, ",")))
	f.revision(repository, d)
	return d
}

func (f filled) revision(repository string, d content.Digest) {
	f.t.Helper()
	f.write(f.link(repository, revisionsDir, d), string(d))
}

func (f filled) tag(repository, tag string, d content.Digest) {
	f.t.Helper()
	f.write(filepath.Join(f.tagDir(repository, tag), "index", sha256, hexOf(d), "link"), string(d))
	f.write(filepath.Join(f.tagDir(repository, tag), "current", "link"), string(d))
}

func (f filled) leadsTo(repository, tag string) string {
	f.t.Helper()
	text, err := f.read(filepath.Join(f.tagDir(repository, tag), "current", "link"), maxLink)
	if err != nil {
		return ""
	}
	return string(text)
}

func (f filled) has(paths ...string) (all bool) {
	f.t.Helper()
	for _, p := range paths {
		there, err := f.exists(p)
		f.ok(err)
		if !there {
			return false
		}
	}
	return true
}

func (f filled) look() inventory.Registry {
	f.t.Helper()
	r, err := f.Inventory(f.t.Context(), inventory.Look{})
	f.ok(err)
	return r
}

func (f filled) repository(name string) inventory.Repository {
	f.t.Helper()
	all := f.look().Repositories
	i := slices.IndexFunc(all, func(r inventory.Repository) bool { return r.Name == name })
	if i < 0 {
		f.t.Fatalf("no repository %s in %v", name, all)
	}
	return all[i]
}

func (f filled) begin(run string) *Quarantine {
	f.t.Helper()
	q, err := f.Begin(quarantine.Head{Run: run, Keep: time.Hour})
	f.ok(err)
	f.t.Cleanup(func() { f.ok(q.Close()) })
	is, _ := q.(*Quarantine)
	return is
}

// Each kind of storage: the disk, and the registry's driver of S3 with a server of S3.
func TestStorages(t *testing.T) {
	s3 := startS3(t)
	for kind, open := range map[string]func(t *testing.T) *Storage{
		"disk": func(t *testing.T) *Storage { return New(t.TempDir()) },
		"s3": func(t *testing.T) *Storage {
			t.Helper()
			return NewObjects(s3(t), "s3:registry")
		},
	} {
		for name, conforms := range map[string]func(f filled){
			"what is stored is found":                       whatIsStored,
			"manifests go with their tags and come back":    manifestsComeBack,
			"what was pushed again stays":                   pushedAgainStays,
			"what is pushed within a tick is seen":          ticksAreSeen,
			"blobs go and come back":                        blobsComeBack,
			"what is wanted comes back":                     wantedComesBack,
			"manifests that were marked want nothing":       markedWantNothing,
			"tags tell what was pushed as it went":          retaggedComesBack,
			"tags that lead nowhere go":                     lostTagsGo,
			"journals are read as they were written":        journalsLast,
			"what is purged is gone":                        purgedIsGone,
			"one holds the lock":                            oneHoldsTheLock,
			"bytes are read, and what the canary has goes":  canaryIsForgotten,
			"a repository in which nothing is left is gone": emptyGoes,
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				f := filled{t, open(t)} // one after the other: the SDK of S3 changes what all share
				t.Parallel()
				conforms(f)
			})
		}
	}
}

func whatIsStored(f filled) {
	t := f.t
	if all := f.look(); len(all.Repositories)+len(all.Orphans) > 0 {
		t.Errorf("before the first push: %+v", all)
	}
	layer := f.layer("a/b", "layer")
	image := f.push("a/b", layer)
	f.tag("a/b", "latest", image)
	orphan := f.layer("other", "orphan")
	f.write(f.link("other", layersDir, content.Digest(sha256+":"+strings.Repeat("0", 64))), "x")
	f.write(filepath.Join(f.repositoryDir("other"), uploadsDir, "one", "data"), "12345")
	f.tag("other", "lost", content.Digest(sha256+":"+strings.Repeat("1", 64)))
	none := f.blob("")
	f.revision("other", none)

	all := f.look()
	if len(all.Repositories) != 2 || all.Repositories[0].Name != "a/b" || all.Repositories[1].Name != "other" {
		t.Fatalf("%+v", all.Repositories)
	}
	a, other := all.Repositories[0], all.Repositories[1]
	if len(a.Manifests) != 1 || a.Manifests[0].Digest != image || len(a.Tags) != 1 || a.Tags[0].Digest != image || time.Since(a.Manifests[0].Linked) > time.Minute || a.Manifests[0].Linked.IsZero() {
		t.Errorf("a/b: %+v", a)
	}
	if len(other.Dangling) != 1 || len(other.Uploads) != 1 || other.Uploads[0].Bytes != 5 || len(other.Doubts) != 1 || other.Doubts[0].Digest != none || len(other.Tags) != 1 || other.Tags[0].Lost == "" {
		t.Errorf("other: %+v", other)
	}
	if len(all.Orphans) != 1 || all.Orphans[0].Digest != orphan || all.Orphans[0].Bytes != 6 || !slices.Equal(all.Orphans[0].Repositories, []string{"other"}) || all.Orphans[0].Changed.IsZero() {
		t.Errorf("orphans: %+v", all.Orphans)
	}
	if lacks, err := f.Lacks(t.Context(), all); err != nil || len(lacks) > 0 {
		t.Errorf("lacks: %+v, %v", lacks, err)
	}
	u, err := f.Usage(t.Context(), func(d content.Digest) bool { return d != orphan })
	if f.ok(err); u.Blobs != 5 || u.UntaggedBytes != 6 || u.Uploads != 1 || u.UploadBytes != 5 {
		t.Errorf("usage: %+v", u)
	}
	if f.ok(f.Writable()); !f.has(f.repositoryDir("a/b")) {
		t.Error("its directory is not there")
	}
}

func manifestsComeBack(f filled) {
	t := f.t
	image := f.push("r", f.layer("r", "layer"))
	f.tag("r", "one", image)
	f.tag("r", "two", image)
	is := f.repository("r")
	f.tick()
	q := f.begin("run")
	taken, err := q.Manifest("r", image, is.Manifests[0].Linked, is.Tags)
	if f.ok(err); !taken {
		t.Fatal("it was not taken")
	}
	if left := f.repository("r"); len(left.Manifests)+len(left.Tags) > 0 {
		t.Errorf("left: %+v", left)
	}
	if f.has(f.tagDir("r", "one")) {
		t.Error("something is left of a tag")
	}
	e := quarantine.Entry{Run: "run", Kind: plan.Manifest, Repository: "r", Digest: string(image), Tags: []string{"one", "two"}}
	if held, err := f.Holds(e); err != nil || !held {
		t.Errorf("held: %t, %v", held, err)
	}
	for i, want := range []bool{false, true} {
		present, missing, err := f.Restore(e, time.Now())
		if f.ok(err); present != want || missing {
			t.Errorf("restored %d: present %t, missing %t", i, present, missing)
		}
	}
	if back := f.repository("r"); len(back.Manifests) != 1 || len(back.Tags) != 2 || back.Tags[0].Digest != image || back.Tags[1].Digest != image {
		t.Errorf("back: %+v", back)
	}
}

// A tag that was written while what it leads to went brings that back, with what it lists: the
// children first, so that nobody sees half of an index.
func retaggedComesBack(f filled) {
	t := f.t
	child, other, stays := f.push("r", f.layer("r", "child")), f.push("r", f.layer("r", "other")), f.push("r", f.layer("r", "stays"))
	index := f.blob(fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":5},`+
		`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":5}]}`, child, stays))
	f.revision("r", index)
	f.push("s", f.layer("s", "child"))
	f.tag("s", "kept", child)
	is := f.repository("r")
	q := f.begin("run")
	went := map[content.Digest]bool{index: true, child: true, other: true}
	for _, m := range is.Manifests {
		if went[m.Digest] {
			taken, err := q.Manifest("r", m.Digest, m.Linked, nil)
			if f.ok(err); !taken {
				t.Fatal("it was not taken")
			}
		}
	}
	retagged := func() (found []content.Digest) {
		lacks, err := f.Retagged(t.Context(), []string{"r", "s", "none"}, func(repository string, d content.Digest) bool { return repository == "r" && went[d] })
		f.ok(err)
		for _, l := range lacks {
			there, err := f.Mend(l)
			if f.ok(err); !there {
				t.Errorf("%+v is not back", l)
			}
			found = append(found, l.Digest)
		}
		return found
	}
	if found := retagged(); len(found) > 0 {
		t.Errorf("before the push: %v", found)
	}
	f.tag("r", "pushed", index)
	f.tag("r", "again", index)
	f.tag("r", "stays", stays)
	if found := retagged(); !slices.Equal(found, []content.Digest{child, index}) {
		t.Errorf("found %v, want the child %s and the index %s", found, child, index)
	}
	if found := retagged(); len(found) > 0 {
		t.Errorf("afterwards: %v", found)
	}
	if !f.has(f.link("r", revisionsDir, index), f.link("r", revisionsDir, child)) || f.has(f.link("r", revisionsDir, other)) {
		t.Error("the wrong ones are back")
	}
}

// A tag that is moved, and a manifest that is pushed, just after a look and at the same time by
// the clock of the files are seen by the next one.
func ticksAreSeen(f filled) {
	t := f.t
	first, second := f.push("r", f.layer("r", "first")), f.push("r", f.layer("r", "second"))
	tag := filepath.Join(f.tagDir("r", "t"), "current", "link")
	revisions := f.linksDir("r", revisionsDir)
	var third content.Digest
	for n := 0; ; n++ {
		if n == 20 {
			t.Fatal("a look takes longer than a tick")
		}
		f.tag("r", "t", first)
		tagged, listed := f.writtenAt(tag), f.writtenAt(revisions)
		if is := f.repository("r"); len(is.Tags) != 1 || is.Tags[0].Digest != first {
			t.Fatalf("%+v", is.Tags)
		}
		third = f.push("r", f.layer("r", fmt.Sprint("third", n)))
		f.tag("r", "t", second)
		f.ok(f.files.touch(tag, tagged)) // where files can be told
		f.ok(f.files.touch(revisions, listed))
		if f.writtenAt(tag).Equal(tagged) && f.writtenAt(revisions).Equal(listed) {
			break
		}
	}
	time.Sleep(settled + 100*time.Millisecond)
	is := f.repository("r")
	if len(is.Tags) != 1 || is.Tags[0].Digest != second {
		t.Errorf("the tag leads to %+v, and was moved to %s", is.Tags, second)
	}
	if !slices.ContainsFunc(is.Manifests, func(m inventory.Manifest) bool { return m.Digest == third }) {
		t.Errorf("%s is not among %+v", third, is.Manifests)
	}
}

func (f filled) writtenAt(path string) time.Time {
	f.t.Helper()
	at, err := f.written(path)
	f.ok(err)
	return at
}

func pushedAgainStays(f filled) {
	t := f.t
	again, moved := f.push("r", f.layer("r", "pushed again")), f.push("r", f.layer("r", "its tag moves"))
	f.tag("r", "moves", moved)
	is := f.repository("r")
	at := map[content.Digest]time.Time{}
	for _, m := range is.Manifests {
		at[m.Digest] = m.Linked
	}
	f.tick()
	f.revision("r", again)
	f.tag("r", "moves", again)
	q := f.begin("run")
	taken, err := q.Manifest("r", again, at[again], nil)
	if f.ok(err); taken {
		t.Error("what was pushed again was taken")
	}
	taken, err = q.Manifest("r", moved, at[moved], is.Tags)
	if f.ok(err); !taken {
		t.Error("what the tag has left was not taken")
	}
	if left := f.repository("r"); len(left.Manifests) != 1 || left.Manifests[0].Digest != again || len(left.Tags) != 1 || left.Tags[0].Digest != again {
		t.Errorf("left: %+v", left)
	}
	if same, err := q.Same("r", again, at[again]); err != nil || same {
		t.Errorf("same: %t, %v", same, err)
	}
}

func blobsComeBack(f filled) {
	t := f.t
	digest := f.layer("a", "orphan")
	f.write(f.link("b", layersDir, digest), string(digest))
	o := f.look().Orphans[0]
	f.tick()
	q := f.begin("run")
	hidden, err := q.Hide(o)
	if f.ok(err); !hidden || f.has(f.link("a", layersDir, digest)) || f.has(f.link("b", layersDir, digest)) {
		t.Errorf("hidden: %t", hidden)
	}
	f.ok(q.Show(digest, o.Repositories))
	if !f.has(f.link("a", layersDir, digest), f.link("b", layersDir, digest)) {
		t.Error("shown, and no link is there")
	}
	o = f.look().Orphans[0]
	_, err = q.Hide(o)
	f.ok(err)
	taken, err := q.Blob(o)
	if f.ok(err); !taken || f.has(f.data(digest)) {
		t.Errorf("taken: %t", taken)
	}
	e := quarantine.Entry{Run: "run", Kind: plan.Blob, Digest: string(digest), Linked: o.Repositories}
	if held, err := f.Holds(e); err != nil || !held {
		t.Errorf("held: %t, %v", held, err)
	}
	there, err := q.Return(digest)
	if f.ok(err); !there || !f.has(f.data(digest)) {
		t.Error("it is not back")
	}
	f.ok(q.Show(digest, o.Repositories))

	o = f.look().Orphans[0]
	f.tick()
	f.write(f.link("b", layersDir, digest), string(digest)) // mounted
	if hidden, err = q.Hide(o); err != nil || hidden || !f.has(f.link("b", layersDir, digest)) {
		t.Errorf("mounted meanwhile: hidden %t, %v", hidden, err)
	}
}

func wantedComesBack(f filled) {
	t := f.t
	layer := f.layer("r", "wanted again")
	marked := f.look()
	o := marked.Orphans[0]
	q := f.begin("run")
	_, err := q.Hide(o)
	f.ok(err)
	taken, err := q.Blob(o)
	if f.ok(err); !taken {
		t.Fatal("not taken")
	}
	// A push that saw the blob before.
	manifest := f.blob(fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":%q,"size":12},"layers":[]}`, layer))
	f.revision("r", manifest)
	mend := func(taken content.Digest) {
		t.Helper()
		lacks, err := f.Wanted(t.Context(), marked, func(d content.Digest) bool { return d == taken })
		if f.ok(err); len(lacks) == 0 {
			t.Errorf("%s is not wanted", taken)
		}
		some, err := f.WantedIn(t.Context(), []string{"r", "none"}, marked, func(repository string, d content.Digest) bool { return repository == "r" && d == taken })
		if f.ok(err); !slices.Equal(some, lacks) {
			t.Errorf("wanted in r: %v, and in all: %v", some, lacks)
		}
		for _, l := range lacks {
			there, err := f.Mend(l)
			if f.ok(err); !there {
				t.Errorf("%+v was not mended", l)
			}
		}
		lacks, err = f.Lacks(t.Context(), f.look())
		if f.ok(err); len(lacks) > 0 {
			t.Errorf("lacks: %+v", lacks)
		}
	}
	mend(layer)
	if !f.has(f.data(layer), f.link("r", layersDir, layer)) {
		t.Error("it is not back")
	}
	// And a manifest that a tag leads to.
	gone, err := q.Manifest("r", manifest, f.repository("r").Manifests[0].Linked, nil)
	if f.ok(err); !gone {
		t.Fatal("not taken")
	}
	f.tag("r", "t", manifest)
	if f.files.atomic() {
		f.revision("r", manifest) // a push that it did not lose
	}
	mend(manifest)
	if is := f.repository("r"); len(is.Manifests) != 1 || is.Tags[0].Digest != manifest {
		t.Errorf("%+v", is)
	}
}

func markedWantNothing(f filled) {
	t := f.t
	named := f.blob("named")
	before := f.look()
	f.revision("r", f.blob(fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":%q,"size":5},"layers":[]}`, named)))
	for want, marked := range []inventory.Registry{f.look(), before} {
		all, err := f.Wanted(t.Context(), marked, func(d content.Digest) bool { return d == named })
		f.ok(err)
		in, err := f.WantedIn(t.Context(), []string{"r"}, marked, func(_ string, d content.Digest) bool { return d == named })
		if f.ok(err); len(all) != want || len(in) != want {
			t.Errorf("%d marked: %+v, in r: %+v", 1-want, all, in)
		}
	}
}

func lostTagsGo(f filled) {
	t := f.t
	lost := content.Digest(sha256 + ":" + strings.Repeat("1", 64))
	f.tag("r", "lost", lost)
	f.write(filepath.Join(f.tagDir("r", "left"), "index", sha256, hexOf(lost), "link"), string(lost))
	is := f.repository("r")
	if len(is.Tags) != 2 || is.Tags[0].Moved.IsZero() || is.Tags[1].Lost != lost {
		t.Fatalf("%+v", is.Tags)
	}
	q := f.begin("run")
	for _, tag := range is.Tags {
		taken, err := q.Tag("r", tag)
		if f.ok(err); !taken || f.has(f.tagDir("r", tag.Name)) {
			t.Errorf("%s: taken %t", tag.Name, taken)
		}
	}
	f.tag("r", "lost", lost)
	is = f.repository("r")
	f.revision("r", f.blob("came"))
	f.revision("r", lost)
	if taken, err := q.Tag("r", is.Tags[0]); err != nil || taken || f.leadsTo("r", "lost") == "" {
		t.Errorf("what it leads to came: taken %t, %v", taken, err)
	}
}

func journalsLast(f filled) {
	t := f.t
	for _, run := range []string{"2", "1"} {
		q := f.begin(run)
		f.ok(q.Note(quarantine.Line{Entry: &quarantine.Entry{ID: run + "-1"}}, quarantine.Line{Entry: &quarantine.Entry{ID: run + "-2"}}))
	}
	q, err := f.Resume("1")
	f.ok(err)
	f.ok(q.Note(quarantine.Line{Resumed: true}))
	f.ok(q.Note(quarantine.Line{End: true}))
	f.ok(q.Close())
	if f.files.atomic() { // an object needs no directory
		if q, err := f.Resume("none"); err == nil || q != nil {
			t.Errorf("a run that has no quarantine: %v, %v", q, err)
		}
	}
	all, err := f.Journals()
	f.ok(err)
	if len(all) != 2 || all[0].Head.Run != "1" || len(all[0].Entries) != 2 || all[0].Entries[1].ID != "1-2" || all[0].Resumed != 1 || !all[0].End || all[1].End {
		t.Errorf("%+v", all)
	}
}

func purgedIsGone(f filled) {
	t := f.t
	first, second := f.push("r", f.layer("r", "first")), f.push("r", f.layer("r", "second"))
	q := f.begin("run")
	for _, m := range f.repository("r").Manifests {
		taken, err := q.Manifest("r", m.Digest, m.Linked, nil)
		if f.ok(err); !taken {
			t.Fatal("not taken")
		}
	}
	entry := func(d content.Digest) quarantine.Entry {
		return quarantine.Entry{Run: "run", Kind: plan.Manifest, Repository: "r", Digest: string(d)}
	}
	f.ok(f.Purge([]quarantine.Entry{entry(first)}))
	held := func(d content.Digest) bool {
		is, err := f.Holds(entry(d))
		f.ok(err)
		return is
	}
	if held(first) || !held(second) {
		t.Errorf("first %t, second %t", held(first), held(second))
	}
	f.ok(f.PurgeRuns(t.Context(), []string{"run"}))
	journals, err := f.Journals()
	if f.ok(err); len(journals) > 0 || held(second) || f.has(f.own("quarantine", "run")) || f.has(f.own("quarantine", purged+"run")) {
		t.Errorf("left: %+v", journals)
	}
}

func oneHoldsTheLock(f filled) {
	t := f.t
	_, unlock, err := f.Lock(t.Context(), "first")
	f.ok(err)
	_, _, err = f.Lock(t.Context(), "second")
	if busy, ok := err.(*fault.Error); !ok || busy.Kind != fault.AlreadyExists || busy.Metadata["run_id"] != "first" { //nolint:errorlint // it is the fault itself
		t.Errorf("the second: %v", err)
	}
	unlock()
	held, unlock, err := f.Lock(t.Context(), "third")
	f.ok(err)
	f.write(f.own("lock"), `{"id":"another","boot":"another","host":"another","run":"its","beat":7}`)
	select {
	case <-held.Done():
	case <-time.After(5 * beatEvery):
		t.Error("it does not find out that another one has it")
	}
	unlock()
	if text, err := f.read(f.own("lock"), maxLink); err != nil || !strings.Contains(string(text), "another") {
		t.Errorf("another host's: %q, %v", text, err)
	}
}

func canaryIsForgotten(f filled) {
	t := f.t
	digest := f.layer("canary", "song")
	for text, want := range map[string]bool{"song": true, "wrong": false} {
		f.write(f.data(digest), text)
		whole, err := f.ReadBlob(t.Context(), "r", digest, func(int) error { return nil })
		if f.ok(err); whole != want {
			t.Errorf("%s: whole %t", text, whole)
		}
	}
	f.ok(f.Forget("canary", digest))
	if f.has(f.data(digest)) || f.has(f.link("canary", layersDir, digest)) {
		t.Error("it is there still")
	}
	if whole, err := f.ReadBlob(t.Context(), "r", digest, nil); err != nil || !whole {
		t.Errorf("what is gone: %t, %v", whole, err)
	}
	if err := f.Forget("canary", digest); err == nil {
		t.Error("what is not there was forgotten")
	}
	f.layer("canary", "another song")
	f.ok(f.ForgetRepository("canary"))
	if there, err := f.Has("canary"); err != nil || there {
		t.Errorf("the repository: %t, %v", there, err)
	}
}

func emptyGoes(f filled) {
	digest := f.layer("group/empty", "left")
	f.layer("group/other", "left")
	f.tick()
	f.ok(f.begin("run").DropEmpty("group/empty", time.Now()))
	if f.has(f.repositoryDir("group/empty")) || !f.has(f.data(digest), f.link("group/other", layersDir, digest)) {
		f.t.Error("the repository is there, or more is gone")
	}
}

// startS3 starts a server of S3, and returns what makes drivers that share nothing.
func startS3(t *testing.T) func(t *testing.T) driver.StorageDriver {
	t.Helper()
	server, err := exec.LookPath("versitygw")
	if err != nil {
		t.Fatalf("%v: build it with make tools-test, and have bin/ in the PATH as make test has", err)
	}
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "registry"), 0o750); err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it is closed at once
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	_ = free.Close()
	cmd := exec.CommandContext(t.Context(), server, "--access", "test", "--secret", "a secret of tests", "--port", addr, "--quiet", "posix", root)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Wait() // it was killed as the test ended
		if t.Failed() {
			t.Log(out.String())
		}
	})
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr) //nolint:noctx // on loopback
		if err == nil {
			_ = conn.Close()
			break
		}
		if time.Now().After(until) {
			t.Fatalf("versitygw does not listen: %s", out.String())
		}
	}
	return func(t *testing.T) driver.StorageDriver {
		t.Helper()
		d, err := factory.Create(t.Context(), "s3", map[string]any{
			"accesskey": "test", "secretkey": "a secret of tests", "region": "us-east-1", "regionendpoint": "http://" + addr, "forcepathstyle": true, "secure": false,
			"bucket": "registry", "rootdirectory": strings.ReplaceAll(t.Name(), " ", "-"), "checksum": false,
		})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}
