package outcome

import (
	"cmp"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// errorText is the text of an error as a source of BuildKit, or of a library below it,
// has it.
type errorText struct {
	dir   string // module and directory
	text  string // as a format
	wraps bool   // the text of a cause follows
}

// verdict says what a text tells of whose business a failure is.
type verdict string

// The verdicts of the corpus.
const (
	saysUser    verdict = "user"           // the Dockerfile, the request, or what they name
	saysInfra   verdict = "infrastructure" // the daemon, or what it runs on
	saysPolicy  verdict = "policy"         // of the daemon's operator
	saysCause   verdict = "cause"          // where it happened: the cause says what
	saysNothing verdict = "unknown"        // said of anything: the failure counts as infrastructure
	minLetters          = 10               // letters that a text must have to be looked for
)

// corpus is all error texts of the pinned BuildKit that can end a build, with the
// verdict on each. TestCorpus_HasEveryErrorText holds it to the sources, and writes
// what it lacks with -update.
//
//go:embed corpus.tsv
var corpus string

// readCorpus reads lines of verdict, "leaf" or "wrap", directory and quoted text.
func readCorpus(text string) (map[errorText]verdict, error) {
	all := make(map[errorText]verdict)
	for line := range strings.Lines(text) {
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) != 4 {
			return nil, fmt.Errorf("corpus.tsv: %q does not have 4 fields", line)
		}
		format, err := strconv.Unquote(fields[3])
		if err != nil {
			return nil, fmt.Errorf("corpus.tsv: %q: %w", line, err)
		}
		all[errorText{dir: fields[2], text: format, wraps: fields[1] == "wrap"}] = verdict(fields[0])
	}
	return all, nil
}

// matcher finds one text of the corpus in an error.
type matcher struct {
	pattern *regexp.Regexp
	part    string // its longest part without verbs, which is looked for first
	letters int    // how much of it is not a verb: the more, the surer
	dir     string
	says    verdict
}

// matchers are those of the texts that are decisive and long enough.
var matchers = sync.OnceValue(func() []matcher {
	all, err := readCorpus(corpus)
	if err != nil {
		return nil // the tests read it too
	}
	var out []matcher
	for text, says := range all {
		if m := matcherOf(text, says); says != saysCause && says != saysNothing && m.letters >= minLetters {
			out = append(out, m)
		}
	}
	slices.SortFunc(out, func(a, b matcher) int {
		return cmp.Or(b.letters-a.letters, strings.Compare(a.dir, b.dir), strings.Compare(a.part, b.part))
	})
	return out
})

var verb = regexp.MustCompile(`%[#+0-9.\-]*[a-zA-Z]`)

// matcherOf looks for a text where it stands in an error: after the texts that wrap
// it, and at the end unless it wraps another.
func matcherOf(text errorText, says verdict) matcher {
	m := matcher{dir: text.dir, says: says}
	var pattern strings.Builder
	for i, part := range verb.Split(strings.ReplaceAll(text.text, "%%", "%"), -1) {
		if i > 0 {
			pattern.WriteString(`.*`)
		}
		pattern.WriteString(regexp.QuoteMeta(part))
		m.letters += len(strings.TrimSpace(part))
		if len(part) > len(m.part) {
			m.part = part
		}
	}
	end := `(?: \(did you mean .*\))?$`
	if text.wraps {
		end = `: `
	}
	m.pattern = regexp.MustCompile(`(?s)(?:^|: |\n)` + pattern.String() + end)
	return m
}

// inCorpus returns the verdict of the corpus on an error, and the directory of the
// source that has its text; nothing for a text that no source has. Of several texts
// that match, the longest counts.
func inCorpus(text string) (says verdict, dir string) {
	for _, m := range matchers() {
		if strings.Contains(text, m.part) && m.pattern.MatchString(text) {
			return m.says, m.dir
		}
	}
	return "", ""
}
