package plan

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// countOddities is how many verdicts on these there are, but for tags.
func countOddities(r inventory.Registry) (n int) {
	for _, of := range r.Repositories {
		n += len(of.Doubts) + len(of.Dangling) + len(of.Unnamed) + len(of.Uploads)
	}
	return n + len(r.Orphans)
}

// oddities are the verdicts on what is no manifest of use: manifests that cannot be read,
// tags that lead nowhere, uploads, and what no manifest names.
func (p *Plan) oddities(in Input) (going, staying []Verdict) {
	add := func(v Verdict) {
		if v.Remove {
			going = append(going, v)
		} else {
			staying = append(staying, v)
		}
	}
	doubted := map[string]bool{} // repositories
	for _, r := range in.Registry.Repositories {
		if !in.within(r.Name) {
			continue
		}
		doubts := inDoubt(&r)
		doubted[r.Name] = len(doubts) > 0
		p.Doubts += int64(len(doubts))
		for _, why := range doubts {
			p.Warnings = append(p.Warnings, fmt.Sprintf("%s: %s: what no other manifest of this repository names stays", r.Name, why))
		}
		if r.Elsewhere != "" {
			p.Warnings = append(p.Warnings, elsewhere(&r))
			continue
		}
		for _, d := range r.Doubts {
			add(doubtVerdict(r, d, in))
		}
		for _, l := range r.Dangling {
			add(linkVerdict(r.Name, l, in))
		}
		for _, l := range r.Unnamed {
			add(unnamedVerdict(&r, l, len(doubts) > 0, in))
		}
		for _, tag := range r.Tags {
			if tag.Digest == "" {
				add(tagVerdict(r.Name, tag, in))
			}
		}
		for _, u := range r.Uploads {
			add(uploadVerdict(r.Name, u, in))
		}
	}
	if in.Within == nil { // else what no manifest names belongs to no repository
		orphans(in, doubted, add)
	}
	return going, staying
}

// Orphans are the verdicts on what no manifest names, by digest.
func Orphans(in Input) (all []Verdict) {
	doubted := map[string]bool{}
	for _, r := range in.Registry.Repositories {
		doubted[r.Name] = len(inDoubt(&r)) > 0
	}
	orphans(in, doubted, func(v Verdict) { all = append(all, v) })
	return all
}

func orphans(in Input, doubted map[string]bool, add func(Verdict)) {
	aliases := in.Registry.Aliases()
	for _, o := range slices.SortedFunc(slices.Values(in.Registry.Orphans), func(a, b inventory.Orphan) int { return cmp.Compare(a.Digest, b.Digest) }) {
		add(orphanVerdict(o, o.Names(aliases), doubted, in))
	}
}

func linkVerdict(repository string, l inventory.Link, in Input) Verdict {
	v := Verdict{Repository: repository, Kind: Link, Digest: string(l.Digest), Pushed: l.Linked, Age: in.age(l.Linked), Reason: Grace, Explain: "a link to a blob that is not there; its grace is not over"}
	if v.Age > in.Policy.BlobGrace {
		v.Remove, v.Reason, v.Explain = true, Dangling, "it leads to a blob that is not there"
	}
	return v
}

// unnamedVerdict is that on a link to a blob that no manifest of the repository names: it lets
// readers of the repository read the blob.
func unnamedVerdict(r *inventory.Repository, l inventory.Link, doubted bool, in Input) Verdict {
	v := Verdict{Repository: r.Name, Kind: Link, Digest: string(l.Digest), Pushed: l.Linked, Reason: Grace}
	v.Age = in.blobAge(l.Linked, l.Digest, r.Names())
	lease := in.exported(r.Names())
	switch {
	case lease != "":
		v.Reason, v.KeptBy, v.Explain = Leased, lease, "a build writes to the repository: lease "+lease
	case doubted:
		v.Reason, v.Explain = Doubt, "a manifest of the repository cannot be read and may name the blob"
	case !l.Removed.IsZero() && in.Now.Sub(l.Removed) < in.Policy.MaxBuildTime:
		v.Explain = "its manifest was removed a short while ago; builds that have read that may want it"
	case v.Age > in.Policy.BlobGrace:
		v.Remove, v.Reason = true, Unreached
		v.Explain = "no manifest of the repository names the blob that the link leads to"
	default:
		v.Explain = "no manifest of the repository names the blob yet; the grace of the link is not over"
	}
	return v
}

// blobAge is for how long a blob was neither written nor, as far as is known, pulled or mounted in
// any of some repositories.
func (in Input) blobAge(written time.Time, digest content.Digest, repositories []string) time.Duration {
	last := written
	if in.Uses != nil {
		for _, name := range repositories {
			pushed, pulled := in.Uses.Last(name, digest, nil)
			last = later(last, later(pushed, pulled))
		}
	}
	return in.age(last)
}

