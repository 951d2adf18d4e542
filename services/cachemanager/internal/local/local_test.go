package local

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

const mebibyte = 1 << 20

func layer(name string, size int) string { return name + strings.Repeat(".", size-len(name)) }

var forms = []string{ocispecs.MediaTypeImageManifest, ocispecs.MediaTypeImageIndex, dockerList}

func TestListCountsWhatIsCommonOnce(t *testing.T) {
	for _, form := range forms {
		l := newLayout(t)
		l.form = form
		base, one, two := layer("base", mebibyte), layer("one", 1000), layer("two", 2000)
		must(t, l.export("a", nil, base, one))
		must(t, l.export("b", nil, base, two))
		d := l.open(0)
		listing := got(d.List(t.Context()))(t)
		if len(listing.Records) != 2 || len(listing.Common) != 1 || listing.Common[0].Bytes != mebibyte {
			t.Fatalf("%s: %+v", form, listing)
		}
		if diff := cmp.Diff([]string{"a", "b"}, listing.Common[0].Records); diff != "" {
			t.Error(diff)
		}
		for i, want := range []int64{1000, 2000} {
			r := listing.Records[i]
			// Its manifest and configuration are its own too.
			if r.Bytes < want || r.Bytes > want+2000 || r.Type != cache.LocalTag || time.Since(r.LastUsed) > time.Minute || r.UsageCount != 0 {
				t.Errorf("%s: %+v", form, r)
			}
			if diff := cmp.Diff([]int64{want}, r.Shrinks); diff != "" {
				t.Errorf("%s: %s", form, diff)
			}
		}
		if listing.Uncounted != 0 || listing.Disk == nil {
			t.Errorf("%+v", listing)
		}
	}
}

func TestDirectoryThatIsNotThere(t *testing.T) {
	d := New(Options{Path: filepath.Join(t.TempDir(), "no")})
	listing := got(d.List(t.Context()))(t)
	if len(listing.Records) != 0 || listing.Disk != nil {
		t.Errorf("%+v", listing)
	}
	must(t, d.Sweep(t.Context(), true))
	must(t, d.Repair(t.Context(), false, func(cache.Defect) { t.Error("a defect") }))
	if known := got(d.Release(t.Context(), "x"))(t); known {
		t.Error("a lease")
	}
	got(d.Lock(t.Context()))(t)
	lease := got(d.Acquire(t.Context(), Lease{Tag: "latest", Mode: Export, TTL: time.Minute}))(t)
	if lease.Digest != "" {
		t.Errorf("%+v", lease)
	}
}

func TestOrphansGoAfterTheGrace(t *testing.T) {
	l := newLayout(t)
	must(t, l.export("a", nil, "base", "old"))
	must(t, l.export("a", nil, "base", "new"))
	d := l.open(time.Hour)
	now := time.Now()
	at := func(later time.Duration) {
		t.Helper()
		d.now = func() time.Time { return now.Add(later) }
		must(t, d.Sweep(t.Context(), false))
	}
	at(0)
	if !l.has(t, "old") {
		t.Fatal("the orphan went at once")
	}
	at(59 * time.Minute)
	if !l.has(t, "old") {
		t.Fatal("the orphan went before the grace was over")
	}
	at(61 * time.Minute)
	if l.has(t, "old") || !l.has(t, "base") || !l.has(t, "new") {
		t.Fatal("after the grace the orphan goes, and nothing else")
	}
	if listing := got(d.List(t.Context()))(t); listing.Uncounted == 0 {
		t.Error("the trash is not counted")
	}
	at(122 * time.Minute)
	if entries := got(os.ReadDir(filepath.Join(l.dir, trashDir)))(t); len(entries) > 0 {
		t.Error("after the grace again, the trash is not empty")
	}
	must(t, l.whole())
}

