package contextstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
)

// Sweep removes contexts that were not used for longer than KeepAge, then the
// least recently used ones down to KeepBytes, and returns how many bytes that
// freed. What is open stays. Contexts that come meanwhile wait for its end.
func (s *Store) Sweep(ctx context.Context) (int64, error) {
	if !s.due() {
		return 0, nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	counts, used, err := s.count(ctx)
	if err != nil {
		return 0, err
	}
	s.setUsed(used)
	if !s.due() {
		return 0, nil
	}
	if err := s.setDirty(); err != nil {
		return 0, err
	}
	freed, err := s.evict(ctx, counts)
	if err != nil {
		return freed, err
	}
	collected, err := s.collect(ctx, counts)
	freed += collected
	return freed, errors.Join(err, s.forgetFetched())
}

// due reports whether a sweep has something to do.
func (s *Store) due() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.counted || s.dirty || s.used > s.limits.KeepBytes {
		return true
	}
	for _, c := range s.contexts {
		if s.expired(c) {
			return true
		}
	}
	return false
}

// expired reports whether a context goes, whatever room there is. mu is held.
func (s *Store) expired(c *kept) bool {
	return c.open == 0 && (c.broken || s.now().Sub(c.used) > s.limits.KeepAge)
}

func (s *Store) setUsed(bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used, s.counted = bytes, true
}

// count counts the files, over all contexts, that have each blob, and the bytes
// of blobs and manifests. change is held, or nothing runs yet.
func (s *Store) count(ctx context.Context) (counts map[Digest]int32, used int64, _ error) {
	counts = make(map[Digest]int32)
	for _, d := range s.oldestFirst() {
		if err := ctx.Err(); err != nil {
			return nil, 0, context.Cause(ctx)
		}
		m, err := s.readManifest(manifestPath(d), d)
		if err != nil {
			s.unreadable(d, "manifest", err)
			continue
		}
		for i := range m.entries {
			e := &m.entries[i]
			if !e.Mode.IsRegular() {
				continue
			}
			if counts[e.Digest]++; counts[e.Digest] == 1 {
				used += e.Size
			}
		}
		used += s.sizeOf(d)
	}
	return counts, used, nil
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

func (s *Store) sizeOf(d Digest) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.contexts[d]; c != nil {
		return c.size
	}
	return 0
}

// evict removes the contexts that have to go, and takes their files from the
// counts. It returns the bytes of their manifests.
func (s *Store) evict(ctx context.Context, counts map[Digest]int32) (freed int64, _ error) {
	for _, d := range s.oldestFirst() {
		if ctx.Err() != nil {
			return freed, context.Cause(ctx)
		}
		c := s.drop(d)
		if c == nil {
			continue
		}
		bytes := c.size
		m, err := s.readManifest(manifestPath(d), d)
		if err == nil { // else nothing of it was counted
			bytes += uncount(m, counts)
		}
		s.mu.Lock()
		s.used -= bytes
		s.mu.Unlock()
		if err := s.root.Remove(manifestPath(d)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, onDisk(err)
		}
		if err := s.disown(d, c.owners); err != nil {
			return freed, err
		}
		freed += c.size
	}
	return freed, nil
}

// drop takes a context that has to go out of the index, from which on nobody can
// open it. It returns nil for one that stays.
func (s *Store) drop(d Digest) *kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.contexts[d]
	if c == nil || !s.expired(c) && (c.open > 0 || s.used <= s.limits.KeepBytes) {
		return nil
	}
	delete(s.contexts, d)
	return c
}

// uncount takes the files of a context from the counts, and returns the bytes of
// the blobs that no context has any more.
func uncount(m manifest, counts map[Digest]int32) (freed int64) {
	for i := range m.entries {
		e := &m.entries[i]
		if !e.Mode.IsRegular() {
			continue
		}
		if counts[e.Digest]--; counts[e.Digest] == 0 {
			delete(counts, e.Digest)
			freed += e.Size
		}
	}
	return freed
}

// collectAll removes the blobs of no context. change is held, or nothing runs yet.
func (s *Store) collectAll(ctx context.Context) error {
	if err := s.setDirty(); err != nil {
		return err
	}
	counts, _, err := s.count(ctx)
	if err != nil {
		return err
	}
	_, err = s.collect(ctx, counts)
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
