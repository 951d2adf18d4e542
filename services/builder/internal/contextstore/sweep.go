package contextstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
)

// Sweep removes contexts that were not used for longer than KeepAge, and makes room
// where the store or a project is over its bound. It returns how many bytes that
// freed. What is open or pinned stays. Contexts that come meanwhile wait for its end.
func (s *Store) Sweep(ctx context.Context) (int64, error) {
	if !s.due() {
		return 0, nil
	}
	return s.sweep(ctx, demand{})
}

// demand is room that is wanted for a project. The zero value wants none.
type demand struct {
	project string
	bytes   int64
}

// sweep counts the store and removes what has to go for a demand.
func (s *Store) sweep(ctx context.Context, want demand) (int64, error) {
	s.change.Lock()
	defer s.change.Unlock()
	counted, err := s.count(ctx)
	if err != nil {
		return 0, err
	}
	s.settle(counted)
	if _, _, some := s.victim(want); !some && !s.isDirty() {
		return 0, nil
	}
	if err := s.setDirty(); err != nil {
		return 0, err
	}
	freed, err := s.evict(ctx, counted, want)
	if err != nil {
		return freed, err
	}
	collected, err := s.collect(ctx, counted.files)
	freed += collected
	return freed, errors.Join(err, s.forgetFetched())
}

// due reports whether a sweep has something to do.
func (s *Store) due() bool {
	s.mu.Lock()
	counted := s.counted && !s.dirty
	s.mu.Unlock()
	if !counted {
		return true
	}
	_, _, some := s.victim(demand{})
	return some
}

func (s *Store) isDirty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dirty
}

// expired reports whether a context goes, whatever room there is. mu is held.
func (s *Store) expired(c *kept) bool {
	return c.open == 0 && (c.broken || s.ages() && s.now().Sub(c.used) > s.limits.KeepAge)
}

// settle takes a count for what is kept.
func (s *Store) settle(t *tally) {
	s.account.Set(t.bytes, t.projects())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counted = true
}

// count counts the contexts. change is held, or nothing runs yet.
func (s *Store) count(ctx context.Context) (*tally, error) {
	t := newTally(s.cost)
	for _, d := range s.oldestFirst() {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		m, err := s.readManifest(manifestPath(d), d)
		if err != nil {
			s.unreadable(d, "manifest", err)
			continue
		}
		owners, size := s.about(d)
		t.add(m, size, owners)
	}
	return t, nil
}

// about returns the projects of a context and the bytes of its manifest.
func (s *Store) about(d Digest) (owners []string, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.contexts[d]; c != nil {
		return slices.Collect(maps.Keys(c.owners)), c.size
	}
	return nil, 0
}

// oldestFirst lists the contexts by their last use.
func (s *Store) oldestFirst() []Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	digests := make([]Digest, 0, len(s.contexts))
	for d := range s.contexts {
		digests = append(digests, d)
	}
	slices.SortFunc(digests, func(a, b Digest) int { return s.contexts[a].used.Compare(s.contexts[b].used) })
	return digests
}

