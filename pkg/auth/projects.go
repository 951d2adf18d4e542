package auth

import "slices"

// Projects returns the patterns of the projects that a call may be about, sorted: names,
// or beginnings of names that end in "*". Without bounds it returns false: no rule says
// anything of projects.
func (g Grant) Projects() (patterns []string, bounded bool) {
	if g.Unbounded() {
		return nil, false
	}
	for _, r := range g.rules {
		patterns = append(patterns, r.GetProjects()...)
	}
	slices.Sort(patterns)
	return slices.Compact(patterns), true
}
