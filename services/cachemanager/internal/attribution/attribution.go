// Package attribution tells whose builds use which records of a daemon's cache.
//
// BuildKit keeps no link from a record to the builds that made and used it. What there
// is: the daemon says when it made a record, when it was last used, and what it is of;
// a builder says when, by the same clock, the steps of a build ran, and their names.
// A record that was made while one step ran, and is of what the step does, is the
// step's. Where that leaves a doubt, nothing is said.
package attribution

import (
	"slices"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// Build is a build that has ended, as its builder saw it.
type Build struct {
	ID      string
	Project string
	Images  []string // that it made
	Workers []string // ids of those of its daemon
	Ended   time.Time
	Cached  int64 // steps
	Total   int64 // steps
	Steps   []Step
}

// Step is what a daemon did for a build.
type Step struct {
	Digest     string // the same step has the same one in each build
	Name       string
	Cached     bool
	Start, End time.Time // by the daemon's clock; zero: it never ran
}

const (
	// letGo is how long after a build's last step the daemon may note the use of a record.
	letGo = 500 * time.Millisecond
	// blur is by how much the times of steps and records may be off.
	blur = 5 * time.Millisecond
)

// Use is what is known of one record.
type Use struct {
	Projects []string `json:"projects,omitempty"` // whose builds have used it, sorted
	Images   []string `json:"images,omitempty"`   // that it is a part of, sorted
	Steps    []string `json:"steps,omitempty"`    // digests of the steps that have it as their result, sorted
}

// Bounds of what is kept of one record.
const (
	maxNames = 100
	maxSteps = 10
)

// add adds projects and images, and reports whether any of them is news.
func (u *Use) add(projects, images []string) (changed bool) {
	for _, p := range projects {
		changed = insert(&u.Projects, p, maxNames) || changed
	}
	for _, image := range images {
		changed = insert(&u.Images, image, maxNames) || changed
	}
	return changed
}

func insert(sorted *[]string, value string, most int) bool {
	at, there := slices.BinarySearch(*sorted, value)
	if there || len(*sorted) >= most {
		return false
	}
	*sorted = slices.Insert(slices.Clip(*sorted), at, value)
	return true
}

// Uses is what is known of the records of one cache, by record id.
type Uses map[string]Use

// Learn adds what builds tell of records, and returns the ids of those of which more is
// known than before.
func (u Uses) Learn(records []cache.Record, builds []Build) (changed []string) {
	if len(builds) == 0 {
		return nil
	}
	l := learning{uses: u, news: map[string]bool{}}
	l.made(records, builds)
	l.found(records, builds)
	l.upwards(records)
	for id := range l.news {
		changed = append(changed, id)
	}
	slices.Sort(changed)
	return changed
}

// learning is one call of Learn.
type learning struct {
	uses Uses
	news map[string]bool
}

func (l learning) used(id string, b Build, step string) {
	use := l.uses[id]
	changed := use.add([]string{b.Project}, b.Images)
	if step != "" {
		changed = insert(&use.Steps, step, maxSteps) || changed
	}
	if changed {
		l.uses[id] = use
		l.news[id] = true
	}
}

// ran is a step that ran for a build.
type ran struct {
	Step
	build Build
}

// made finds the steps that made records: a record is a step's when no other step fits it
// and no other record of the same description fits the step. Builds that run at the same
// time may be reported later, or never.
func (l learning) made(records []cache.Record, builds []Build) {
	steps, longest := stepsOf(builds)
	fits := map[string][]ran{}  // by record
	results := map[string]int{} // records by step and description
	for _, r := range records {
		if len(l.uses[r.ID].Steps) > 0 || !hasStep(r) {
			continue
		}
		from, _ := slices.BinarySearchFunc(steps, r.Created.Add(-longest-blur), func(s ran, t time.Time) int { return s.Start.Compare(t) })
		for _, s := range steps[from:] {
			if s.Start.After(r.Created.Add(blur)) {
				break
			}
			if s.End.Before(r.Created.Add(-blur)) || !describes(r.Description, s.Name) {
				continue
			}
			if !slices.ContainsFunc(fits[r.ID], func(o ran) bool { return o.Digest == s.Digest }) { // builds may share a step
				results[s.Digest+r.Description]++
			}
			fits[r.ID] = append(fits[r.ID], s)
		}
	}
	for _, r := range records {
		all := fits[r.ID]
		if len(all) == 0 || results[all[0].Digest+r.Description] > 1 || slices.ContainsFunc(all, func(s ran) bool { return s.Digest != all[0].Digest }) {
			continue
		}
		for _, s := range all {
			l.used(r.ID, s.build, s.Digest)
		}
	}
}

// stepsOf are the steps that ran, by their start, and the time that the longest took.
func stepsOf(builds []Build) (steps []ran, longest time.Duration) {
	for _, b := range builds {
		for _, s := range b.Steps {
			if !s.Cached && !s.Start.IsZero() && !s.End.IsZero() {
				steps = append(steps, ran{s, b})
				longest = max(longest, s.End.Sub(s.Start))
			}
		}
	}
	slices.SortFunc(steps, func(a, b ran) int { return a.Start.Compare(b.Start) })
	return steps, longest
}

// found finds the records that builds have used without making them.
func (l learning) found(records []cache.Record, builds []Build) {
	byStep := map[string][]string{} // ids of records
	alike := map[string]int{}       // records by description
	for _, r := range records {
		alike[r.Description]++
		for _, step := range l.uses[r.ID].Steps {
			byStep[step] = append(byStep[step], r.ID)
		}
	}
	all := make([]named, len(builds))
	for i, b := range builds {
		all[i] = namesOf(b)
		for _, s := range b.Steps {
			for _, id := range byStep[s.Digest] {
				l.used(id, b, "")
			}
		}
	}
	during := make([]map[string]int, len(builds)) // records by description, last used in the time of the build
	for i, n := range all {
		during[i] = map[string]int{}
		for _, r := range records {
			if n.during(r.LastUsed) {
				during[i][r.Description]++
			}
		}
	}
	for _, r := range records {
		certain := sure(r)
		if !certain && r.Type == cache.Regular && alike[r.Description] > 1 {
			continue // its text does not tell it from others
		}
		var users []Build
		for i, n := range all {
			if (certain || n.during(r.LastUsed) && during[i][r.Description] == 1) && n.has(r) {
				users = append(users, builds[i])
			}
		}
		// The last use of a record is one build's.
		if !certain && slices.ContainsFunc(users, func(b Build) bool { return b.Project != users[0].Project }) {
			continue
		}
		for _, b := range users {
			l.used(r.ID, b, "")
		}
	}
}

// upwards gives what is known of records to those that they are made upon.
func (l learning) upwards(records []cache.Record) {
	byID := make(map[string]cache.Record, len(records))
	for _, r := range records {
		byID[r.ID] = r
	}
	var up func(r cache.Record)
	up = func(r cache.Record) {
		for _, id := range r.Parents {
			parent, there := byID[id]
			if !there {
				continue
			}
			use := l.uses[id]
			if child := l.uses[r.ID]; use.add(child.Projects, child.Images) {
				l.uses[id] = use
				l.news[id] = true
				up(parent)
			}
		}
	}
	for _, r := range records {
		if l.news[r.ID] {
			up(r)
		}
	}
}
