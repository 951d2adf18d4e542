package contextstore

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/kilnbuild/kiln/services/builder/internal/quota"
)

// Put reads an archive to its end and stores the context in it for a project: a tar, plain or
// compressed by gzip or zstd. want is the digest that the bytes must have as they
// come, "sha256:…", or empty. The same files give the same context, whatever the
// order, owners, compression and padding of the archive; modes, times to the
// second and the targets of symbolic links count. Owners and extended attributes
// are dropped.
//
// Errors: those of reading, as they are; faults INVALID_ARGUMENT with
// ARCHIVE_INVALID or DIGEST_MISMATCH, RESOURCE_EXHAUSTED with LIMIT_REACHED or
// DISK_FULL. After an error nothing is left.
func (s *Store) Put(ctx context.Context, project string, archive io.Reader, want string) (Info, error) {
	if want == "" {
		return s.put(ctx, project, &packed{from: archive}, nil)
	}
	digest, err := ParseDigest(want)
	if err != nil {
		return Info{}, err
	}
	info, err := s.put(ctx, project, &packed{from: archive, sum: sha256.New()}, &digest)
	if err == nil {
		s.remember(ctx, archiveName(project, digest), fetched{Context: info.Digest})
	}
	return info, err
}

func (s *Store) put(ctx context.Context, project string, archive *packed, want *Digest) (_ Info, err error) {
	st, err := s.newStage(project)
	if err != nil {
		return Info{}, err
	}
	defer func() { err = errors.Join(err, st.close()) }()

	src, err := newSource(ctx, s.limits, archive)
	if err != nil {
		return Info{}, err
	}
	defer src.close()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)

	m, err := unpack(src, func(r io.Reader, size int64) (Digest, error) { return st.keep(src, r, size, *buf) })
	if err != nil {
		return Info{}, err
	}
	if err := src.finish(*buf); err != nil {
		return Info{}, err
	}
	if want != nil && archive.digest() != *want {
		return Info{}, mismatch(want.String(), archive.digest().String())
	}
	return s.publish(ctx, project, st, m)
}

// buffers are for the content of files: one write for most.
var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// stage is where the blobs of a context are until it is complete.
type stage struct {
	store   *Store
	project string
	grant   *quota.Grant
	path    string
	root    *os.Root
}

// Names in a stage beside those of complete blobs: one that is being written, and
// the manifest.
const (
	partName     = "part"
	manifestName = "manifest"
)

func (s *Store) newStage(project string) (*stage, error) {
	dir := incomingDir + "/" + rand.Text()
	if err := s.root.Mkdir(dir, 0o700); err != nil {
		return nil, onDisk(err)
	}
	root, err := s.root.OpenRoot(dir)
	if err != nil {
		return nil, onDisk(errors.Join(err, s.root.Remove(dir)))
	}
	return &stage{store: s, project: project, grant: s.account.Grant(project), path: dir, root: root}, nil
}

func (st *stage) close() error {
	defer st.grant.Close()
	err := st.root.Close()
	return onDisk(errors.Join(err, st.store.root.RemoveAll(st.path)))
}

// keep reads a file of the archive and sees that its content is in the stage.
func (st *stage) keep(src *source, r io.Reader, size int64, buf []byte) (Digest, error) {
	if size > int64(len(buf)) {
		return st.keepLarge(src, r, size, buf)
	}
	content := buf[:size]
	if _, err := io.ReadFull(r, content); err != nil {
		return Digest{}, src.explain(err)
	}
	digest := Digest(sha256.Sum256(content))
	if st.has(digest, size) {
		return digest, nil
	}
	if err := st.reserve(src.ctx, st.store.cost.content(size)); err != nil {
		return Digest{}, err
	}
	f, err := st.create(digest.hex())
	if err != nil {
		return Digest{}, onDisk(err)
	}
	_, err = f.Write(content)
	return digest, onDisk(errors.Join(err, f.Close()))
}

