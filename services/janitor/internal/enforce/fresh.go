package enforce

import (
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
)

// pushes looks for manifests that came since the registry was read: what they name stays, or comes
// back if it went before.
type pushes struct {
	storage Storage // nil: out of reach
	marked  map[string]*inventory.Repository
	known   map[string]map[content.Sum]bool // by repository, as far as these were asked for
	gone    map[string]gone                 // what went, by repository and digest
	fresh   map[string]inventory.Fresh      // as they were looked at last
}

// gone is something that a run has removed.
type gone struct {
	manifest bool // else a link to a blob
}

func newPushes(storage Storage, r inventory.Registry) *pushes {
	p := &pushes{
		storage: storage, marked: map[string]*inventory.Repository{}, known: map[string]map[content.Sum]bool{}, gone: map[string]gone{},
		fresh: map[string]inventory.Fresh{},
	}
	for i := range r.Repositories {
		p.marked[r.Repositories[i].Name] = &r.Repositories[i]
	}
	return p
}

// knownIn are the manifests of a repository that were read for the plan.
func (p *pushes) knownIn(repository string) map[content.Sum]bool {
	known := p.known[repository]
	if known != nil {
		return known
	}
	known = map[content.Sum]bool{}
	p.known[repository] = known
	of := p.marked[repository]
	if of == nil {
		return known
	}
	add := func(d content.Digest) {
		if sum, is := d.Sum(); is {
			known[sum] = true
		}
	}
	for i := range of.Manifests {
		add(of.Manifests[i].Digest)
	}
	for _, d := range of.Doubts {
		if !d.Missing {
			add(d.Digest)
		}
	}
	return known
}

// look looks at the repositories of some verdicts, and brings back what is named and went.
func (p *pushes) look(part []plan.Verdict) error {
	if p.storage == nil {
		return nil
	}
	clear(p.fresh)
	for _, v := range part {
		if _, done := p.fresh[v.Repository]; done || v.Kind == plan.Upload || v.Repository == "" {
			continue
		}
		known := p.knownIn(v.Repository)
		fresh, err := p.storage.Fresh(v.Repository, func(s content.Sum) bool { return known[s] })
		if err != nil {
			return unreadable(err)
		}
		p.fresh[v.Repository] = fresh
		if err := p.bringBack(v.Repository, fresh); err != nil {
			return err
		}
	}
	return nil
}

// bringBack brings back what is named and went before.
func (p *pushes) bringBack(repository string, fresh inventory.Fresh) error {
	for d, by := range fresh.Names {
		key := repository + "@" + string(d)
		went, is := p.gone[key]
		if !is {
			continue
		}
		if _, err := p.storage.Mend(inventory.Lack{Repository: repository, Manifest: by, Digest: d, Child: went.manifest}); err != nil {
			return err
		}
		delete(p.gone, key)
	}
	return nil
}

// named says whether something stays for what came since the plan was made, and why.
func (p *pushes) named(v plan.Verdict) (held bool, reason plan.Reason, by string) {
	fresh := p.fresh[v.Repository]
	if other, is := fresh.Names[content.Digest(v.Digest)]; is {
		if string(other) == v.Digest {
			return true, plan.UsedSince, ""
		}
		return true, plan.Parent, string(other)
	}
	return fresh.Unread != "" && v.Kind == plan.Manifest && len(v.Tags) == 0, plan.Doubt, ""
}

// went notes that something was removed: should it be pushed again, that is news.
func (p *pushes) went(v plan.Verdict) {
	if p.storage == nil || v.Kind != plan.Manifest && (v.Kind != plan.Link || len(v.Tags) > 0) {
		return
	}
	p.gone[v.Repository+"@"+v.Digest] = gone{manifest: v.Kind == plan.Manifest}
	if sum, is := content.Digest(v.Digest).Sum(); is && v.Kind == plan.Manifest {
		delete(p.knownIn(v.Repository), sum)
	}
}
