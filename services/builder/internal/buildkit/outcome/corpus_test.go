package outcome

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

var update = flag.Bool("update", false, `bring corpus.tsv to the pinned sources; new texts get the verdict "?"`)

// The corpus has a verdict on each error text of the pinned BuildKit, and on no other:
// a new version of BuildKit is not adopted before somebody has judged its new errors.
func TestCorpus_HasEveryErrorText(t *testing.T) {
	have, err := readCorpus(corpus)
	if err != nil {
		t.Fatal(err)
	}
	sources := errorTexts(t)
	if *update {
		writeCorpus(t, sources, have)
		return
	}
	lacking := 0
	for text := range sources {
		if _, ok := have[text]; !ok {
			lacking++
			t.Logf("lacking: %s: %q", text.dir, text.text)
		}
	}
	for text := range have {
		if !sources[text] {
			lacking++
			t.Logf("no longer in the sources: %s: %q", text.dir, text.text)
		}
	}
	if lacking > 0 {
		t.Errorf("corpus.tsv differs from the pinned sources in %d texts: run this test with -update, and judge the texts marked ?", lacking)
	}
	for text, says := range have {
		known := []verdict{saysUser, saysInfra, saysPolicy, saysNothing}
		if text.wraps {
			known = []verdict{saysUser, saysInfra, saysPolicy, saysCause}
		}
		if !slices.Contains(known, says) {
			t.Errorf("%s: %q has the verdict %q, want one of %v", text.dir, text.text, says, known)
		}
	}
}

func writeCorpus(t *testing.T, sources map[errorText]bool, have map[errorText]verdict) {
	t.Helper()
	var lines []string
	for text := range sources {
		kind, says := "leaf", have[text]
		if text.wraps {
			kind = "wrap"
		}
		if says == "" {
			says = "?"
		}
		lines = append(lines, fmt.Sprintf("%s\t%q\t%s\t%s\n", text.dir, text.text, kind, says))
	}
	slices.Sort(lines)
	var out strings.Builder
	for _, line := range lines {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		fmt.Fprintf(&out, "%s\t%s\t%s\t%s\n", f[3], f[2], f[0], f[1])
	}
	if err := os.WriteFile("corpus.tsv", []byte(out.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Each decisive text of the corpus is told as the corpus says, also when its verbs are
// filled in and other errors wrap it. The rules that come first may know better: whose
// fault a missing source is depends on its host.
func TestFailureOf_FollowsTheCorpus(t *testing.T) {
	have, err := readCorpus(corpus)
	if err != nil {
		t.Fatal(err)
	}
	classes := map[verdict]build.Class{saysUser: build.User, saysInfra: build.Infrastructure, saysPolicy: build.Policy}
	var told, other int
	for text, says := range have {
		if says == saysCause || says == saysNothing || matcherOf(text, says).letters < minLetters {
			continue
		}
		said := "failed to solve: " + verb.ReplaceAllString(text.text, "x7")
		if text.wraps {
			said += ": what lies below"
		}
		if f := FailureOf(t.Context(), errors.New(said), nil); f.Class == classes[says] {
			told++
		} else {
			other++
			t.Logf("%s: %q is %s, class %d", text.dir, text.text, f.Reason, f.Class)
		}
	}
	if other > told/20 {
		t.Errorf("%d texts are told as the corpus says, and %d otherwise", told, other)
	}
}
