package enforce_test

import (
	"context"
	"errors"
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

// linked is a repository that has another name by a symbolic link.
func (d disk) linked(name, as string) {
	d.t.Helper()
	to := d.path("repositories", as)
	if err := errors.Join(os.MkdirAll(filepath.Dir(to), 0o750), os.Symlink(d.path("repositories", name), to)); err != nil {
		d.t.Fatal(err)
	}
}

// Who uses or leases an image after the plan, by another name of its repository, keeps it.
func TestRun_KeepsWhatIsUsedByAnotherNameMeanwhile(t *testing.T) {
	for name, use := range map[string]func(t *testing.T, e *enforce.Engine, digest string) error{
		"pull": func(t *testing.T, e *enforce.Engine, digest string) error {
			t.Helper()
			_, err := e.State.RecordUses(t.Context(), []lastuse.Use{
				{Repository: "other", Name: lastuse.ByDigest(content.Digest(digest)), At: time.Now(), Heard: time.Now()},
			})
			return err
		},
		"pull of a tag": func(t *testing.T, e *enforce.Engine, _ string) error {
			t.Helper()
			_, err := e.State.RecordUses(t.Context(), []lastuse.Use{
				{Repository: "other", Name: lastuse.ByTag("v1"), At: time.Now(), Heard: time.Now()},
			})
			return err
		},
		"pull of its layer": func(t *testing.T, e *enforce.Engine, _ string) error {
			t.Helper()
			layer := newDisk(t).blob("x", "layer of app[v1]", time.Now())
			_, err := e.State.RecordUses(t.Context(), []lastuse.Use{
				{Repository: "other", Name: lastuse.ByBlob(content.Digest(layer)), At: time.Now(), Heard: time.Now()},
			})
			return err
		},
		"lease": nil,
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			digest := d.image("app", ago(30), "v1")
			d.image("x", time.Now(), "v1")
			d.linked("app", "other")
			e, store := d.engine(keeps("**"))
			e.State = &meanwhile{State: store, t: t, e: e, use: use, digest: digest}
			out, err := e.RunOnce(t.Context(), enforce.Order{Trigger: run.Demand, Force: true, All: true}, nil)
			if err != nil || !d.has("app", digest) {
				t.Errorf("%s, %v, there: %t", out.State, err, d.has("app", digest))
			}
		})
	}
}

// meanwhile is a state in which something is used or leased between the plan and the first batch.
type meanwhile struct {
	enforce.State
	t      *testing.T
	e      *enforce.Engine
	use    func(t *testing.T, e *enforce.Engine, digest string) error
	digest string
	n      int
}

func (m *meanwhile) Leases(ctx context.Context, now time.Time) (lease.Set, error) {
	if m.n++; m.n < 2 {
		return m.State.Leases(ctx, now)
	}
	if m.use == nil {
		of := lastuse.Reference{Repository: "other", Tag: "v1"}
		return lease.Set{{ID: "l", Of: []lastuse.Reference{of}, Expires: now.Add(time.Hour)}}, nil
	}
	if m.n == 2 {
		if err := m.use(m.t, m.e, m.digest); err != nil {
			return nil, err
		}
	}
	return m.State.Leases(ctx, now)
}

// The pull of a blob by another name of its repository is noted of the manifests that name it, as it is
// by the first: pulls of blobs are forgotten after a while.
func TestRun_NotesPullsOfBlobsByAnotherName(t *testing.T) {
	d := newDisk(t)
	digest := d.image("app", ago(100), "v1")
	layer := d.blob("app", "layer of app[v1]", ago(100))
	d.image("x", time.Now(), "v1")
	d.linked("app", "other")
	sixty, p := 60*day, keeps("**")
	p.Rules[0].Keep = &policy.Keep{Age: &sixty}
	e, store := d.engine(p)
	if err := store.Beat(t.Context(), ago(200), time.Now()); err != nil { // the listener is there from then on
		t.Fatal(err)
	}
	pulled := lastuse.Use{Repository: "other", Name: lastuse.ByBlob(content.Digest(layer)), At: ago(1), Heard: ago(1)}
	if _, err := store.RecordUses(t.Context(), []lastuse.Use{pulled}); err != nil {
		t.Fatal(err)
	}
	order := enforce.Order{Trigger: run.Demand, Force: true, All: true}
	if out, err := e.RunOnce(t.Context(), order, nil); err != nil || !d.has("app", digest) {
		t.Fatalf("%s, %v", out.State, err)
	}
	later := time.Now().Add(40 * day)
	if err := store.Beat(t.Context(), later, time.Now()); err != nil { // forgets pulls of blobs
		t.Fatal(err)
	}
	e.Now = func() time.Time { return later }
	if out, err := e.RunOnce(t.Context(), order, nil); err != nil || !d.has("app", digest) {
		t.Errorf("used 41 days ago, kept for 60: %s, %v, there: %t", out.State, err, d.has("app", digest))
	}
}