// keepLarge writes while it reads, for the digest comes last.
func (st *stage) keepLarge(src *source, r io.Reader, size int64, buf []byte) (_ Digest, err error) {
	f, err := st.create(partName)
	if err != nil {
		return Digest{}, onDisk(err)
	}
	defer func() { err = errors.Join(err, onDisk(f.Close())) }()
	hash := sha256.New()
	for left := size; left > 0; {
		content := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(r, content); err != nil {
			return Digest{}, src.explain(err)
		}
		hash.Write(content)
		if err := st.reserve(src.ctx, st.store.cost.content(int64(len(content)))); err != nil {
			return Digest{}, err
		}
		if _, err := f.Write(content); err != nil {
			return Digest{}, onDisk(err)
		}
		left -= int64(len(content))
	}
	digest := Digest(hash.Sum(nil))
	if st.has(digest, size) {
		return digest, onDisk(st.root.Remove(partName))
	}
	return digest, onDisk(st.root.Rename(partName, digest.hex()))
}

func (st *stage) create(name string) (*os.File, error) {
	return st.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

// has reports whether the content is in the stage, where it puts what the store
// has by another link: that stays, also when the context it is of goes now.
func (st *stage) has(d Digest, size int64) bool {
	name := d.hex()
	if _, err := st.root.Lstat(name); err == nil {
		return true
	}
	return st.store.hasBlob(d, size) && st.store.root.Link(blobPath(d), st.path+"/"+name) == nil
}

// hasBlob reports whether the store has a content, as far as its size tells.
func (s *Store) hasBlob(d Digest, size int64) bool {
	info, err := s.root.Lstat(blobPath(d))
	return err == nil && info.Mode().IsRegular() && info.Size() == size
}

// publish gives a complete context and its blobs their names, and its project a part in it.
func (s *Store) publish(ctx context.Context, project string, st *stage, m manifest) (Info, error) {
	if err := st.reserve(ctx, s.cost.manifest(m.mostBytes())); err != nil {
		return Info{}, err
	}
	digest, size, err := writeManifest(st.root, manifestName, m)
	if err != nil {
		return Info{}, err
	}
	s.change.Lock()
	defer s.change.Unlock()
	added, err := s.publishBlobs(st, m)
	if err == nil {
		err = s.own(digest, project)
	}
	if err == nil {
		err = onDisk(s.root.Rename(st.path+"/"+manifestName, manifestPath(digest)))
	}
	if err != nil {
		return Info{}, errors.Join(err, s.collectAll(context.WithoutCancel(ctx)))
	}
	// The context is there; that its name might not outlive a power failure is no
	// reason to say that it is not.
	if err := s.syncDir(contextDir); err != nil {
		s.log.WarnContext(ctx, "the directory of contexts cannot be synced", "error", err)
	}
	return s.note(digest, project, m.totals, size, added), nil
}

// publishBlobs moves the blobs that the store lacks out of the stage, and returns
// their bytes.
func (s *Store) publishBlobs(st *stage, m manifest) (added int64, _ error) {
	for i := range m.entries {
		e := &m.entries[i]
		if !e.Mode.IsRegular() || s.hasBlob(e.Digest, e.Size) {
			continue
		}
		if err := s.root.Rename(st.path+"/"+e.Digest.hex(), blobPath(e.Digest)); err != nil {
			return 0, onDisk(fmt.Errorf("of %q: %w", e.Path, err))
		}
		added += s.cost.content(e.Size)
	}
	return added, nil
}

// note puts a published context into the index.
func (s *Store) note(d Digest, project string, sums totals, size, added int64) Info {
	size = s.cost.manifest(size)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.contexts[d]
	if c == nil {
		c = &kept{totals: sums, size: size, owners: make(map[string]bool)}
		s.contexts[d] = c
		added += size
	}
	c.broken, c.owners[project] = false, true
	s.account.Keep(project, added, added)
	return s.touch(d, c)
}
