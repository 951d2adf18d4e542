package contextstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"time"
)

// fetched is what an archive of a project was: one behind a URL, or one that was put.
type fetched struct {
	Context      string // digest of the context
	Archive      string // digest of the bytes
	ETag         string
	LastModified string
}

// Known returns the context of an archive that the project put with this digest of its
// bytes, if it is still there, so that the archive need not come again. It counts
// as a use. What other projects put is not known.
func (s *Store) Known(project, archive string) (Info, bool) {
	digest, err := ParseDigest(archive)
	if err != nil {
		return Info{}, false
	}
	known := s.known(archiveName(project, digest))
	if known.Context == "" {
		return Info{}, false
	}
	info, err := s.Use(project, known.Context)
	return info, err == nil
}

// archiveName stands for an archive that a project put among what is remembered.
func archiveName(project string, digest Digest) string {
	return "archive " + project + " " + digest.String()
}

// urlName stands for a URL that a project fetched among what is remembered.
func urlName(project, from string) string { return "url " + project + " " + from }

// known is what is remembered of a URL, and zero when its context is gone.
func (s *Store) known(from string) fetched {
	f, err := s.readFetched(fetchedName(from))
	if err != nil {
		return fetched{}
	}
	if d, err := ParseDigest(f.Context); err != nil || !s.holds(d) {
		return fetched{}
	}
	return f
}

func (s *Store) holds(d Digest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.contexts[d]
	return c != nil && !c.broken
}

// fetchedName is the name of what is remembered of a URL, which may hold a
// password or a signature and is not written down.
func fetchedName(from string) string {
	return fetchedDir + "/" + Digest(sha256.Sum256([]byte(from))).hex()
}

func (s *Store) readFetched(name string) (f fetched, _ error) {
	data, err := s.root.ReadFile(name)
	if err != nil {
		return fetched{}, err
	}
	return f, json.Unmarshal(data, &f)
}

// remember writes down what an archive was. Without it, it comes again.
func (s *Store) remember(ctx context.Context, from string, f fetched) {
	s.recall.Lock()
	defer s.recall.Unlock()
	data, err := json.Marshal(f)
	if err == nil {
		err = s.replace(fetchedName(from), data)
	}
	if s.remembered++; err == nil && s.remembered > maxFetched {
		err = s.forgetOldest()
	}
	if err != nil {
		s.log.WarnContext(ctx, "an archive cannot be remembered", "context", f.Context, "error", err)
	}
}

// replace writes a file beside its name and renames it.
func (s *Store) replace(name string, data []byte) error {
	part := incomingDir + "/" + rand.Text()
	f, err := s.root.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = s.root.Rename(part, name)
	}
	if err != nil {
		return errors.Join(err, s.root.Remove(part))
	}
	return nil
}

// forgetFetched forgets archives whose contexts are gone.
func (s *Store) forgetFetched() error {
	s.recall.Lock()
	defer s.recall.Unlock()
	names, err := s.list(fetchedDir)
	if err != nil {
		return err
	}
	s.remembered = len(names)
	for _, name := range names {
		f, err := s.readFetched(fetchedDir + "/" + name)
		if d, parse := ParseDigest(f.Context); err == nil && parse == nil && s.holds(d) {
			continue
		}
		if _, err := s.removeFile(fetchedDir + "/" + name); err != nil {
			return err
		}
	}
	return nil
}

// maxFetched bounds how many archives are remembered: any number of them may hold
// one context, with which they stay.
const maxFetched = 4096

// forgetOldest makes room for other archives. recall is held.
func (s *Store) forgetOldest() error {
	names, err := s.list(fetchedDir)
	if err != nil {
		return err
	}
	s.remembered = len(names) // some came twice
	if len(names) <= maxFetched {
		return nil
	}
	times := make(map[string]time.Time, len(names))
	for _, name := range names {
		info, err := s.root.Lstat(fetchedDir + "/" + name)
		if err != nil {
			return onDisk(err)
		}
		times[name] = info.ModTime()
	}
	slices.SortFunc(names, func(a, b string) int { return times[a].Compare(times[b]) })
	for _, name := range names[:len(names)-maxFetched*3/4] {
		if err := s.root.Remove(fetchedDir + "/" + name); err != nil {
			return onDisk(err)
		}
		s.remembered--
	}
	return nil
}
