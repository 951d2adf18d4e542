// Package quarantine has the words of what runs have removed and can still bring back.
package quarantine

import (
	"cmp"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
)

// Entry is something that a run has removed, or is about to.
type Entry struct {
	ID         string        `json:"id"`
	Run        string        `json:"-"`
	Kind       plan.ItemKind `json:"kind"`
	Repository string        `json:"repository,omitempty"`
	Digest     string        `json:"digest"` // or the id of an upload, or the name of a tag
	Tags       []string      `json:"tags,omitempty"`
	Of         content.Kind  `json:"of,omitempty"`
	Bytes      int64         `json:"bytes,omitempty"`
	Reason     plan.Reason   `json:"reason"`
	Rule       string        `json:"rule,omitempty"`
	Linked     []string      `json:"linked,omitempty"` // repositories that had links to a blob
	Pushed     time.Time     `json:"pushed,omitzero"`
	At         time.Time     `json:"at"`
	Purge      time.Time     `json:"-"`
}

// Compare orders entries: the newest first, of one moment the last that its run noted.
func (e Entry) Compare(o Entry) int {
	return cmp.Or(o.At.Compare(e.At), cmp.Compare(len(o.ID), len(e.ID)), cmp.Compare(o.ID, e.ID))
}

// Head is what is known of a run by its quarantine.
type Head struct {
	Run          string        `json:"run"`
	Started      time.Time     `json:"started"`
	Keep         time.Duration `json:"keep"` // how long what it removed can be restored
	MaxBuildTime time.Duration `json:"max_build_time"`
	// Order is what it was asked for, in the words of who asked, to take it up again.
	Order []byte `json:"order"`
}

// Line is one line of the journal of a run. One field is set.
type Line struct {
	Head *Head `json:"head,omitempty"`
	// Planned is what is to go: a run that is taken up again goes on with it.
	Planned *plan.Verdict `json:"planned,omitempty"`
	// Ready says that the plan is whole.
	Ready bool `json:"ready,omitempty"`
	// Entry is written before what it names is taken.
	Entry *Entry `json:"entry,omitempty"`
	// Resumed says that the run was taken up again.
	Resumed bool `json:"resumed,omitempty"`
	// End says that nothing is left to be done.
	End bool `json:"end,omitempty"`
}

// Journal is what a run has written.
type Journal struct {
	Head    Head
	Planned []plan.Verdict
	Ready   bool
	Entries []Entry
	Resumed int
	End     bool
}

// Result is what became of things that were to be brought back.
type Result struct {
	Restored []Entry
	Present  []Entry // the registry had them again meanwhile
}

// Add takes in a line.
func (j *Journal) Add(line Line) {
	switch {
	case line.Head != nil:
		j.Head = *line.Head
	case line.Planned != nil:
		j.Planned = append(j.Planned, *line.Planned)
	case line.Ready:
		j.Ready = true
	case line.Entry != nil:
		e := *line.Entry
		e.Run, e.Purge = j.Head.Run, e.At.Add(j.Head.Keep)
		j.Entries = append(j.Entries, e)
	case line.Resumed:
		j.Resumed++
	case line.End:
		j.End = true
	}
}

// Over reports whether all that the run took can go for good, and when it took manifests
// does not matter any more.
func (j *Journal) Over(now time.Time) bool {
	for _, e := range j.Entries {
		if e.Purge.After(now) || e.At.Add(j.Head.MaxBuildTime).After(now) {
			return false
		}
	}
	return true
}

// References are those by which a manifest was pulled: its tags or, without one, its
// digest.
func (e Entry) References() (all []string) {
	if e.Kind != plan.Manifest {
		return nil
	}
	for _, tag := range e.Tags {
		all = append(all, e.Repository+":"+tag)
	}
	if len(all) == 0 {
		all = []string{e.Repository + "@" + e.Digest}
	}
	return all
}
