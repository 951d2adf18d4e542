package plan_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// exports are repositories that builds write to.
type exports struct{ leased }

func (e exports) Export(repository string) string { return e.leased[repository] }

// A build that writes to a repository by another of its names keeps the blobs that no manifest names,
// and so does a client that pulled one by that name.
func TestMake_KeepsOrphansThatAreUsedByAnotherName(t *testing.T) {
	app := repo("app", nil)
	app.Aliases = []string{"other"}
	app.Unnamed = []inventory.Link{{Digest: "sha256:u", Linked: now.Add(-30 * day)}}
	r := inventory.Registry{
		Repositories: []inventory.Repository{app},
		Orphans:      []inventory.Orphan{{Digest: "sha256:o", Changed: now.Add(-30 * day), Repositories: []string{"app"}}},
	}
	book := lastuse.NewBook(nil)
	for _, d := range []content.Digest{"sha256:o", "sha256:u"} {
		book.Add("other", lastuse.ByBlob(d), lastuse.Last{Pulled: now})
	}
	for name, c := range map[string]struct {
		in   plan.Input
		want string
	}{
		"a lease": {plan.Input{Leases: exports{leased{"other": "l"}}}, "| sha256:u(leased:l) sha256:o(leased:l)"},
		"a pull":  {plan.Input{Uses: book}, "| sha256:u(grace) sha256:o(grace)"},
		"nothing": {plan.Input{}, "sha256:u(unreached) sha256:o(unreached) |"},
	} {
		c.in.Registry, c.in.Now, c.in.Policy = r, now, policy.Policy{BlobGrace: day}
		if diff := cmp.Diff(c.want, said(plan.Make(c.in))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
