package local

import (
	"encoding/json"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// ledger is what the directory itself does not tell. To lose it makes nothing go
// sooner: ages then count from the files' times, and the grace of orphans anew.
type ledger struct {
	Uses    map[string]use              `json:"uses,omitempty"`    // by tag
	Orphans map[digest.Digest]time.Time `json:"orphans,omitempty"` // seen to be one first
}

// use is what leases have told of a tag.
type use struct {
	Time     time.Time `json:"time"`
	Count    int       `json:"count"`
	Projects []string  `json:"projects,omitempty"` // sorted
}

func readLedger(root *os.Root) (ledger, error) {
	var l ledger
	body, err := root.ReadFile(ledgerFile)
	if err != nil && !missing(err) {
		return l, err
	}
	if err == nil {
		_ = json.Unmarshal(body, &l) // one that cannot be read is as good as none
	}
	if l.Uses == nil {
		l.Uses = map[string]use{}
	}
	if l.Orphans == nil {
		l.Orphans = map[digest.Digest]time.Time{}
	}
	return l, nil
}

func (l ledger) write(root *os.Root) error {
	body, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return replaceOwn(root, ledgerFile, body, toKernel)
}

// maxProjects bounds the projects of a tag.
const maxProjects = 100

// used notes a use of a tag, by a project if it is known.
func (l ledger) used(tag, project string, at time.Time) {
	u := l.Uses[tag]
	if at.After(u.Time) {
		u.Time = at
	}
	u.Count++
	if at, known := slices.BinarySearch(u.Projects, project); project != "" && !known && len(u.Projects) < maxProjects {
		u.Projects = slices.Insert(u.Projects, at, project)
	}
	l.Uses[tag] = u
}
