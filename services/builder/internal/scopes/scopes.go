// Package scopes remembers which default scopes the caches of projects have, so that
// a build can read what its neighbours wrote.
package scopes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// Bounds of a book.
const (
	MaxOthers       = 4     // scopes that Others returns
	maxScopes       = 8     // of a repository
	maxRepositories = 10000 // the ones that were not used for the longest time go first
)

// Book is the default scopes that builds have written, most recent last. Its file is
// written when a scope is new.
type Book struct {
	path string

	mu    sync.Mutex
	order []string            // repositories, most recent last
	known map[string][]string // scopes by repository, most recent last
}

// entry is a repository in the file.
type entry struct {
	Repository string   `json:"repository"`
	Scopes     []string `json:"scopes"`
}

// Open reads the book of a state directory, which may be new. A book that cannot be
// read is started anew: what it says only saves time.
func Open(dir string) (*Book, error) {
	b := &Book{path: filepath.Join(dir, "cache-scopes.json"), known: make(map[string][]string)}
	text, err := os.ReadFile(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the scopes of caches: %w", err)
	}
	var entries []entry
	if json.Unmarshal(text, &entries) != nil {
		return b, nil //nolint:nilerr // started anew
	}
	for _, e := range entries {
		b.order, b.known[e.Repository] = append(b.order, e.Repository), e.Scopes
	}
	return b, nil
}

// Others returns the scopes of a repository besides one, the most recent first, and
// at most MaxOthers.
func (b *Book) Others(repository, scope string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var others []string
	for _, s := range slices.Backward(b.known[repository]) {
		if s != scope && len(others) < MaxOthers {
			others = append(others, s)
		}
	}
	return others
}

// Wrote notes that a build wrote a scope of a repository.
func (b *Book) Wrote(repository, scope string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	before := b.known[repository]
	after := append(without(before, scope), scope)
	b.known[repository] = after[max(0, len(after)-maxScopes):]
	b.order = append(without(b.order, repository), repository)
	for len(b.order) > maxRepositories {
		delete(b.known, b.order[0])
		b.order = b.order[1:]
	}
	if slices.Contains(before, scope) {
		return nil
	}
	return b.save()
}

func without(all []string, one string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return s == one })
}

// save replaces the file.
func (b *Book) save() error {
	entries := make([]entry, len(b.order))
	for i, repository := range b.order {
		entries[i] = entry{repository, b.known[repository]}
	}
	text, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.path+".new", text, 0o600); err != nil {
		return fmt.Errorf("cannot write the scopes of caches: %w", err)
	}
	return os.Rename(b.path+".new", b.path)
}
