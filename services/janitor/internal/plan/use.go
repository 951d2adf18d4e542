package plan

import (
	"slices"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// use takes in what is known of uses and leases. To use a part of a manifest is to use the
// whole, however deep it lies.
func (f *family) use(in Input, r *inventory.Repository) {
	for _, n := range f.nodes {
		n.use(in)
	}
	f.useBlobs(in, r)
	latest := func(at func(*node) *time.Time) {
		f.spread(func(a, b *node) int { return at(b).Compare(*at(a)) }, func(from, to *node) { *at(to) = *at(from) })
	}
	latest(func(n *node) *time.Time { return &n.used })
	latest(func(n *node) *time.Time { return &n.pulled })
	for _, n := range f.nodes {
		if n.lease != "" {
			n.lend()
		}
	}
}

// spread has each manifest take over from the first, in an order, of those that it names,
// directly or not, and itself.
func (f *family) spread(order func(a, b *node) int, takeOver func(from, to *node)) {
	if !slices.ContainsFunc(f.nodes, func(n *node) bool { return len(n.wholes) > 0 }) {
		return
	}
	done := make(map[*node]bool, len(f.nodes))
	for _, first := range slices.SortedStableFunc(slices.Values(f.nodes), order) {
		next := []*node{first}
		for len(next) > 0 {
			n := next[len(next)-1]
			next = next[:len(next)-1]
			if done[n] {
				continue
			}
			done[n] = true
			if n != first {
				takeOver(first, n)
			}
			next = append(next, n.wholes...)
		}
	}
}

// lend has what a leased manifest is a part of, and what it is about, be leased too.
func (n *node) lend() {
	for _, o := range n.owners {
		if o.lease == "" {
			o.lease = n.lease
			o.lend()
		}
	}
}

// use takes in what is known of its own uses and leases, by each name of its repository.
func (n *node) use(in Input) {
	for _, name := range n.names {
		if in.Uses != nil {
			pushed, pulled := in.Uses.Last(name, n.manifest.Digest, n.verdict.Tags)
			n.pushed, n.verdict.Pulled = later(n.pushed, pushed), later(n.verdict.Pulled, pulled)
			n.used = later(n.used, later(pushed, pulled))
		}
		if in.Leases != nil && n.lease == "" {
			n.lease = in.Leases.Lease(name, n.manifest.Digest, n.verdict.Tags)
		}
	}
	n.pulled = n.verdict.Pulled
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// useBlobs counts the pull of a blob as one of all manifests of the repository that name it: a
// client that has the manifest asks for blobs alone.
func (f *family) useBlobs(in Input, r *inventory.Repository) {
	if in.Uses == nil || len(f.nodes) == 0 {
		return
	}
	used := map[content.Blob]time.Time{}
	for _, name := range f.nodes[0].names {
		for d, at := range in.Uses.Pulls(name) {
			b := content.NewBlob(d, 0)
			used[b] = later(used[b], at)
		}
	}
	if len(used) == 0 {
		return
	}
	for _, n := range f.nodes {
		for b := range n.manifest.Layers() {
			at := used[b]
			if _, is := b.Sum(); !is {
				at = later(at, used[content.NewBlob(r.Resolved[b.Digest()], 0)])
			}
			n.pulled, n.used = later(n.pulled, at), later(n.used, at)
		}
	}
}

// settle says how long it was unused, without the time that nobody listened.
func (n *node) settle(in Input) {
	n.verdict.Age = in.age(n.used)
	if in.Uses != nil {
		n.verdict.Age = max(0, n.verdict.Age-in.Uses.Away(n.used))
	}
	for _, o := range n.owners {
		n.verdict.Owners = append(n.verdict.Owners, o.manifest.Digest)
	}
}
