package client

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
)

const ignoreFile = ".dockerignore"

// maxIgnoreBytes bounds what is read of an ignore file.
const maxIgnoreBytes = 1 << 20

// ignoring says what of a directory does not go into the context.
type ignoring struct {
	patterns *patternmatcher.PatternMatcher
	always   []string // paths that go whatever the patterns say
}

// readIgnore reads the ignore file of a Dockerfile: its own, else the
// directory's. Without one nothing is ignored.
func readIgnore(root *os.Root, dockerfile string) (*ignoring, error) {
	dockerfile = path.Clean(dockerfile)
	own := dockerfile + ignoreFile
	ig := &ignoring{always: []string{dockerfile, own, ignoreFile}}
	var lines []string
	for _, name := range []string{own, ignoreFile} {
		f, err := root.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading what to ignore: %w", err)
		}
		defer func() { _ = f.Close() }() // it was only read
		if lines, err = ignorefile.ReadAll(io.LimitReader(f, maxIgnoreBytes)); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		break
	}
	var err error
	if ig.patterns, err = patternmatcher.New(lines); err != nil {
		return nil, fmt.Errorf("%s: %w", ignoreFile, err)
	}
	return ig, nil
}

// walk returns what knows of one walk through the directory.
func (ig *ignoring) walk() *ignoringWalk {
	return &ignoringWalk{ignoring: ig, dirs: map[string]patternmatcher.MatchInfo{}}
}

type ignoringWalk struct {
	*ignoring
	dirs map[string]patternmatcher.MatchInfo // what matched each directory
}

// ignored reports whether an entry is left out, and for a directory also
// whether all that is in it is. A directory must be asked for before what is in it.
func (w *ignoringWalk) ignored(name string, dir bool) (ignored, skip bool, _ error) {
	ignored, info, err := w.patterns.MatchesUsingParentResults(filepath.FromSlash(name), w.dirs[path.Dir(name)])
	if err != nil {
		return false, false, fmt.Errorf("%s: %w", ignoreFile, err)
	}
	if slices.Contains(w.always, name) {
		return false, false, nil
	}
	if dir {
		w.dirs[name] = info
	}
	return ignored, ignored && dir && !w.exceptionBelow(name), nil
}

// exceptionBelow reports whether something in an ignored directory may have to go
// nevertheless.
func (ig *ignoring) exceptionBelow(dir string) bool {
	for _, name := range ig.always {
		if strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	for _, p := range ig.patterns.Patterns() {
		pattern := filepath.ToSlash(p.String())
		if p.Exclusion() && (strings.ContainsAny(pattern, `*?[\`) || strings.HasPrefix(pattern, dir+"/")) {
			return true
		}
	}
	return false
}
