package enforce

import (
	"context"
	"slices"

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
	names := h.find.names(v.Repository)
	if v.Kind != plan.Manifest {
		return v.Kind == plan.Link && len(v.Tags) == 0 && h.known(names, digest, nil), plan.UsedSince, ""
	}
	for _, owner := range v.Owners {
		if h.kept[v.Repository+"@"+string(owner)] {
			return true, plan.Parent, string(owner)
		}
	}
	for _, name := range names {
		if id := h.leases.Lease(name, digest, v.Tags); id != "" {
			return true, plan.Leased, id
		}
	}
	return h.known(names, digest, v.Tags) || h.partUsed(v.Repository, digest), plan.UsedSince, ""
}

// known reports whether something was used since the plan, by any of the names of its repository.
func (h holders) known(names []string, digest content.Digest, tags []string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		pushed, pulled := h.used.Last(name, digest, tags)
		return !pushed.IsZero() || !pulled.IsZero()
	})
}

// sinceIn finds what of a repository was used since the plan.
func (h holders) sinceIn(repository string) since {
	if is, known := h.since[repository]; known {
		return is
	}
	names := h.find.names(repository)
	is := since{manifests: map[content.Digest]bool{}, blobs: usedIn(h.used, names)}
	for _, alias := range names {
		for name := range h.used.Used(alias) {
			if tag, of := name.Tag(); of {
				is.manifests[h.find.tags[repository+"@"+tag].Digest] = true
			} else {
				is.manifests[content.Digest(name)] = true
			}
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
