// Package storage reads the filesystem storage of a CNCF distribution registry.
// What a run takes out of it, it moves to a quarantine beside it.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/services/janitor/internal/check"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
)

// layout is where the registry keeps its things, below its root directory. A
// registry that nothing was pushed to does not have it yet.
const layout = "docker/registry/v2"

// Storage is the storage below one root directory.
type Storage struct {
	root  string
	known known // manifests
	dirs  directories
	// What was found last, repositories by their names.
	lastMu     sync.Mutex
	last       map[string]*looked
	lastStored *stored
}

// New returns the storage below root, the registry's
// storage.filesystem.rootdirectory.
func New(root string) *Storage { return &Storage{root: filepath.Clean(root)} }

// Root is the root directory.
func (s *Storage) Root() string { return s.root }

func (s *Storage) path(elements ...string) string {
	return filepath.Join(append([]string{s.root, filepath.FromSlash(layout)}, elements...)...)
}

// Disk is the file system that the storage is on. It is an error when the storage
// cannot be read.
func (s *Storage) Disk() (check.Disk, error) {
	// The root itself may not be there before the first push; its parent must be.
	at := s.root
	if _, err := os.Stat(at); errors.Is(err, fs.ErrNotExist) {
		at = filepath.Dir(at)
	}
	for _, dir := range []string{at, s.path("blobs"), s.path("repositories")} {
		if err := readable(dir); err != nil && (dir == at || !errors.Is(err, fs.ErrNotExist)) {
			return check.Disk{}, err
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return check.Disk{}, fmt.Errorf("statfs %s: %w", at, err)
	}
	block := int64(st.Bsize) //nolint:unconvert // Not on every system an int64.
	return check.Disk{Total: int64(st.Blocks) * block, Free: int64(st.Bavail) * block}, nil
}

// readable is nil for a directory whose names can be listed.
func readable(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	_, err = f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// repositoryDir is the directory of a repository.
func (s *Storage) repositoryDir(name string) string {
	return s.path("repositories", filepath.FromSlash(name))
}

// linksDir is the directory of a repository's links of one kind: "_layers", or
// "_manifests/revisions".
func (s *Storage) linksDir(repository, kind string) string {
	return filepath.Join(s.repositoryDir(repository), filepath.FromSlash(kind), sha256)
}

// link is the file of one link.
func (s *Storage) link(repository, kind string, digest content.Digest) string {
	return filepath.Join(s.linksDir(repository, kind), hexOf(digest), "link")
}

func isSHA256(d content.Digest) bool {
	return strings.HasPrefix(string(d), sha256+":") && isHex(hexOf(d))
}

func hexOf(d content.Digest) string {
	_, hex, _ := strings.Cut(string(d), ":")
	return hex
}

// Has says whether the repository is there.
func (s *Storage) Has(repository string) (bool, error) {
	if !filepath.IsLocal(repository) {
		return false, nil
	}
	_, err := os.Stat(s.path("repositories", filepath.FromSlash(repository)))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Usage implements usage.Store.
func (s *Storage) Usage(ctx context.Context, reached func(content.Digest) bool) (usage.Storage, error) {
	disk, err := s.Disk()
	if err != nil {
		return usage.Storage{}, err
	}
	out := usage.Storage{DiskTotal: disk.Total, DiskFree: disk.Free}
	if err := s.blobs(ctx, reached, &out); err != nil {
		return usage.Storage{}, err
	}
	if err := s.uploads(ctx, &out); err != nil {
		return usage.Storage{}, err
	}
	journals, err := s.Journals()
	for _, j := range journals {
		for _, e := range j.Entries {
			if e.Kind != plan.Blob {
				continue
			}
			held, err := s.Holds(e)
			if err != nil {
				return usage.Storage{}, err
			}
			if held {
				out.Quarantined += e.Bytes
			}
		}
	}
	return out, err
}

// blobs adds up blobs/<algorithm>/<two characters>/<hex>/data.
func (s *Storage) blobs(ctx context.Context, reached func(content.Digest) bool, out *usage.Storage) error {
	algorithms, err := names(s.path("blobs"))
	if err != nil {
		return err
	}
	var mu sync.Mutex
	for _, algorithm := range algorithms {
		prefixes, err := names(s.path("blobs", algorithm))
		if err != nil {
			return err
		}
		err = inParallel(ctx, len(prefixes), func(i int) error {
			part, err := s.shard(ctx, algorithm, prefixes[i], reached)
			mu.Lock()
			defer mu.Unlock()
			out.Blobs += part.Blobs
			out.BlobBytes += part.BlobBytes
			out.UntaggedBytes += part.UntaggedBytes
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// shard adds up the blobs whose digests begin alike.
func (s *Storage) shard(ctx context.Context, algorithm, prefix string, reached func(content.Digest) bool) (out usage.Storage, err error) {
	hexes, err := names(s.path("blobs", algorithm, prefix))
	if err != nil {
		return out, err
	}
	for _, hex := range hexes {
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		st, err := os.Lstat(s.path("blobs", algorithm, prefix, hex, "data"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // Gone meanwhile, or a directory without data.
		}
		if err != nil {
			return out, err
		}
		out.Blobs++
		out.BlobBytes += st.Size()
		if !reached(content.Digest(algorithm + ":" + hex)) {
			out.UntaggedBytes += st.Size()
		}
	}
	return out, nil
}

// uploads adds up repositories/<name>/_uploads/<id>/data.
func (s *Storage) uploads(ctx context.Context, out *usage.Storage) error {
	root := s.path("repositories")
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil // Gone meanwhile, or nothing was pushed yet.
		case err != nil:
			return err
		case !entry.IsDir():
			return nil
		case entry.Name() == "_uploads":
			if err := addUploads(path, out); err != nil {
				return err
			}
			return fs.SkipDir
		case strings.HasPrefix(entry.Name(), "_"):
			return fs.SkipDir // Links: many, and no uploads among them.
		}
		return nil
	})
	return err
}

func addUploads(dir string, out *usage.Storage) error {
	ids, err := names(dir)
	if err != nil {
		return err
	}
	for _, id := range ids {
		st, err := os.Lstat(filepath.Join(dir, id, "data"))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // Ended meanwhile, or begun without data.
		case err != nil:
			return err
		}
		out.Uploads++
		out.UploadBytes += st.Size()
	}
	return nil
}

// Writable is an error when the storage cannot be written to.
func (s *Storage) Writable() error {
	if _, err := s.Disk(); err != nil {
		return err
	}
	if _, err := os.Stat(s.root); errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was pushed yet
	}
	if err := unix.Access(s.root, unix.W_OK|unix.X_OK); err != nil {
		return denied(fmt.Errorf("%s: %w", s.root, err))
	}
	return nil
}
