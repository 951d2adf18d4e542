package enforce_test

import (
	"testing"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// A backup that was restored without its times ages from when it is seen first; what was pulled
// before it was seen is no older than the rest.
func TestPlan_AgesFromFirstSightWithoutTimes(t *testing.T) {
	d := newDisk(t)
	epoch, n := time.Unix(0, 0), 1
	pulled := d.image("app", epoch, "pulled")
	d.image("app", epoch, "other")
	d.image("app", time.Now().Add(-2*time.Hour), "pushed")
	p := keeps("**")
	p.Rules[0].Keep = &policy.Keep{NewestByPush: &n}
	e, store := d.engine(p)
	use := lastuse.Use{Repository: "app", Name: lastuse.ByDigest(content.Digest(pulled)), At: time.Now().Add(-time.Hour)}
	if _, err := store.RecordUses(t.Context(), []lastuse.Use{use}); err != nil {
		t.Fatal(err)
	}
	made, err := e.Plan(t.Context(), enforce.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range made.Removals() {
		if v.Digest == pulled {
			t.Errorf("what was pulled before it was seen goes: %s", v.Explain)
		}
	}
	e, _ = d.engine(keeps("**"))
	made, err = e.Plan(t.Context(), enforce.Ask{})
	if err != nil || made.Removes.Manifests > 0 {
		t.Errorf("at first sight %d go, %v", made.Removes.Manifests, err)
	}
	e.Now = func() time.Time { return time.Now().Add(8 * day) }
	made, err = e.Plan(t.Context(), enforce.Ask{})
	if err != nil || made.Removes.Manifests != 3 {
		t.Errorf("eight days later %d go, %v", made.Removes.Manifests, err)
	}
}