// An orphan that is reached again, by an export that found it there, stays; from the
// trash it comes back, as soon as anybody takes a lease or a run looks.
func TestWhatIsReachedAgainComesBack(t *testing.T) {
	for name, back := range map[string]func(d *Directory) error{
		"lease": func(d *Directory) error {
			lease, err := d.Acquire(context.Background(), Lease{Tag: "a", Mode: Import, TTL: time.Minute})
			if err == nil && lease.Digest == "" {
				err = os.ErrNotExist
			}
			return err
		},
		"run": func(d *Directory) error { return d.Sweep(context.Background(), false) },
	} {
		l := newLayout(t)
		must(t, l.export("a", nil, "base", "old"))
		old := got(l.manifest("base", "old"))(t)
		must(t, l.export("a", nil, "base", "new"))
		d := l.open(time.Hour)
		must(t, d.Sweep(t.Context(), false))
		d.now = func() time.Time { return time.Now().Add(61 * time.Minute) }
		must(t, d.Sweep(t.Context(), false))
		if l.has(t, "old") {
			t.Fatal("it is still there")
		}
		must(t, l.put("a", old)) // of a client that has looked before it went, and takes no lock
		if l.whole() == nil {
			t.Fatal("the test shows nothing")
		}
		must(t, back(d))
		if err := l.whole(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExportIsWaitedFor(t *testing.T) {
	l := newLayout(t)
	must(t, l.export("a", nil, "base", "old"))
	must(t, l.export("a", nil, "base", "new"))
	d := l.open(0)
	must(t, d.Sweep(t.Context(), false)) // notes the orphans and, without grace, moves them
	must(t, l.export("b", nil, "old"))
	must(t, l.export("b", nil, "other"))
	swept := make(chan error, 1)
	must(t, l.export("b", func() { // "old" is an orphan that the export has found
		go func() { swept <- d.Sweep(context.Background(), true) }()
		time.Sleep(50 * time.Millisecond)
	}, "old"))
	must(t, <-swept)
	must(t, l.whole())
}

func TestRemoveComparesAndFrees(t *testing.T) {
	l := newLayout(t)
	base, one := layer("base", mebibyte), layer("one", 5000)
	must(t, l.export("a", nil, base, one))
	must(t, l.export("b", nil, base))
	must(t, l.export("c", nil, "c"))
	d := l.open(time.Hour)
	lease := got(d.Acquire(t.Context(), Lease{Tag: "c", Mode: Import, Holder: "test", TTL: time.Minute}))(t)
	tags := listed(t, d, "a", "b", "c", "none")
	must(t, l.export("b", nil, base, "changed since the listing"))
	got(d.List(t.Context()))(t) // of another caller, such as GetUsage
	freed := map[string]int64{}
	must(t, d.Remove(t.Context(), tags, 0, func(tag string, bytes int64) { freed[tag] = bytes }))
	if len(freed) != 1 || freed["a"] < 5000 || freed["a"] > 7000 {
		t.Errorf("%v", freed)
	}
	if leases := got(d.Leases(t.Context()))(t); leases["c"] != lease.ID {
		t.Errorf("%v", leases)
	}
	got(d.Release(t.Context(), lease.ID))(t)
	// It was used a moment ago.
	must(t, d.Remove(t.Context(), listed(t, d, "c"), time.Minute, func(string, int64) { t.Error("it goes though it was used since") }))
	if freed := removeAll(t, d, "b", "c"); len(freed) != 2 || freed["b"] < mebibyte {
		t.Errorf("%v", freed)
	}
	if listing := got(d.List(t.Context()))(t); len(listing.Records) != 0 || listing.Uncounted < mebibyte {
		t.Errorf("%+v", listing)
	}
	must(t, d.Sweep(t.Context(), true))
	if n := len(l.blobs(t)); n != 0 {
		t.Errorf("%d blobs are left", n)
	}
}

// What a lease holds stays, also when its tag has another manifest by then, or none.
func TestLeaseHoldsWhatWasThere(t *testing.T) {
	l := newLayout(t)
	must(t, l.export("a", nil, "base", "old"))
	d := l.open(0)
	lease := got(d.Acquire(t.Context(), Lease{Tag: "a", Mode: Import, TTL: time.Minute}))(t)
	held := ocispecs.Descriptor{Digest: lease.Digest}
	must(t, l.export("a", nil, "base", "new"))
	must(t, d.Sweep(t.Context(), true))
	must(t, l.complete(held))
	renewed := got(d.Renew(t.Context(), lease.ID, time.Hour))(t)
	if !renewed.Expires.After(lease.Expires) || renewed.Digest != lease.Digest {
		t.Errorf("%+v", renewed)
	}
	d.now = func() time.Time { return time.Now().Add(59 * time.Minute) }
	must(t, d.Sweep(t.Context(), true))
	must(t, l.complete(held))
	d.now = func() time.Time { return time.Now().Add(61 * time.Minute) }
	must(t, d.Sweep(t.Context(), true))
	if l.has(t, "old") {
		t.Error("what an expired lease held is still there")
	}
	if _, err := d.Renew(t.Context(), lease.ID, 0); fault.KindOf(err) != fault.NotFound {
		t.Errorf("%v", err)
	}
	if used := got(d.List(t.Context()))(t).Records[0]; used.UsageCount != 1 {
		t.Errorf("its use was not noted: %+v", used)
	}
}

// An export with a lease, by a client that takes no lock: what it writes stays, and what
// it reuses is there when it has released.
func TestLeasedExportOfAnOldClient(t *testing.T) {
	l := newLayout(t)
	must(t, l.export("a", nil, "base", "old"))
	must(t, l.export("a", nil, "base"))
	d := l.open(0)
	past := time.Now().Add(-time.Hour)
	for blob := range l.blobs(t) {
		must(t, os.Chtimes(l.path(blob), past, past))
	}
	lease := got(d.Acquire(t.Context(), Lease{Tag: "a", Mode: Export, TTL: time.Minute}))(t)
	manifest := got(l.manifest("base", "old", "new"))(t) // finds "old", writes "new"
	must(t, d.Sweep(t.Context(), true))
	if l.has(t, "old") || !l.has(t, "new") {
		t.Fatal("the test shows nothing")
	}
	must(t, l.put("a", manifest))
	got(d.Release(t.Context(), lease.ID))(t)
	must(t, l.whole())
}

func TestSameRequestIsSameLease(t *testing.T) {
	d := newLayout(t).open(0)
	want := Lease{Tag: "a", Mode: Import, TTL: time.Minute, RequestID: "r"}
	first := got(d.Acquire(t.Context(), want))(t)
	if again := got(d.Acquire(t.Context(), want))(t); again.ID != first.ID {
		t.Errorf("%s, %s", first.ID, again.ID)
	}
	want.Tag = "b"
	if _, err := d.Acquire(t.Context(), want); fault.KindOf(err) != fault.AlreadyExists {
		t.Errorf("%v", err)
	}
	for _, id := range []string{"", "../ledger", "a/b", "none"} {
		if known, err := d.Release(t.Context(), id); known || err != nil {
			t.Errorf("%q: %v %v", id, known, err)
		}
	}
}

// An index that cannot be read stops everything.
func TestIndexThatCannotBeRead(t *testing.T) {
	for name, text := range map[string]string{
		"half": `{"manifests":[{"digest":"sha256:`, "empty": "", "no digest": `{"manifests":[{"digest":"x"}]}`,
	} {
		l := newLayout(t)
		must(t, l.export("a", nil, "base"))
		d := l.open(0)
		got(d.List(t.Context()))(t)
		must(t, os.WriteFile(filepath.Join(l.dir, "index.json"), []byte(text), 0o644))
		blobs := len(l.blobs(t))
		_, listed := d.List(t.Context())
		for what, err := range map[string]error{
			"list": listed, "sweep": d.Sweep(t.Context(), true), "remove": d.Remove(t.Context(), []cache.Target{{ID: "a"}}, 0, func(string, int64) {}),
			"repair": d.Repair(t.Context(), false, func(cache.Defect) {}),
		} {
			if fault.KindOf(err) != fault.FailedPrecondition {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		if len(l.blobs(t)) != blobs {
			t.Errorf("%s: blobs went", name)
		}
		var kinds []cache.DefectKind
		must(t, d.Verify(t.Context(), 0, func(defect cache.Defect) { kinds = append(kinds, defect.Kind) }, func(cache.VerifyProgress) {}))
		if !slices.Contains(kinds, cache.BadIndex) {
			t.Errorf("%s: %v", name, kinds)
		}
	}
}

// What a manifest reaches that cannot be read is not known, and nothing is garbage then.
func TestManifestThatCannotBeRead(t *testing.T) {
	l := newLayout(t)
	must(t, l.export("a", nil, "base"))
	m := got(l.manifest("base"))(t)
	must(t, os.Chmod(l.path(m.Digest), 0o644))
	must(t, os.WriteFile(l.path(m.Digest), []byte("{}"), 0o644))
	d := l.open(0)
	if err := d.Sweep(t.Context(), true); fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), m.Digest.String()) {
		t.Errorf("%v", err)
	}
	if !l.has(t, "base") {
		t.Error("its layer went")
	}
	must(t, d.Repair(t.Context(), false, func(cache.Defect) {}))
	must(t, d.Sweep(t.Context(), false))
	must(t, l.whole())
}

func TestVerifyAndRepair(t *testing.T) {
	for _, form := range forms {
		l := newLayout(t)
		l.form = form
		must(t, l.export("good", nil, "base", "good"))
		must(t, l.export("holed", nil, "base", "corrupt", "upon it"))
		must(t, l.export("cut", nil, "base", "missing"))
		must(t, l.export("gone", nil, "only"))
		must(t, l.export("gone2", nil, "orphan"))
		must(t, l.export("gone2", nil, "only"))
		must(t, os.Chmod(l.path(digest.FromString("corrupt")), 0o644))
		must(t, os.WriteFile(l.path(digest.FromString("corrupt")), []byte("CORRUPT"), 0o644))
		must(t, os.Remove(l.path(digest.FromString("missing"))))
		must(t, os.Remove(l.path(digest.FromString("only"))))
		must(t, os.MkdirAll(filepath.Join(l.dir, "ingest", "x"), 0o755))
		past := time.Now().Add(-2 * time.Hour)
		must(t, os.Chtimes(filepath.Join(l.dir, "ingest", "x"), past, past))
		must(t, os.WriteFile(filepath.Join(l.dir, "notes.txt"), nil, 0o644))

		d := l.open(time.Hour)
		check := func() map[cache.DefectKind][]string {
			kinds := map[cache.DefectKind][]string{}
			var last cache.VerifyProgress
			must(t, d.Verify(t.Context(), 0, func(defect cache.Defect) { kinds[defect.Kind] = append(kinds[defect.Kind], defect.Tags...) },
				func(p cache.VerifyProgress) { last = p }))
			if last.Blobs != last.TotalBlobs || last.Bytes != last.TotalBytes {
				t.Errorf("%s: %+v", form, last)
			}
			return kinds
		}
		want := map[cache.DefectKind][]string{
			cache.CorruptBlob: {"holed"}, cache.MissingBlob: {"gone", "gone2", "cut"}, cache.Orphan: nil, cache.AbortedIngest: nil, cache.Foreign: nil,
		}
		first := check()
		slices.Sort(first[cache.MissingBlob])
		slices.Sort(want[cache.MissingBlob])
		if diff := cmp.Diff(want, first); diff != "" {
			t.Fatalf("%s: %s", form, diff)
		}
		var dry, repaired int
		must(t, d.Repair(t.Context(), true, func(cache.Defect) { dry++ }))
		must(t, d.Repair(t.Context(), false, func(cache.Defect) { repaired++ }))
		if dry != 4 || repaired != 4 {
			t.Errorf("%s: %d, %d", form, dry, repaired)
		}
		must(t, l.whole())
		after := check()
		if len(after) != 2 { // the stranger is left, and there are new orphans
			t.Errorf("%s: %v", form, after)
		}
		listing := got(d.List(t.Context()))(t)
		var tags []string
		for _, r := range listing.Records {
			tags = append(tags, r.ID)
		}
		if diff := cmp.Diff([]string{"cut", "good", "holed"}, tags); diff != "" {
			t.Errorf("%s: %s", form, diff)
		}
		// The corrupt blob is out of the way of the next export.
		must(t, l.export("holed", nil, "base", "corrupt", "upon it"))
		must(t, l.whole())
	}
}

func TestRepairLeavesWhatIsLeased(t *testing.T) {
	l := newLayout(t)
	must(t, l.export("a", nil, "base", "gone"))
	d := l.open(0)
	got(d.Acquire(t.Context(), Lease{Tag: "a", Mode: Export, Holder: "builder", TTL: time.Minute}))(t)
	must(t, os.Remove(l.path(digest.FromString("gone"))))
	err := d.Repair(t.Context(), false, func(cache.Defect) { t.Error("repaired") })
	if fault.KindOf(err) != fault.FailedPrecondition || !strings.Contains(err.Error(), "builder") {
		t.Errorf("%v", err)
	}
}

func TestShrinkTakesLeavesFirst(t *testing.T) {
	for _, form := range forms {
		l := newLayout(t)
		l.form = form
		must(t, l.export("a", nil, layer("base", 1000), layer("middle", 2000), layer("leaf", 4000)))
		d := l.open(0)
		r := got(d.List(t.Context()))(t).Records[0]
		if diff := cmp.Diff([]int64{4000, 2000}, r.Shrinks); diff != "" {
			t.Fatalf("%s: %s", form, diff)
		}
		freed, done, err := d.Shrink(t.Context(), r.Target(), 1, 0)
		if err != nil || !done || freed != 4000 {
			t.Fatalf("%s: %d %t %v", form, freed, done, err)
		}
		must(t, d.Sweep(t.Context(), true))
		must(t, l.whole())
		after := got(d.List(t.Context()))(t)
		if bytes := after.Records[0].Bytes; bytes > r.Bytes-4000 || bytes < 3000 {
			t.Errorf("%s: %d bytes, before %d", form, bytes, r.Bytes)
		}
		if l.has(t, layer("leaf", 4000)) || !l.has(t, layer("middle", 2000)) {
			t.Errorf("%s: the wrong layer went", form)
		}
	}
}

func TestOneManagerAtATime(t *testing.T) {
	l := newLayout(t)
	first, second := l.open(0), l.open(0)
	got(first.Lock(t.Context()))(t)
	got(first.Lock(t.Context()))(t)
	if _, err := second.Lock(t.Context()); fault.KindOf(err) != fault.AlreadyExists {
		t.Errorf("%v", err)
	}
	must(t, first.Close())
	got(second.Lock(t.Context()))(t)
	must(t, second.Close())
}

func TestLocksAreForAllUsers(t *testing.T) {
	l := newLayout(t)
	must(t, os.MkdirAll(l.dir, 0o755))
	d := l.open(0)
	got(d.Lock(t.Context()))(t)
	must(t, d.Sweep(t.Context(), true))
	got(d.Acquire(t.Context(), Lease{Tag: "a", Mode: Export, TTL: time.Minute}))(t)
	must(t, filepath.Walk(l.dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && path != l.dir && info.Mode().Perm()&0o44 != 0o44 {
			t.Errorf("%s has mode %s: BuildKit's clients of other users cannot open it", path, info.Mode())
		}
		return err
	}))
	must(t, d.Close())
}