// evict removes the contexts that have to go, and returns the bytes of their
// manifests. The count follows.
func (s *Store) evict(ctx context.Context, counted *tally, want demand) (freed int64, _ error) {
	for {
		if ctx.Err() != nil {
			return freed, context.Cause(ctx)
		}
		d, project, some := s.victim(want)
		if !some {
			return freed, nil
		}
		owners, size, left := s.drop(d, project)
		if m, err := s.readManifest(manifestPath(d), d); err == nil { // else nothing of it was counted
			counted.remove(m, size, owners, left)
		}
		s.account.Set(counted.bytes, counted.projects())
		if err := s.disown(d, owners); err != nil {
			return freed, err
		}
		if left {
			continue
		}
		if err := s.root.Remove(manifestPath(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, onDisk(err)
		}
		freed += size
	}
}

// victim returns a context that has to go, and of which project: the empty one means
// all. Contexts whose time is over go first; then those of a project that is over its
// bound; then, when the store is, those of nobody and those of the project that uses
// most. Of a project, the least recently used goes first. When it is the project that
// wants room which uses most, and nothing of it can go, others keep what they have.
func (s *Store) victim(want demand) (_ Digest, project string, some bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	oldest := make(map[string]Digest) // by project
	var nobodys []Digest              // of an earlier version: no project can use them
	for d, c := range s.contexts {
		if s.expired(c) {
			return d, "", true
		}
		if c.open > 0 {
			continue
		}
		for owner := range c.owners {
			if old, known := oldest[owner]; !known || c.used.Before(s.contexts[old].used) {
				oldest[owner] = d
			}
		}
		if len(c.owners) == 0 {
			nobodys = append(nobodys, d)
		}
	}
	more := func(name string) int64 { // is wanted for a project
		if name == want.project {
			return want.bytes
		}
		return 0
	}
	all := s.account.OverAll(want.bytes)
	most := int64(-1)
	for name, d := range oldest {
		if s.account.OverEach(name, more(name)) {
			return d, name, true
		}
		if bytes := s.account.Of(name) + more(name); bytes > most {
			most, project = bytes, name
		}
	}
	switch {
	case !all:
		return Digest{}, "", false
	case len(nobodys) > 0:
		return nobodys[0], "", true
	case most < s.account.Of(want.project)+want.bytes:
		return Digest{}, "", false
	}
	return oldest[project], project, true
}

// drop takes a context from a project, or from all when that is empty, and returns
// from which. left reports whether other projects still have it; otherwise it is out
// of the index, and nobody can open it.
func (s *Store) drop(d Digest, project string) (owners []string, size int64, left bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.contexts[d]
	if project != "" && len(c.owners) > 1 {
		delete(c.owners, project)
		return []string{project}, c.size, true
	}
	delete(s.contexts, d)
	return slices.Collect(maps.Keys(c.owners)), c.size, false
}

// collectAll removes the blobs of no context. change is held, or nothing runs yet.
func (s *Store) collectAll(ctx context.Context) error {
	if err := s.setDirty(); err != nil {
		return err
	}
	counted, err := s.count(ctx)
	if err != nil {
		return err
	}
	_, err = s.collect(ctx, counted.files)
	return err
}

// collect removes the blobs that were not counted, and the mark that there are
// some.
func (s *Store) collect(ctx context.Context, counts map[Digest]int32) (freed int64, _ error) {
	for i := range 256 {
		if ctx.Err() != nil {
			return freed, context.Cause(ctx)
		}
		dir := fmt.Sprintf("%s/%02x", blobDir, i)
		names, err := s.list(dir)
		if err != nil {
			return freed, err
		}
		for _, name := range names {
			d, ok := digestOfHex(name)
			if ok && counts[d] > 0 {
				continue
			}
			bytes, err := s.removeFile(dir + "/" + name)
			if err != nil {
				return freed, err
			}
			freed += bytes
		}
	}
	return freed, s.setClean()
}

// removeFile removes a file and returns how many bytes it had.
func (s *Store) removeFile(path string) (int64, error) {
	info, err := s.root.Lstat(path)
	if err == nil {
		err = s.root.Remove(path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return 0, nil
	case err != nil:
		return 0, onDisk(err)
	}
	return info.Size(), nil
}

// sweepMark is in the store while it may have blobs of no context.
const sweepMark = incomingDir + "/sweep"

func (s *Store) setDirty() error {
	s.mu.Lock()
	s.dirty = true
	s.mu.Unlock()
	f, err := s.root.OpenFile(sweepMark, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return onDisk(err)
	}
	return onDisk(f.Close())
}

func (s *Store) setClean() error {
	s.mu.Lock()
	s.dirty = false
	s.mu.Unlock()
	return onDisk(s.root.Remove(sweepMark))
}

// recover removes what an earlier process was about when it ended.
func (s *Store) recover() error {
	names, err := s.list(incomingDir)
	if err != nil || len(names) == 0 {
		return err
	}
	if err := s.collectAll(context.Background()); err != nil {
		return err
	}
	for _, name := range names {
		if err := s.root.RemoveAll(incomingDir + "/" + name); err != nil {
			return onDisk(err)
		}
	}
	return nil
}
