package usage

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Chosen returns the snapshot of a survey with the repositories that fit one of the
// patterns: names, or prefixes with "*" at the end; none: all. survey is the time of a
// snapshot that Chosen returned before, as nanoseconds since 1970, for a list that goes
// on; 0 looks at the registry as it is now.
func (s *Surveyor) Chosen(ctx context.Context, patterns []string, survey int64) (Snapshot, error) {
	snapshot, ok := s.recall(survey)
	if !ok && survey != 0 {
		return Snapshot{}, fault.Invalid("page_token", "", "is of a survey that is no longer kept",
			"ask for the first page again, without page_token")
	}
	if !ok {
		var err error
		if snapshot, err = s.Survey(ctx); err != nil {
			return Snapshot{}, err
		}
	}
	return choose(snapshot, patterns)
}

// recall is a snapshot that is kept.
func (s *Surveyor) recall(survey int64) (Snapshot, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, snapshot := range s.recent {
		if snapshot.Time.UnixNano() == survey && time.Since(snapshot.Time) < keptFor {
			return snapshot, true
		}
	}
	return Snapshot{}, false
}

// choose leaves the repositories that fit the patterns in a snapshot.
func choose(snapshot Snapshot, patterns []string) (Snapshot, error) {
	var chosen []RepositoryUsage
	found := map[string]bool{}
	for _, r := range snapshot.Repositories {
		if matches(patterns, r.Name) {
			chosen = append(chosen, r)
			found[r.Name] = true
		}
	}
	for _, name := range patterns {
		if !strings.HasSuffix(name, "*") && !found[name] {
			return Snapshot{}, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no repository %q in the registry", name),
				"leave repositories out to see them all")
		}
	}
	snapshot.Repositories = chosen
	return snapshot, nil
}
