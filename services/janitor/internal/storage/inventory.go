package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// The parts of a repository's directory (distribution v3,
// registry/storage/paths.go). The names of directories are the digests.
const (
	layersDir    = "_layers"
	manifestsDir = "_manifests"
	uploadsDir   = "_uploads"
	sha256       = "sha256"
)

// Inventory reads the storage into an inventory of what it holds. Manifests that were
// read before are remembered: their bytes cannot change.
//
// Blobs are listed before what names them is read, so that a blob which is pushed
// meanwhile is no orphan.
func (s *Storage) Inventory(ctx context.Context) (inventory.Registry, error) {
	out := inventory.Registry{Time: time.Now()}
	blobs, err := s.listBlobs(ctx)
	if err != nil {
		return out, err
	}
	dirs, err := s.repositories(ctx)
	if err != nil {
		return out, err
	}
	out.Repositories = make([]inventory.Repository, len(dirs))
	err = inParallel(ctx, len(dirs), func(i int) (err error) {
		out.Repositories[i], err = s.repository(dirs[i])
		return err
	})
	if err != nil {
		return out, err
	}
	s.forgetBut(out)
	out.Orphans, err = s.orphans(ctx, blobs, out)
	return out, err
}

// inParallel does something n times, some at once: it is waiting for the disk. After an
// error it begins no more.
func inParallel(ctx context.Context, n int, do func(i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2 * runtime.GOMAXPROCS(0))
	for i := range n {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return do(i)
		})
	}
	return group.Wait()
}

// listBlobs are the digests of all blobs whose names are sha256, by their first byte.
// Those of other algorithms are left alone.
func (s *Storage) listBlobs(ctx context.Context) (shards [][]string, err error) {
	prefixes, err := names(s.path("blobs", sha256))
	if err != nil {
		return nil, err
	}
	slices.Sort(prefixes)
	shards = make([][]string, len(prefixes))
	err = inParallel(ctx, len(prefixes), func(i int) (err error) {
		shards[i], err = names(s.path("blobs", sha256, prefixes[i]))
		shards[i] = slices.DeleteFunc(shards[i], func(name string) bool { return !isHex(name) })
		return err
	})
	return shards, err
}

func isHex(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// repositories are the names of all repositories, also of those that hold layers or
// uploads only, which no catalog has.
func (s *Storage) repositories(ctx context.Context) (all []string, err error) {
	root := s.path("repositories")
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil // gone meanwhile, or nothing was pushed yet
		case err != nil:
			return err
		case !entry.IsDir() || path == root:
			return nil
		case strings.HasPrefix(entry.Name(), "_"):
			name, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			all = append(all, filepath.ToSlash(name))
			return fs.SkipDir
		}
		return nil
	})
	slices.Sort(all)
	return slices.Compact(all), err
}

// repository reads one repository.
func (s *Storage) repository(name string) (inventory.Repository, error) {
	r := inventory.Repository{Name: name}
	dir := s.path("repositories", filepath.FromSlash(name))
	revisions, err := names(filepath.Join(dir, manifestsDir, "revisions", sha256))
	if err != nil {
		return r, err
	}
	slices.Sort(revisions)
	at := map[content.Digest]int{} // in r.Manifests
	doubted := map[content.Digest]bool{}
	for _, hex := range revisions {
		link, err := os.Lstat(filepath.Join(dir, manifestsDir, "revisions", sha256, hex, "link"))
		if errors.Is(err, fs.ErrNotExist) || !isHex(hex) {
			continue // deleted by the API, which leaves the directory
		}
		if err != nil {
			return r, err
		}
		digest := content.Digest(sha256 + ":" + hex)
		m, doubt, err := s.manifest(digest)
		switch {
		case err != nil:
			return r, err
		case doubt != nil:
			doubted[digest] = true
			r.Doubts = append(r.Doubts, *doubt)
		default:
			at[digest] = len(r.Manifests)
			r.Manifests = append(r.Manifests, inventory.Manifest{Manifest: m, Pushed: link.ModTime()})
		}
	}
	if err := s.tags(dir, &r, at, doubted); err != nil {
		return r, err
	}
	return r, s.uploadsOf(dir, &r)
}

// tags reads the tags of a repository. A push of a tag is one of its manifest.
func (s *Storage) tags(dir string, r *inventory.Repository, at map[content.Digest]int, doubted map[content.Digest]bool) error {
	tags, err := names(filepath.Join(dir, manifestsDir, "tags"))
	if err != nil {
		return err
	}
	slices.Sort(tags)
	for _, name := range tags {
		path := filepath.Join(dir, manifestsDir, "tags", name, "current", "link")
		link, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted meanwhile, or being made
		}
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		tag := inventory.Tag{Name: name, Digest: content.Digest(strings.TrimSpace(string(link))), Moved: info.ModTime()}
		i, there := at[tag.Digest]
		switch {
		case there:
			if tag.Moved.After(r.Manifests[i].Pushed) {
				r.Manifests[i].Pushed = tag.Moved
			}
		case doubted[tag.Digest]:
		case strings.HasPrefix(string(tag.Digest), sha256+":"):
			tag.Digest = ""
		default:
			continue // of another algorithm
		}
		r.Tags = append(r.Tags, tag)
	}
	return nil
}

