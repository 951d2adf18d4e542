package local

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// A lease cannot be renewed while the cache manager is away: it holds until its holder had the time to.
func TestLease_HoldsWhenTheManagerComesBack(t *testing.T) {
	l := newLayout(t)
	must(t, l.export("a", nil, "base", "old"))
	before := l.open(0)
	lease := got(before.Acquire(t.Context(), Lease{Tag: "a", Mode: Import, TTL: time.Minute}))(t)
	must(t, l.export("a", nil, "new"))

	back := l.open(0)
	now := time.Now().Add(time.Hour) // that it was away
	back.began, back.now = now, func() time.Time { return now }
	must(t, back.Sweep(t.Context(), true))
	must(t, l.complete(ocispecs.Descriptor{Digest: lease.Digest}))
	renewed := got(back.Renew(t.Context(), lease.ID, 0))(t)
	if renewed.Digest != lease.Digest || !renewed.Expires.Equal(now.Add(time.Minute)) {
		t.Errorf("%+v", renewed)
	}
	now = now.Add(time.Minute + time.Second)
	must(t, back.Sweep(t.Context(), true))
	if l.has(t, "old") {
		t.Error("nobody renewed the lease for its whole time, and it still holds")
	}
}

// A lease that was lost is acquired again for what the build reads, not for what the tag has by then.
func TestLease_IsAcquiredAgainForTheSameManifest(t *testing.T) {
	l := newLayout(t)
	must(t, l.export("a", nil, "base", "old"))
	d := l.open(time.Hour)
	first := got(d.Acquire(t.Context(), Lease{Tag: "a", Mode: Import, TTL: time.Minute}))(t)
	must(t, l.export("a", nil, "new"))
	now := time.Now().Add(2 * time.Hour) // the lease has expired, and the sweep has moved what it held
	d.now = func() time.Time { return now }
	must(t, d.Sweep(t.Context(), false))
	now = now.Add(2 * time.Hour)
	must(t, d.Sweep(t.Context(), false))
	if l.has(t, "old") {
		t.Fatal("the test shows nothing")
	}
	again := got(d.Acquire(t.Context(), Lease{Tag: "a", Mode: Import, TTL: time.Minute, Digest: first.Digest}))(t)
	if again.Digest != first.Digest {
		t.Errorf("it holds %q, the build reads %q", again.Digest, first.Digest)
	}
	must(t, l.complete(ocispecs.Descriptor{Digest: first.Digest}))
	other := got(d.Acquire(t.Context(), Lease{Tag: "a", Mode: Import, TTL: time.Minute, Digest: "sha256:none"}))(t)
	if other.Digest != "" {
		t.Errorf("%q is held", other.Digest)
	}
}

// A build may name the directory by another path than the configuration does.
func TestDirectory_IsFoundThroughLinks(t *testing.T) {
	base := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(base, "data", "cache"), 0o755))
	must(t, os.Symlink(filepath.Join(base, "data"), filepath.Join(base, "link")))
	for _, c := range []struct {
		configured, asked string
		same              bool
	}{
		{"data/cache", "link/cache", true},
		{"link/cache", "data/cache", true},
		{"data/none/yet", "link/none/yet", true},
		{"data/cache", "data/../data/cache/", true},
		{"data/cache", "data", false},
		{"data/none/yet", "data/none/other", false},
	} {
		d := New(Options{Path: filepath.Join(base, c.configured)})
		if same := d.At(base + "/" + c.asked); same != c.same {
			t.Errorf("%s at %s: %t", c.configured, c.asked, same)
		}
	}
}