// exported is the lease of a build that writes to one of some repositories; empty: none does.
func (in Input) exported(repositories []string) (lease string) {
	for _, name := range repositories {
		if in.Leases != nil && lease == "" {
			lease = in.Leases.Export(name)
		}
	}
	return lease
}

// doubtVerdict is that on a manifest which cannot be read: one without bytes reaches
// nothing, and goes when no push of it can be under way.
func doubtVerdict(r inventory.Repository, d inventory.Doubt, in Input) Verdict {
	v := Verdict{Repository: r.Name, Kind: Manifest, Digest: string(d.Digest), Bytes: d.Bytes, Pushed: d.Linked, Age: in.age(d.Linked), Explain: d.Message}
	for _, tag := range r.Tags {
		if tag.Digest == d.Digest {
			v.Tags = append(v.Tags, tag.Name)
		}
	}
	switch {
	case d.Bytes > 0:
		v.Reason = Doubt
	case v.Age > in.Policy.BlobGrace:
		v.Remove, v.Reason = true, Dangling
	default:
		v.Reason = Grace
	}
	return v
}

// tagVerdict is that on a tag which leads nowhere. One that leads to nothing at all may be
// one that is being pushed.
func tagVerdict(repository string, tag inventory.Tag, in Input) Verdict {
	v := Verdict{
		Repository: repository, Kind: Link, Digest: tag.Name, Tags: []string{tag.Name}, Pushed: tag.Moved, Age: in.age(tag.Moved),
		Remove: true, Reason: Dangling, Explain: "the tag leads to a manifest that is not there",
	}
	if tag.Lost == "" {
		v.Explain = "nothing is left of the tag but its directory"
		if v.Age <= in.Policy.BlobGrace {
			v.Remove, v.Reason, v.Explain = false, Grace, "a tag that is being pushed, or what is left of one"
		}
	}
	return v
}

func uploadVerdict(repository string, u inventory.Upload, in Input) Verdict {
	v := Verdict{
		Repository: repository, Kind: Upload, Digest: u.ID, Bytes: u.Bytes, Pushed: u.Changed, Age: in.age(u.Changed), Reason: Grace,
		Explain: "an upload that goes on, or did a short while ago",
	}
	if v.Age > in.Policy.UploadAge {
		v.Remove, v.Reason, v.Frees = true, Abandoned, u.Bytes
		v.Explain = fmt.Sprintf("nothing came for %s; an upload is abandoned after %s", human.Span(v.Age), human.Span(in.Policy.UploadAge))
	}
	return v
}

// orphanVerdict is that on a blob which no manifest names: it goes when its grace is over,
// unless a manifest of a repository that has it cannot be read and may name it.
// repositories are all names of those that have it.
func orphanVerdict(o inventory.Orphan, repositories []string, doubted map[string]bool, in Input) Verdict {
	v := Verdict{Kind: Blob, Digest: string(o.Digest), Bytes: o.Bytes, Pushed: o.Changed}
	v.Age = in.blobAge(o.Changed, o.Digest, repositories)
	near := slices.IndexFunc(repositories, func(name string) bool { return doubted[name] })
	lease := in.exported(repositories)
	sinceRemoved := in.Now.Sub(o.Removed)
	switch {
	case lease != "":
		v.Reason, v.KeptBy, v.Explain = Leased, lease, "a build writes to a repository that has it: lease "+lease
	case !o.Removed.IsZero() && sinceRemoved < in.Policy.MaxBuildTime:
		v.Reason, v.Explain = Grace, fmt.Sprintf("its manifest was removed %s ago; builds that have read that may want it for %s", human.Span(sinceRemoved), human.Span(in.Policy.MaxBuildTime))
	case near >= 0:
		v.Reason, v.Explain = Doubt, "a manifest of "+repositories[near]+" cannot be read and may name it"
	case v.Age > in.Policy.BlobGrace:
		v.Remove, v.Reason, v.Frees = true, Unreached, o.Bytes
		v.Explain = fmt.Sprintf("no manifest names it, and it is %s old; the grace is %s", human.Span(v.Age), human.Span(in.Policy.BlobGrace))
	default:
		v.Reason, v.Explain = Grace, fmt.Sprintf("no manifest names it yet; its grace of %s is not over", human.Span(in.Policy.BlobGrace))
	}
	return v
}

// Amount is what its removal removes.
func (v Verdict) Amount() Amount {
	out := Amount{Bytes: v.Frees, Blobs: v.FreesBlobs}
	switch v.Kind {
	case Manifest:
		out.Manifests = 1
	case Blob:
		out.Blobs++
	case Upload:
		out.Uploads = 1
	case Link:
	}
	return out
}
