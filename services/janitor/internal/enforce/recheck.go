package enforce

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
)

// recheck is the plan that was given, as it stands now: what was pushed, pulled, moved or
// leased since stays.
func (j *job) recheck(ctx context.Context, now run.Plan) (run.Plan, error) {
	e := j.engine
	kept, had := map[string]bool{}, map[string]bool{}
	find := indexOf(j.in.Registry)
	just, err := j.holders(ctx, find, kept)
	if err != nil {
		return now, err
	}
	out := run.Plan{Plan: &plan.Plan{Time: now.Time, PolicyVersion: j.run.PolicyVersion, Rules: now.Rules, Keeps: now.Keeps, Doubts: now.Doubts}, Digest: j.run.PlanDigest, Created: now.Created, Reach: e.reach()}
	for _, e := range j.entries {
		had[string(e.Kind)+e.Repository+"@"+e.Digest] = true
	}
	var stay []plan.Verdict
	disagrees := j.disagreement(now, had)
	for i, v := range j.given {
		if had[keyOf(v)] {
			continue // taken before the run was taken up again
		}
		reason, by, explain := find.since(v)
		if reason == "" {
			reason, by, explain = disagrees(v)
		}
		if held, why, holder := just.hold(v); held && reason == "" {
			reason, by, explain = why, holder, "it stays: "+strings.ReplaceAll(string(why), "_", " ")
		}
		if reason == "" && v.Reason != plan.Family && j.overBudget(out.Removes, j.given[i:familyAt(j.given, i)]) {
			reason, explain, j.spent = plan.OverBudget, "over the budget of the run", true
		}
		if reason != "" {
			kept[v.Repository+"@"+v.Digest] = true
			v.Remove, v.Reason, v.KeptBy, v.Explain, v.Frees = false, reason, by, explain, 0
			j.tell(ctx, []plan.Verdict{v})
			stay = append(stay, v)
			continue
		}
		out.Removes = out.Removes.Plus(v.Amount())
		out.Verdicts = append(out.Verdicts, v)
	}
	out.Verdicts = append(out.Verdicts, stay...)
	return out, nil
}

// keyOf names what a verdict is on.
func keyOf(v plan.Verdict) string { return string(v.Kind) + v.Repository + "@" + v.Digest }

// disagreement returns why something of the plan that was given stays by a plan that is made now: what
// an index lists that came since, for one. Where the policy in force has to agree, that goes which this
// plan removes, and nothing else. What went with an owner that the run has taken before may have no
// rule of its own: that goes.
func (j *job) disagreement(now run.Plan, had map[string]bool) func(plan.Verdict) (_ plan.Reason, by, explain string) {
	fresh := make(map[string]*plan.Verdict, len(now.Verdicts))
	for i := range now.Verdicts {
		fresh[keyOf(now.Verdicts[i])] = &now.Verdicts[i]
	}
	ownerTaken := func(v plan.Verdict) bool {
		return slices.ContainsFunc(v.Owners, func(d content.Digest) bool { return had[string(plan.Manifest)+v.Repository+"@"+string(d)] })
	}
	return func(v plan.Verdict) (plan.Reason, string, string) {
		is := fresh[keyOf(v)]
		switch {
		case is == nil && j.agree:
			return plan.Doubt, "", "it is not in a plan by the policy in force"
		case is == nil, !j.agree && is.Reason == plan.OverBudget:
			return "", "", ""
		case is.Remove, is.Reason == plan.NoRule && v.Reason == plan.Family && ownerTaken(v):
			return "", "", ""
		}
		return is.Reason, is.KeptBy, "a plan that is made now keeps it: " + is.Explain
	}
}

// overBudget reports whether a family more would be beyond the budget.
func (j *job) overBudget(sum plan.Amount, family []plan.Verdict) bool {
	for _, v := range family {
		sum = sum.Plus(v.Amount())
	}
	b := j.policy.Budget
	return b.Manifests != nil && sum.Manifests > *b.Manifests || b.Bytes != nil && sum.Bytes > *b.Bytes
}

// index finds things of an inventory.
type index struct {
	manifests map[string]*inventory.Manifest
	doubts    map[string]inventory.Doubt
	orphans   map[string]inventory.Orphan
	tags      map[string]inventory.Tag // by repository and name
	uploads   map[string]inventory.Upload
	links     map[string]inventory.Link

	repositories map[string]*inventory.Repository
}

func indexOf(r inventory.Registry) index {
	x := index{
		manifests: map[string]*inventory.Manifest{}, doubts: map[string]inventory.Doubt{}, orphans: map[string]inventory.Orphan{},
		tags: map[string]inventory.Tag{}, uploads: map[string]inventory.Upload{}, links: map[string]inventory.Link{},
		repositories: map[string]*inventory.Repository{},
	}
	for i := range r.Repositories {
		of := &r.Repositories[i]
		x.repositories[of.Name] = of
		for k := range of.Manifests {
			x.manifests[of.Name+"@"+string(of.Manifests[k].Digest)] = &of.Manifests[k]
		}
		for _, d := range of.Doubts {
			x.doubts[of.Name+"@"+string(d.Digest)] = d
		}
		for _, t := range of.Tags {
			x.tags[of.Name+"@"+t.Name] = t
		}
		for _, u := range of.Uploads {
			x.uploads[of.Name+"@"+u.ID] = u
		}
		for _, l := range slices.Concat(of.Dangling, of.Unnamed) {
			x.links[of.Name+"@"+string(l.Digest)] = l
		}
	}
	for _, o := range r.Orphans {
		x.orphans[string(o.Digest)] = o
	}
	return x
}

// names are all names of a repository, its own first.
func (x index) names(repository string) []string {
	if of := x.repositories[repository]; of != nil {
		return of.Names()
	}
	return []string{repository}
}

// since is why something that was to go stays: it is gone, or is not as it was.
func (x index) since(v plan.Verdict) (_ plan.Reason, by, explain string) {
	changed := func(there bool, at time.Time) (plan.Reason, string, string) {
		switch {
		case !there:
			return plan.Gone, "", "it was gone before"
		case !at.Equal(v.Pushed):
			return plan.UsedSince, "", "it was written since the plan was made"
		}
		return "", "", ""
	}
	key := v.Repository + "@" + v.Digest
	switch {
	case v.Kind == plan.Blob:
		o, there := x.orphans[v.Digest]
		return changed(there, o.Changed)
	case v.Kind == plan.Upload:
		u, there := x.uploads[key]
		return changed(there, u.Changed)
	case v.Kind == plan.Link && len(v.Tags) > 0:
		t, there := x.tags[key]
		return changed(there && t.Digest == "", t.Moved)
	case v.Kind == plan.Link:
		l, there := x.links[key]
		return changed(there, l.Linked)
	}
	if m := x.manifests[key]; m != nil {
		return changed(true, m.Pushed)
	}
	d, there := x.doubts[key]
	return changed(there, d.Linked)
}
