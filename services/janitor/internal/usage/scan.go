package usage

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// Registry is what is asked of a registry here. It bounds how much is asked at
// the same time.
type Registry interface {
	// Ping asks for an answer of any kind.
	Ping(ctx context.Context) error
	Repositories(ctx context.Context) ([]string, error)
	Tags(ctx context.Context, repository string) ([]string, error)
	Resolve(ctx context.Context, repository, tag string) (content.Digest, error)
	Manifest(ctx context.Context, repository string, digest content.Digest) (content.Manifest, error)
}

// workers is how many repositories, and how many tags of each, are in work at
// the same time.
const workers = 8

// Scanner reads all manifests that tags reach. It remembers them: a manifest
// with a digest never changes, so the next scan asks only where tags point to.
type Scanner struct {
	registry Registry

	mu    sync.Mutex
	known map[place]content.Manifest
	used  map[place]bool // by the scan under way
}

// place is a manifest in a repository: what one has, another may not.
type place struct {
	repository string
	digest     content.Digest
}

// NewScanner returns a scanner of a registry.
func NewScanner(registry Registry) *Scanner {
	return &Scanner{registry: registry, known: map[place]content.Manifest{}, used: map[place]bool{}}
}

// Scan looks at the whole registry. Only one may run at a time.
func (s *Scanner) Scan(ctx context.Context) ([]Repository, error) {
	if err := s.ping(ctx); err != nil {
		return nil, err
	}
	names, err := s.registry.Repositories(ctx)
	if err != nil {
		return nil, err
	}
	s.used = map[place]bool{}
	found := make([]Repository, len(names))
	each(len(names), func(i int) { found[i] = s.repository(ctx, names[i]) })
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for p := range s.known { // What no tag reaches any more.
		if !s.used[p] {
			delete(s.known, p)
		}
	}
	return found, nil
}

// ScanRepository reads one repository as it is now. Not at the same time as Scan.
func (s *Scanner) ScanRepository(ctx context.Context, name string) Repository {
	r := s.repository(ctx, name)
	if r.Err == nil {
		r.Err = ctx.Err()
	}
	return r
}

// pingTimeout is how long the registry may take to any answer. One that hangs is
// known soon, though a long list may take it long.
const pingTimeout = 5 * time.Second

func (s *Scanner) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	return s.registry.Ping(ctx)
}

// repository looks at one repository.
func (s *Scanner) repository(ctx context.Context, name string) Repository {
	r := Repository{Name: name, Manifests: map[content.Digest]content.Manifest{}}
	tags, err := s.registry.Tags(ctx, name)
	switch {
	case errors.Is(err, content.ErrNotFound):
		return r // Empty, or gone since the catalogue was read.
	case err != nil:
		return Repository{Name: name, Err: err}
	}
	slices.Sort(tags)
	digests := make([]content.Digest, len(tags))
	errs := make([]error, len(tags))
	each(len(tags), func(i int) { digests[i], errs[i] = s.registry.Resolve(ctx, name, tags[i]) })
	for i, tag := range tags {
		switch {
		case isBroken(errs[i]):
			r.broken(errs[i])
			r.Tags = append(r.Tags, Tag{Name: tag})
		case errs[i] != nil:
			return Repository{Name: name, Err: errs[i]}
		default:
			r.Tags = append(r.Tags, Tag{Name: tag, Digest: digests[i]})
		}
	}
	if err := s.manifests(ctx, &r); err != nil {
		return Repository{Name: name, Err: err}
	}
	return r
}

// manifests reads what the tags reach, a generation at a time.
func (s *Scanner) manifests(ctx context.Context, r *Repository) error {
	var wanted []content.Digest
	for _, tag := range r.Tags {
		if tag.Digest != "" {
			wanted = append(wanted, tag.Digest)
		}
	}
	seen := map[content.Digest]bool{}
	for len(wanted) > 0 {
		slices.Sort(wanted)
		wanted = slices.DeleteFunc(slices.Compact(wanted), func(d content.Digest) bool { return seen[d] })
		read := make([]content.Manifest, len(wanted))
		errs := make([]error, len(wanted))
		each(len(wanted), func(i int) { read[i], errs[i] = s.manifest(ctx, place{r.Name, wanted[i]}) })
		var next []content.Digest
		for i, digest := range wanted {
			seen[digest] = true
			switch {
			case isBroken(errs[i]):
				r.broken(errs[i])
			case errs[i] != nil:
				return errs[i]
			default:
				r.Manifests[digest] = read[i]
				next = append(next, read[i].Children...)
			}
		}
		wanted = next
	}
	return nil
}

// manifest is remembered or read.
func (s *Scanner) manifest(ctx context.Context, at place) (content.Manifest, error) {
	s.mu.Lock()
	m, ok := s.known[at]
	s.used[at] = true
	s.mu.Unlock()
	if ok {
		return m, nil
	}
	m, err := s.registry.Manifest(ctx, at.repository, at.digest)
	if err != nil {
		return content.Manifest{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[at] = m
	return m, nil
}

// isBroken says whether an error is about one thing, not about the registry.
func isBroken(err error) bool {
	return errors.Is(err, content.ErrNotFound) || errors.Is(err, content.ErrBroken)
}

// broken counts a manifest that is missing or cannot be read. Only a 404 says that it is missing.
func (r *Repository) broken(err error) {
	r.Broken++
	if r.Unread == nil && !errors.Is(err, content.ErrNotFound) {
		r.Unread = err
	}
}

// each calls f with 0 to n-1, several at a time, and waits for all.
func each(n int, f func(int)) {
	slots := make(chan struct{}, workers)
	var wait sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wait.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wait.Wait()
}

// matches says whether a name is one of the patterns, which may end in "*". No
// pattern matches everything.
func matches(patterns []string, name string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool {
		prefix, wild := strings.CutSuffix(p, "*")
		return p == name || (wild && strings.HasPrefix(name, prefix))
	})
}
