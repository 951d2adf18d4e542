package enforce_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/lease"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// asked is a state that tells when a run asks for leases: after its plan, and before each batch.
type asked struct {
	enforce.State
	leases func(n int)
	n      int
}

func (a *asked) Leases(ctx context.Context, now time.Time) (lease.Set, error) {
	a.n++
	a.leases(a.n)
	return a.State.Leases(ctx, now)
}

// caching is a registry that caches blobs, and tells what it deletes.
type caching struct {
	disk
	deleted func(digest string)
}

func (caching) Caches(context.Context) (bool, error) { return true, nil }

func (c caching) DeleteManifest(ctx context.Context, repository string, digest content.Digest) error {
	err := c.disk.DeleteManifest(ctx, repository, digest)
	c.deleted(string(digest))
	return err
}

// index pushes an index of manifests under a tag.
func (d disk) index(repository, tag string, children ...string) string {
	d.t.Helper()
	text := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`
	for i, child := range children {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":3}`, child)
	}
	return d.manifest(repository, time.Now(), text+"]}", tag)
}

// manifest stores a manifest with these tags.
func (d disk) manifest(repository string, at time.Time, text string, tags ...string) string {
	d.t.Helper()
	digest := d.blob(repository, text, at)
	h := digest[len("sha256:"):]
	d.put(at, digest, "repositories", repository, "_manifests/revisions/sha256", h, "link")
	for _, tag := range tags {
		d.put(at, digest, "repositories", repository, "_manifests/tags", tag, "index/sha256", h, "link")
		d.put(at, digest, "repositories", repository, "_manifests/tags", tag, "current/link")
	}
	return digest
}

// An index that is pushed after the plan keeps the old manifests that it lists, also where the
// registry caches blobs, and manifests are deleted by its API.
func TestRun_KeepsWhatIsPushedAfterThePlan(t *testing.T) {
	for _, caches := range []bool{false, true} {
		for name, push := range map[string]func(d disk, child string) string{
			"an index": func(d disk, child string) string { return d.index("app", "v2", child) },
			"a referrer": func(d disk, child string) string {
				return d.manifest("app", time.Now(), fmt.Sprintf(`{"schemaVersion":2,"layers":[],"subject":{"digest":%q}}`, child))
			},
			"what cannot be read": func(d disk, _ string) string { return d.manifest("app", time.Now(), `{"what":"ever"}`) },
		} {
			t.Run(fmt.Sprintf("%s, caches=%t", name, caches), func(t *testing.T) {
				d := newDisk(t)
				child, goes := d.image("app", ago(30)), d.image("other", ago(30))
				d.image("app", time.Now(), "new")
				e, store := d.engine(policy.Default(7 * day))
				if caches {
					e.Checker, e.Registry = caching{disk: d}, caching{disk: d, deleted: func(string) {}}
				}
				missing := false
				e.State = &asked{State: store, leases: func(n int) {
					if n == 2 {
						push(d, child)
					}
				}}
				out, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Demand, Force: true, All: true}, func(enforce.Event) {
					missing = missing || !d.has("app", child)
				})
				if err != nil || out.Broken > 0 || missing || !d.has("app", child) {
					t.Errorf("%s, %v, broken %d: missing for a while: %t, at the end: %t", out.State, err, out.Broken, missing, !d.has("app", child))
				}
				if d.has("other", goes) {
					t.Error("nothing went")
				}
			})
		}
	}
}

// What an index names that is pushed while its batch goes comes back, where the registry deletes it.
func TestRun_BringsBackWhatAPushNamesAsItGoes(t *testing.T) {
	d := newDisk(t)
	child := d.image("app", ago(30))
	d.image("app", time.Now(), "new")
	e, _ := d.engine(policy.Default(7 * day))
	e.Checker, e.Registry = caching{disk: d}, caching{disk: d, deleted: func(string) { d.index("app", "v2", child) }}
	out, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Demand, Force: true, All: true}, nil)
	if err != nil || out.Broken > 0 || !d.has("app", child) {
		t.Errorf("%s, %v, broken %d, there: %t", out.State, err, out.Broken, d.has("app", child))
	}
}

// A signature does not go without its subject, nor a subject without its signature, when one of them
// is used or a run ends meanwhile.
func TestRun_KeepsFamiliesTogether(t *testing.T) {
	d := newDisk(t)
	subject := d.image("cache/app", ago(30), "v1")
	signature := d.image("cache/app", ago(30), "sha256-"+subject[len("sha256:"):]+".sig")
	d.image("cache/app", time.Now(), "new")
	e, store := d.engine(policy.Default(7 * day))
	e.State = &asked{State: store, leases: func(n int) {
		if n == 2 {
			use := lastuse.Use{Repository: "cache/app", Name: lastuse.ByDigest(content.Digest(signature)), At: time.Now(), Heard: time.Now()}
			if _, err := store.RecordUses(t.Context(), []lastuse.Use{use}); err != nil {
				t.Error(err)
			}
		}
	}}
	if out, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Demand, Force: true, All: true}, nil); err != nil || out.Broken > 0 {
		t.Fatal(err)
	}
	if !d.has("cache/app", subject) || !d.has("cache/app", signature) {
		t.Errorf("the subject is there: %t, the signature: %t", d.has("cache/app", subject), d.has("cache/app", signature))
	}
}

// A rule that protects a repository protects it by each of its names.
func TestRun_ObeysProtectOfLinkedRepositories(t *testing.T) {
	for real, link := range map[string]string{"prod": "cache/prod", "cache/prod": "prod"} {
		d := newDisk(t)
		digest := d.image(real, ago(30), "v1")
		d.image("x", time.Now(), "v1")
		to := d.path("repositories", link)
		if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o750), os.Symlink(d.path("repositories", real), to)); err != nil {
			t.Fatal(err)
		}
		e, _ := d.engine(protects(policy.Default(7*day), "prod"))
		out, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Demand, Force: true, All: true}, nil)
		if err != nil || !d.has(real, digest) {
			t.Errorf("%s, linked as %s: %s, %v, there: %t", real, link, out.State, err, d.has(real, digest))
		}
	}
}

// A blob that a client asks for after it was marked stays: a push that was told that it is there does
// not upload it.
func TestRun_KeepsBlobsThatAreAskedForMeanwhile(t *testing.T) {
	for _, asks := range []bool{false, true} {
		d := newDisk(t)
		d.image("app", time.Now(), "v1")
		orphan := d.blob("app", "nothing names it", ago(30))
		p := policy.Default(7 * day)
		p.BlobGrace = time.Nanosecond
		e, store := d.engine(p)
		e.State = &asked{State: store, leases: func(n int) {
			if asks && n == 2 { // it is being marked
				use := lastuse.Use{Repository: "app", Name: lastuse.ByBlob(content.Digest(orphan)), At: time.Now(), Heard: time.Now()}
				if _, err := store.RecordUses(t.Context(), []lastuse.Use{use}); err != nil {
					t.Error(err)
				}
			}
		}}
		if _, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Demand, Force: true, All: true}, nil); err != nil {
			t.Fatal(err)
		}
		_, gone := os.Stat(d.path("blobs/sha256", orphan[7:9], orphan[7:], "data"))
		_, hidden := os.Stat(d.path("repositories/app/_layers/sha256", orphan[7:], "link"))
		if asks != (gone == nil) || asks != (hidden == nil) {
			t.Errorf("asked for: %t: %v, %v", asks, gone, hidden)
		}
	}
}
