// Package storage reads the filesystem storage of a CNCF distribution registry.
// What a run takes out of it, it moves to a quarantine beside it.
package storage

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/services/janitor/internal/check"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/plan"
	"github.com/kilnbuild/kiln/services/janitor/internal/usage"
)

// layout is where the registry keeps its things, below its root directory. A
// registry that nothing was pushed to does not have it yet.
const layout = "docker/registry/v2"

// Storage is the storage of one registry.
type Storage struct {
	root   string // of its paths
	base   string // of those of the registry
	name   string // for people
	files  files
	reader // of the files, or of what they were at one moment
	*memory
}

// memory is what is remembered from one look to the next.
type memory struct {
	known known // manifests
	// What was found last, repositories by their names.
	lastMu     sync.Mutex
	last       map[string]*looked
	lastStored *stored
}

// New returns the storage below root, the registry's
// storage.filesystem.rootdirectory.
func New(root string) *Storage {
	root = filepath.Clean(root)
	return of(&disk{root: root}, root, root)
}

func of(f files, root, name string) *Storage {
	return &Storage{root: root, base: filepath.Join(root, layout), name: name, files: f, reader: f, memory: &memory{}}
}

// now is the storage as it is now, for a look at most of it.
func (s *Storage) now(ctx context.Context) (*Storage, error) { return s.nowBelow(ctx, s.base) }

// nowBelow is it for a look at most of one directory.
func (s *Storage) nowBelow(ctx context.Context, dir string) (*Storage, error) {
	frozen, err := s.files.frozen(ctx, dir)
	return &Storage{root: s.root, base: s.base, name: s.name, files: s.files, reader: frozen, memory: s.memory}, err
}

// Atomic reports that what is written as something is taken is not lost for a moment either.
func (s *Storage) Atomic() bool { return s.files.atomic() }

// Root is the root directory, or the name of the bucket.
func (s *Storage) Root() string { return s.name }

func (s *Storage) path(elements ...string) string {
	return filepath.Join(append([]string{s.base}, elements...)...)
}

// Disk is the file system that the storage is on; zero where none bounds it. It is an error
// when the storage cannot be read.
func (s *Storage) Disk() (check.Disk, error) { return s.files.disk() }

// exists reports whether a file or directory is there.
func (s *Storage) exists(path string) (bool, error) {
	is, err := s.stat(path)
	return is.there, err
}

// written is when a file was last written; zero when it is not there.
func (s *Storage) written(path string) (time.Time, error) {
	is, err := s.stat(path)
	return is.modified, err
}

// repositoryDir is the directory of a repository.
func (s *Storage) repositoryDir(name string) string { return s.base + "/repositories/" + name }

// linksDir is the directory of a repository's links of one kind: "_layers", or
// "_manifests/revisions".
func (s *Storage) linksDir(repository, kind string) string {
	return s.repositoryDir(repository) + "/" + kind + "/" + sha256
}

// link is the file of one link, by a digest of any algorithm.
func (s *Storage) link(repository, kind string, digest content.Digest) string {
	algorithm, hex, is := strings.Cut(string(digest), ":")
	if !is {
		algorithm = sha256
	}
	return s.repositoryDir(repository) + "/" + kind + "/" + algorithm + "/" + hex + "/link"
}

// layerLink is the file of a link to a blob as an orphan lists it: by the name of the repository,
// or with the digest of another algorithm behind it.
func (s *Storage) layerLink(digest content.Digest, link string) string {
	repository, other, is := strings.Cut(link, "@")
	if is {
		digest = content.Digest(other)
	}
	return s.link(repository, layersDir, digest)
}

func isSHA256(d content.Digest) bool {
	_, is := d.Sum()
	return is
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
	return s.exists(s.repositoryDir(repository))
}

// Usage implements usage.Store.
func (s *Storage) Usage(ctx context.Context, reached func(content.Digest) bool) (usage.Storage, error) {
	disk, err := s.Disk()
	if err != nil {
		return usage.Storage{}, err
	}
	out := usage.Storage{DiskTotal: disk.Total, DiskFree: disk.Free}
	if s, err = s.now(ctx); err != nil {
		return usage.Storage{}, err
	}
	if reached, err = s.reachedByAlias(ctx, reached); err != nil {
		return usage.Storage{}, err
	}
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

// reachedByAlias has a blob be reached also by digests of other algorithms.
func (s *Storage) reachedByAlias(ctx context.Context, reached func(content.Digest) bool) (func(content.Digest) bool, error) {
	repositories, err := s.repositories(ctx)
	if err != nil {
		return nil, err
	}
	targets := map[content.Digest]bool{}
	for _, name := range repositories {
		aliases, _, err := s.aliases(name)
		if err != nil {
			return nil, err
		}
		for _, a := range aliases {
			targets[a.target] = targets[a.target] || reached(a.digest)
		}
	}
	return func(d content.Digest) bool { return reached(d) || targets[d] }, nil
}

// blobs adds up blobs/<algorithm>/<two characters>/<hex>/data.
func (s *Storage) blobs(ctx context.Context, reached func(content.Digest) bool, out *usage.Storage) error {
	algorithms, err := s.names(s.path("blobs"))
	if err != nil {
		return err
	}
	var mu sync.Mutex
	for _, algorithm := range algorithms {
		prefixes, err := s.names(s.path("blobs", algorithm))
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
	hexes, err := s.names(s.path("blobs", algorithm, prefix))
	if err != nil {
		return out, err
	}
	for _, hex := range hexes {
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		st, err := s.stat(s.path("blobs", algorithm, prefix, hex, "data"))
		if err != nil {
			return out, err
		}
		if !st.there {
			continue // gone meanwhile, or a directory without data
		}
		out.Blobs++
		out.BlobBytes += st.size
		if !reached(content.Digest(algorithm + ":" + hex)) {
			out.UntaggedBytes += st.size
		}
	}
	return out, nil
}

// uploads adds up repositories/<name>/_uploads/<id>/data.
func (s *Storage) uploads(ctx context.Context, out *usage.Storage) error {
	repositories, err := s.repositories(ctx)
	if err != nil {
		return err
	}
	for _, name := range repositories {
		dir := filepath.Join(s.repositoryDir(name), uploadsDir)
		ids, err := s.names(dir)
		if err != nil {
			return err
		}
		for _, id := range ids {
			st, err := s.stat(filepath.Join(dir, id, "data"))
			if err != nil {
				return err
			}
			if st.there { // else it has ended meanwhile, or begun without data
				out.Uploads++
				out.UploadBytes += st.size
			}
		}
	}
	return nil
}

// Writable is an error when the storage cannot be written to.
func (s *Storage) Writable() error {
	if _, err := s.Disk(); err != nil {
		return err
	}
	return s.files.writable()
}
