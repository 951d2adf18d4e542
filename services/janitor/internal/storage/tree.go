package storage

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/services/janitor/internal/canary"
)

// found is a repository in the tree of directories.
type found struct {
	name    string
	aliases []string // other names of the same directory, sorted
	// elsewhere is where its files are, when they cannot be moved to quarantine.
	elsewhere string

	inode  inode
	linked bool // its name leads through a symbolic link
}

// maxLinks is how many symbolic links the name of a repository leads through at most.
const maxLinks = 3

// repositories are the names of all repositories, also of those that hold layers or uploads only,
// which no catalog has: each once, whatever other names links give it.
func (s *Storage) repositories(ctx context.Context) (names []string, _ error) {
	all, err := s.tree(ctx)
	for _, one := range all {
		names = append(names, one.name)
	}
	return names, err
}

// tree finds the repositories, each once. The registry follows links: what is behind them are
// repositories, too, or other names of some.
func (s *Storage) tree(ctx context.Context) ([]found, error) {
	all, links, err := s.walk(ctx, []string{""})
	if err != nil {
		return nil, err
	}
	for range maxLinks {
		if len(links) == 0 {
			break
		}
		var some []found
		if some, links, err = s.walk(ctx, links); err != nil {
			return nil, err
		}
		for _, one := range some {
			one.linked = true
			all = append(all, one)
		}
	}
	if all, err = s.once(all); err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b found) int { return cmp.Compare(a.name, b.name) })
	return all, nil
}

// walk finds the repositories below some directories, and symbolic links.
func (s *Storage) walk(ctx context.Context, level []string) (all []found, links []string, _ error) {
	var mu sync.Mutex
	for len(level) > 0 {
		var below []string
		err := inParallel(ctx, len(level), func(i int) error {
			is, err := s.list(path.Join(s.base, "repositories", level[i]))
			mu.Lock()
			defer mu.Unlock()
			one := found{name: level[i]}
			repository := false
			for _, sub := range is.all() { // a name that looks like a digest is one, too
				link := slices.Contains(is.links, sub)
				switch {
				case sub == layersDir || sub == manifestsDir || sub == uploadsDir:
					repository = true
					if link {
						one.elsewhere = path.Join(level[i], sub)
					}
				case strings.HasPrefix(sub, "_"):
				case link:
					links = append(links, path.Join(level[i], sub))
				default:
					below = append(below, path.Join(level[i], sub))
				}
			}
			if repository && level[i] != canary.Repository { // which is there for a moment
				all = append(all, one)
			}
			return err
		})
		if err != nil {
			return nil, nil, err
		}
		level = below
	}
	return all, links, nil
}

// once gives each directory one name, the one that leads through no link, and the others as
// aliases. What is on another file system, or out of the registry's directory, is elsewhere.
func (s *Storage) once(all []found) (some []found, _ error) {
	if root, err := s.stat(s.path("repositories")); err != nil || root.inode == (inode{}) {
		return all, err // there are no links where files have no inodes
	}
	root, err := s.stat(s.root + "/.") // where the quarantine is
	if err != nil {
		return nil, err
	}
	for i := range all {
		is, err := s.stat(s.repositoryDir(all[i].name) + "/.")
		if err != nil {
			return nil, err
		}
		all[i].inode = is.inode
		if is.inode.device != root.inode.device {
			all[i].elsewhere = "another file system"
		}
	}
	slices.SortFunc(all, func(a, b found) int {
		if a.linked != b.linked {
			if a.linked {
				return 1
			}
			return -1
		}
		return cmp.Compare(a.name, b.name)
	})
	at := map[inode]int{}
	for _, one := range all {
		if i, known := at[one.inode]; known && one.inode != (inode{}) {
			some[i].aliases = append(some[i].aliases, one.name)
			continue
		}
		at[one.inode] = len(some)
		if one.linked && one.elsewhere == "" {
			one.elsewhere = s.realPath(one.name)
		}
		some = append(some, one)
	}
	return some, nil
}

// realPath is where the directory of a repository is, for people.
func (s *Storage) realPath(repository string) string {
	real, err := filepath.EvalSymlinks(s.repositoryDir(repository))
	if err != nil {
		return fmt.Sprintf("a place that cannot be told: %v", err)
	}
	return real
}
