package attribution

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// How BuildKit describes records (v0.34): of a file operation, a merge or a diff with the
// name of the step (solver/llbsolver/ops); of a command with its arguments (ops/exec.go,
// mounts/mount.go); of an image with its reference; of sources with where they are from
// (source/git, source/http, source/local).
const (
	ofCommand = " from exec "
	ofImage   = "pulled from "
	ofLocal   = "local source for "
	ofGit     = "git snapshot for "
	ofGitRepo = "shared git repo for "
	ofURL     = "http url "
)

// hasStep reports whether a record is one that a step makes while it runs.
func hasStep(r cache.Record) bool {
	return r.Type == cache.Regular || r.Type == cache.CacheMount || r.Type == cache.SourceLocal
}

// loads are the steps that make local sources, by the name of the source.
var loads = map[string][]string{
	"context":    {"[internal] load build context", "[internal] load .dockerignore"},
	"dockerfile": {"[internal] load build definition"},
}

// How BuildKit's Dockerfile frontend names steps: "[build 2/3] RUN --network=none make",
// with variables replaced, is of the command "make"; of a here-document there is the first
// line, and of the list form the list (frontend/dockerfile/dockerfile2llb).
var (
	instruction = regexp.MustCompile(`^(?:\[[^\]]*\] )?(?:RUN (?:--\S+ )*)?`)
	document    = regexp.MustCompile(`^<<-?["']?\w+["']? \((.*?)(?:\.\.\.)?\)$`)
	shell       = regexp.MustCompile(`^\S+ (?:\S+ )*?-\w*c `)
	mountID     = regexp.MustCompile(` with id "[^"]*"$`)
	variable    = regexp.MustCompile(`\$(?:\{[^}]*\}|\w+)`)
)

// cut is a length from which on the name of a step may not be all of it.
const cut = 1000

// describes reports whether a record that is described so is of a step of that name.
func describes(description, step string) bool {
	if description == step {
		return step != ""
	}
	if source, ok := strings.CutPrefix(description, ofLocal); ok {
		return slices.ContainsFunc(loads[source], func(name string) bool { return strings.HasPrefix(step, name) })
	}
	what, command, ok := strings.Cut(description, ofCommand)
	if !ok {
		return false
	}
	if target, ok := strings.CutPrefix(what, "cached mount "); ok && strings.Contains(step, " --mount=") && !strings.Contains(step, "="+target) {
		return false
	}
	command = plain(mountID.ReplaceAllString(command, ""))
	does := plain(strings.TrimPrefix(step, instruction.FindString(step)))
	var list []string
	if json.Unmarshal([]byte(does), &list) == nil {
		return command == plain(strings.Join(list, " "))
	}
	body := strings.TrimPrefix(command, shell.FindString(command))
	if doc := document.FindStringSubmatch(does); doc != nil {
		return strings.HasPrefix(body, plain(doc[1]))
	}
	if len(step) >= cut {
		return strings.HasPrefix(body, does)
	}
	return does != "" && fits(does, variable.Split(body, -1))
}

// fits reports whether a text consists of the parts, in their order, with anything
// between them.
func fits(text string, parts []string) bool {
	last := len(parts) - 1
	if last == 0 {
		return text == parts[0]
	}
	text, ok := strings.CutPrefix(text, parts[0])
	if !ok {
		return false
	}
	for _, part := range parts[1:last] {
		if _, text, ok = strings.Cut(text, part); !ok {
			return false
		}
	}
	return strings.HasSuffix(text, parts[last])
}

// plain is a text with its white space made even.
func plain(text string) string { return strings.Join(strings.Fields(text), " ") }

// named are what a build says that it has used.
type named struct {
	build    string
	names    []string // of its steps
	cached   []string // of those that were found in a cache
	from, to time.Time
}

func namesOf(b Build) named {
	n := named{build: b.ID}
	for _, step := range b.Steps {
		if !step.Start.IsZero() && (n.from.IsZero() || step.Start.Before(n.from)) {
			n.from = step.Start
		}
		if step.End.After(n.to) {
			n.to = step.End
		}
		n.names = append(n.names, step.Name)
		if step.Cached {
			n.cached = append(n.cached, step.Name)
		}
	}
	return n
}

// during reports whether a time lies in that of the build, and the moment after it in
// which the daemon lets go of what it used.
func (n named) during(t time.Time) bool {
	return !t.IsZero() && !t.Before(n.from.Add(-blur)) && !t.After(n.to.Add(letGo))
}

// has reports whether the build may have used a record, by what it is of.
func (n named) has(r cache.Record) bool {
	switch r.Type {
	case cache.History:
		ref := strings.TrimPrefix(r.ID, cache.HistoryPrefix)
		return ref == n.build || strings.HasPrefix(ref, n.build+"-") // which is another attempt
	case cache.SourceLocal, cache.CacheMount:
		return describe(r.Description, n.names)
	}
	for _, prefix := range []string{ofImage, ofGit, ofGitRepo, ofURL} {
		if name, ok := strings.CutPrefix(r.Description, prefix); ok {
			return name != "" && mention(n.names, name)
		}
	}
	return describe(r.Description, n.cached) // a step that ran has made a record of its own
}

// sure reports whether what a record is of tells alone that a build has used it.
func sure(r cache.Record) bool {
	return r.Type == cache.History || strings.HasPrefix(r.Description, ofImage) || strings.HasPrefix(r.Description, ofGit)
}

func mention(names []string, text string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, text) })
}

func describe(description string, names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool { return describes(description, name) })
}
