package contextstore

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

const (
	// maxManifest bounds a manifest, which is held in memory, in bytes.
	maxManifest = 64 << 20
	// recordBytes is what a record has beside names, at most.
	recordBytes = 128
	// dirMode and a time of 0 are what a directory gets that the archive lacks.
	dirMode = fs.ModeDir | 0o755
	// maxTime bounds times, in seconds before and after 1970: BuildKit counts
	// nanoseconds.
	maxTime = 9_000_000_000
)

// listing gathers the entries of an archive, and refuses what no context can be.
type listing struct {
	limits  Limits
	entries []Entry
	at      map[string]int // index into entries, by path
	bytes   int64          // of regular files
	listed  int64          // bytes of the manifest, at most
}

func newListing(limits Limits) *listing {
	return &listing{limits: limits, at: make(map[string]int)}
}

// check says whether the entry may be added, before its content is read.
func (l *listing) check(e *Entry) error {
	if e.ModTime < -maxTime || e.ModTime > maxTime {
		return refused(e.Path, "has a time that is too far from now", "set its time, for example by touch")
	}
	levels := strings.Count(e.Path, "/")
	if e.Mode.IsDir() {
		levels++
	}
	if levels > l.limits.MaxDepth {
		return over("max_depth", fmt.Sprintf("the archive has more than %d levels of directories", l.limits.MaxDepth))
	}
	if at, ok := l.at[e.Path]; ok && l.entries[at].Mode.Type() != e.Mode.Type() {
		return refused(e.Path, fmt.Sprintf("is %s, and was %s before", typeName(e.Mode), typeName(l.entries[at].Mode)), "give each path one type")
	}
	return l.fits(e.Size)
}

// fits says whether another file of this size may be added.
func (l *listing) fits(size int64) error {
	if size > l.limits.MaxBytes-l.bytes {
		return over("max_bytes", fmt.Sprintf("the archive's files have more than %d bytes", l.limits.MaxBytes))
	}
	return nil
}

// add adds an entry that was checked, with the directories above it. It takes the
// place of an earlier one with its path, as it would on a disk.
func (l *listing) add(e Entry) error {
	if err := l.addParents(e.Path); err != nil {
		return err
	}
	return l.put(e)
}

func (l *listing) put(e Entry) error {
	if at, ok := l.at[e.Path]; ok {
		old := &l.entries[at]
		l.bytes += e.Size - old.Size
		l.listed += int64(len(e.Target) - len(old.Target))
		*old = e
		return l.bounded()
	}
	l.at[e.Path] = len(l.entries)
	l.entries = append(l.entries, e)
	l.bytes += e.Size
	l.listed += int64(recordBytes + len(e.Path) + len(e.Target))
	return l.bounded()
}

// bounded holds what is in memory to the limits.
func (l *listing) bounded() error {
	if len(l.entries) > l.limits.MaxEntries {
		return tooMany(l.limits)
	}
	if l.listed > maxManifest {
		return over("max_entries", "the list of the archive's entries needs more than 64 MiB")
	}
	return nil
}

func tooMany(limits Limits) error {
	return over("max_entries", fmt.Sprintf("the archive has more than %d entries", limits.MaxEntries))
}

// addParents adds the directories above a path that are not there yet.
func (l *listing) addParents(of string) error {
	dir := path.Dir(of)
	if dir == "." {
		return nil
	}
	if at, ok := l.at[dir]; ok {
		if mode := l.entries[at].Mode; !mode.IsDir() {
			return refused(of, fmt.Sprintf("is below %q, which is %s", shown(dir), typeName(mode)), "put it into a directory")
		}
		return nil
	}
	if err := l.addParents(dir); err != nil {
		return err
	}
	return l.put(Entry{Path: dir, Mode: dirMode})
}

// link is the entry that a hard link adds: another name of an earlier file.
func (l *listing) link(name, target string) (Entry, error) {
	clean, err := cleanName(target, l.limits)
	if err != nil {
		return Entry{}, refused(name, fmt.Sprintf("is a hard link to %q, which is no path in a context", shown(target)), "have it link to a file of the archive")
	}
	at, ok := l.at[clean]
	if !ok || !l.entries[at].Mode.IsRegular() {
		return Entry{}, refused(name, fmt.Sprintf("is a hard link to %q, which is no earlier file of the archive", shown(target)), "put the file into the archive before its links")
	}
	e := l.entries[at]
	e.Path = name
	return e, nil
}

// manifest is the listing in its canonical order.
func (l *listing) manifest() manifest {
	slices.SortFunc(l.entries, func(a, b Entry) int { return comparePaths(a.Path, b.Path) })
	m := manifest{entries: l.entries}
	for i := range m.entries {
		if m.entries[i].Mode.IsRegular() {
			m.files++
			m.bytes += m.entries[i].Size
		}
	}
	return m
}

func typeName(mode fs.FileMode) string {
	return map[byte]string{'d': "a directory", 'l': "a symbolic link", 'f': "a file"}[kindOf(mode)]
}
