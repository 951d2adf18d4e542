package enforce

import (
	"context"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
	"github.com/kilnbuild/kiln/services/janitor/internal/lease"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
)

// holders are what keeps manifests just now, whatever the plan says.
type holders struct {
	leases lease.Set
	used   *lastuse.Book   // that the janitor was told of since the plan
	kept   map[string]bool // manifests that stayed before
	since  map[string]since
	find   index
}

// since are the manifests and blobs of a repository that were used since the plan.
type since struct {
	manifests map[content.Digest]bool
	blobs     used
}

func (j *job) holders(ctx context.Context, find index, kept map[string]bool) (h holders, err error) {
	h = holders{kept: kept, since: map[string]since{}, find: find}
	if h.leases, err = j.engine.State.Leases(ctx, j.engine.Now()); err != nil {
		return h, err
	}
	h.used, err = j.engine.State.UsesSince(ctx, j.planned)
	return h, err
}

// hold says whether something stays, and why.
func (h holders) hold(v plan.Verdict) (held bool, reason plan.Reason, by string) {
	digest := content.Digest(v.Digest)
	if v.Kind != plan.Manifest {
		pushed, pulled := h.used.Last(v.Repository, digest, nil)
		return v.Kind == plan.Link && len(v.Tags) == 0 && (!pushed.IsZero() || !pulled.IsZero()), plan.UsedSince, ""
	}
	for _, owner := range v.Owners {
		if h.kept[v.Repository+"@"+string(owner)] {
			return true, plan.Parent, string(owner)
		}
	}
	if id := h.leases.Lease(v.Repository, digest, v.Tags); id != "" {
		return true, plan.Leased, id
	}
	pushed, pulled := h.used.Last(v.Repository, digest, v.Tags)
	return !pushed.IsZero() || !pulled.IsZero() || h.partUsed(v.Repository, digest), plan.UsedSince, ""
}

// sinceIn finds what of a repository was used since the plan.
func (h holders) sinceIn(repository string) since {
	if is, known := h.since[repository]; known {
		return is
	}
	is := since{manifests: map[content.Digest]bool{}, blobs: usedIn(h.used, repository)}
	for name := range h.used.Used(repository) {
		if tag, of := name.Tag(); of {
			is.manifests[h.find.tags[repository+"@"+tag].Digest] = true
		} else {
			is.manifests[content.Digest(name)] = true
		}
	}
	h.since[repository] = is
	return is
}

// partUsed reports whether a manifest, or a part of it, or a blob of one of these was used since the
// plan: to use a part is to use the whole.
func (h holders) partUsed(repository string, digest content.Digest) bool {
	is := h.sinceIn(repository)
	if len(is.manifests)+len(is.blobs) == 0 {
		return false
	}
	seen := map[content.Digest]bool{}
	next := []content.Digest{digest}
	for len(next) > 0 {
		one := next[len(next)-1]
		next = next[:len(next)-1]
		m := h.find.manifests[repository+"@"+string(one)]
		if seen[one] || m == nil {
			continue
		}
		seen[one] = true
		if is.manifests[one] || !is.blobs.last(h.find.repositories[repository], m.Manifest).IsZero() {
			return true
		}
		next = append(next, m.Children...)
		if m.Of == content.Index { // which may say that a manifest is something else
			for b := range m.Layers() {
				next = append(next, b.Digest())
			}
		}
	}
	return false
}
