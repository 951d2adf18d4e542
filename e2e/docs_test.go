package e2e_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// documents are the texts of all documents, by their paths from here.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../docs/*/*.md", "../examples/*/*.md"} {
		for _, file := range labtest.Must(filepath.Glob(pattern))(t) {
			all[file] = string(labtest.Must(os.ReadFile(file))(t))
		}
	}
	if len(all) < 15 {
		t.Fatalf("%d documents", len(all))
	}
	return all
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	fence   = regexp.MustCompile("(?s)```[a-z]*\n(.*?)```")
	inline1 = regexp.MustCompile("`([^`\n]+)`")
)

// anchorOf is how a heading is linked to.
func anchorOf(text string) string {
	text = strings.ToLower(strings.NewReplacer("`", "", "*", "").Replace(text))
	text = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(text, "")
	return strings.ReplaceAll(text, " ", "-")
}

// Links in the documents lead to files, and to headings, that there are.
func TestDocsLinks(t *testing.T) {
	docs := documents(t)
	for file, text := range docs {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			path := file
			if target != "" {
				path = filepath.Join(filepath.Dir(file), target)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s links to %s, which is not there", file, m[1])
				continue
			}
			if anchor == "" || !strings.HasSuffix(path, ".md") {
				continue
			}
			to := string(labtest.Must(os.ReadFile(path))(t))
			found := strings.Contains(to, `id="`+anchor+`"`) || slices.ContainsFunc(heading.FindAllStringSubmatch(to, -1), func(h []string) bool { return anchorOf(h[1]) == anchor })
			if !found {
				t.Errorf("%s links to %s, and there is no such heading", file, m[1])
			}
		}
	}
}

// Commands in the documents have subcommands and flags that there are, and make targets exist.
func TestDocsCommands(t *testing.T) {
	kiln := labtest.Must(lab.Bin("kiln"))(t)
	makefile := string(labtest.Must(os.ReadFile("../Makefile"))(t))
	helps := map[string]string{}
	help := func(path []string) string {
		key := strings.Join(path, " ")
		if _, known := helps[key]; !known {
			out := labtest.Must(lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: kiln, Args: append(slices.Clone(path), "--help")}))(t)
			helps[key] = out.Stdout
		}
		return helps[key]
	}
	checked := 0
	for file, text := range documents(t) {
		for _, command := range commandsIn(text) {
			words := strings.Fields(command)
			switch words[0] {
			case "make":
				for _, target := range words[1:] {
					if strings.Contains(target, "=") || strings.HasPrefix(target, "-") {
						continue
					}
					if checked++; !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `( [a-z-]+)*:|^[a-z-]+( [a-z-]+)* ` + regexp.QuoteMeta(target) + `( [a-z-]+)*:`).MatchString(makefile) {
						t.Errorf("%s: make has no target %q", file, target)
					}
				}
			case "kiln":
				checked++
				checkCommand(t, file, words[1:], help)
			}
		}
	}
	if checked < 100 {
		t.Errorf("%d commands were found", checked)
	}
}

// commandsIn are the commands of kiln and make in a document.
func commandsIn(text string) (all []string) {
	var lines []string
	for _, m := range fence.FindAllStringSubmatch(text, -1) {
		lines = append(lines, strings.Split(strings.ReplaceAll(m[1], "\\\n", " "), "\n")...)
	}
	for _, m := range inline1.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		lines = append(lines, m[1])
	}
	for _, line := range lines {
		line, _, _ = strings.Cut(line, " #")
		for _, part := range regexp.MustCompile(`&&|;|\|`).Split(line, -1) {
			part = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(part), "sudo "))
			part = strings.TrimPrefix(part, "bin/")
			if strings.HasPrefix(part, "kiln ") || strings.HasPrefix(part, "make ") {
				all = append(all, part)
			}
		}
	}
	return all
}

var (
	subcommand = regexp.MustCompile(`^[a-z][a-z-]*$`)
	longFlag   = regexp.MustCompile(`^--[a-z][a-z-]*`)
)

// checkCommand holds that a command and its flags are in the help.
func checkCommand(t *testing.T, file string, words []string, help func([]string) string) {
	t.Helper()
	var path []string
	for _, word := range words {
		if !subcommand.MatchString(word) || !regexp.MustCompile(`(?m)^  `+regexp.QuoteMeta(word)+` `).MatchString(help(path)) {
			break
		}
		path = append(path, word)
	}
	if len(path) == 0 {
		if subcommand.MatchString(words[0]) && words[0] != "is" {
			t.Errorf("%s: kiln has no command %q", file, words[0])
		}
		return
	}
	for _, word := range words[len(path):] {
		if flag := longFlag.FindString(word); flag != "" && !strings.Contains(help(path), flag) {
			t.Errorf("%s: kiln %s has no flag %s", file, strings.Join(path, " "), flag)
		}
	}
}

// testsOfTheTree are the names of the tests of all modules.
func testsOfTheTree(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	for _, root := range []string{".", "../pkg", "../proto", "../services"} {
		err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			for _, m := range declared.FindAllStringSubmatch(string(labtest.Must(os.ReadFile(path))(t)), -1) {
				names[m[1]] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}

// TestDocsFeatures holds that docs/features.md names every test of a row, and only tests that exist.
func TestDocsFeatures(t *testing.T) {
	text := string(labtest.Must(os.ReadFile("../docs/features.md"))(t))
	rows := map[string]bool{}
	for _, file := range labtest.Must(filepath.Glob("*_test.go"))(t) {
		for _, m := range regexp.MustCompile(`(?m)^func (TestS(\d+)_\w+)`).FindAllStringSubmatch(string(labtest.Must(os.ReadFile(file))(t)), -1) {
			rows[m[2]] = true
			if !strings.Contains(text, "`"+m[1]+"`") {
				t.Errorf("docs/features.md lacks %s", m[1])
			}
		}
	}
	tests := testsOfTheTree(t)
	for _, m := range regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(text, -1) {
		if !tests[m[1]] {
			t.Errorf("docs/features.md names %s, which there is not", m[1])
		}
	}
	if len(rows) != 14 {
		t.Errorf("%d rows have tests", len(rows))
	}
}