// uploadsOf reads the uploads of a repository.
func (s *Storage) uploadsOf(dir string, r *inventory.Repository) error {
	ids, err := names(filepath.Join(dir, uploadsDir))
	if err != nil {
		return err
	}
	slices.Sort(ids)
	for _, id := range ids {
		u := inventory.Upload{ID: id}
		for _, file := range []string{"startedat", "data"} {
			info, err := os.Lstat(filepath.Join(dir, uploadsDir, id, file))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if info.ModTime().After(u.Changed) {
				u.Changed = info.ModTime()
			}
			if file == "data" {
				u.Bytes = info.Size()
			}
		}
		if u.Changed.IsZero() {
			info, err := os.Lstat(filepath.Join(dir, uploadsDir, id))
			if err != nil {
				continue // ended meanwhile
			}
			u.Changed = info.ModTime()
		}
		r.Uploads = append(r.Uploads, u)
	}
	return nil
}

// maxManifest bounds a manifest: the registry takes none that is larger (distribution v3,
// registry/handlers/manifests.go).
const maxManifest = 4 << 20

// manifest is remembered or read. One that cannot be understood is a doubt.
func (s *Storage) manifest(digest content.Digest) (content.Manifest, *inventory.Doubt, error) {
	if m, ok := s.known.get(digest); ok {
		return m, nil, nil
	}
	path := s.data(digest)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return content.Manifest{}, &inventory.Doubt{Digest: digest, Missing: true, Message: fmt.Sprintf("manifest %s is linked, and its bytes are not there", digest)}, nil
	case err != nil:
		return content.Manifest{}, nil, err
	case info.Size() == 0:
		return content.Manifest{}, &inventory.Doubt{Digest: digest, Message: fmt.Sprintf("manifest %s is empty", digest)}, nil
	case info.Size() > maxManifest:
		return content.Manifest{}, &inventory.Doubt{Digest: digest, Bytes: info.Size(), Message: fmt.Sprintf("manifest %s is too large to be one", digest)}, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return content.Manifest{}, nil, err
	}
	m, err := content.Parse(digest, "", raw)
	if err != nil {
		return content.Manifest{}, &inventory.Doubt{Digest: digest, Bytes: max(int64(len(raw)), 1), Message: err.Error()}, nil //nolint:nilerr // it is told
	}
	s.known.put(digest, m)
	return m, nil, nil
}

// data is the path of a blob's bytes.
func (s *Storage) data(digest content.Digest) string {
	algorithm, hex, _ := strings.Cut(string(digest), ":")
	return s.path("blobs", algorithm, hex[:2], hex, "data")
}

// forgetBut forgets manifests that are in no repository any more.
func (s *Storage) forgetBut(r inventory.Registry) {
	there := map[content.Digest]bool{}
	for _, repository := range r.Repositories {
		for _, m := range repository.Manifests {
			there[m.Digest] = true
		}
	}
	s.known.keep(there)
}

// orphans are the blobs that no manifest names.
func (s *Storage) orphans(ctx context.Context, shards [][]string, r inventory.Registry) ([]inventory.Orphan, error) {
	named := map[content.Digest]bool{}
	for _, repository := range r.Repositories {
		for _, m := range repository.Manifests {
			named[m.Digest] = true
			for _, b := range m.Blobs {
				named[b.Digest] = true
			}
			for _, other := range slices.Concat(m.Children, m.Foreign) { // which may be here, and of no revision
				named[other] = true
			}
		}
		for _, d := range repository.Doubts {
			named[d.Digest] = true // its own bytes go with its link
		}
	}
	byDigest := map[content.Digest]*inventory.Orphan{}
	for _, shard := range shards {
		for _, hex := range shard {
			digest := content.Digest(sha256 + ":" + hex)
			if named[digest] {
				continue
			}
			o, err := s.orphan(digest)
			if err != nil {
				return nil, err
			}
			if o != nil {
				byDigest[digest] = o
			}
		}
	}
	if len(byDigest) == 0 {
		return nil, nil
	}
	if err := s.linksTo(ctx, byDigest, r); err != nil {
		return nil, err
	}
	all := make([]inventory.Orphan, 0, len(byDigest))
	for _, o := range byDigest {
		slices.Sort(o.Repositories)
		all = append(all, *o)
	}
	return all, nil
}

// orphan looks at the files of a blob; nil when it is gone.
func (s *Storage) orphan(digest content.Digest) (*inventory.Orphan, error) {
	path := s.data(digest)
	o := &inventory.Orphan{Digest: digest}
	for _, at := range []string{filepath.Dir(path), path} {
		info, err := os.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) && at == path {
			continue // a directory without data
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		for _, t := range []time.Time{info.ModTime(), changeTime(info)} {
			if t.After(o.Changed) {
				o.Changed = t
			}
		}
		if at == path {
			o.Bytes = info.Size()
		}
	}
	return o, nil
}

// linksTo finds which repositories have links to orphans, and when those were written.
func (s *Storage) linksTo(ctx context.Context, orphans map[content.Digest]*inventory.Orphan, r inventory.Registry) error {
	var mu sync.Mutex
	return inParallel(ctx, len(r.Repositories), func(i int) error {
		dir := s.path("repositories", filepath.FromSlash(r.Repositories[i].Name), layersDir, sha256)
		hexes, err := names(dir)
		if err != nil {
			return err
		}
		for _, hex := range hexes {
			o := orphans[content.Digest(sha256+":"+hex)]
			if o == nil {
				continue
			}
			info, err := os.Lstat(filepath.Join(dir, hex, "link"))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			mu.Lock()
			o.Repositories = append(o.Repositories, r.Repositories[i].Name)
			if info.ModTime().After(o.Changed) {
				o.Changed = info.ModTime()
			}
			mu.Unlock()
		}
		return nil
	})
}
