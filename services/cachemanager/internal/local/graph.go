package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// maxManifest bounds a manifest that is read into memory. One of a cache of 10,000
// layers has some 5 MB.
const maxManifest = 128 << 20

// Docker's names for what OCI calls a manifest and an index.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// names reports whether a blob of the type names others.
func names(mediaType string) bool {
	switch mediaType {
	case ocispecs.MediaTypeImageManifest, ocispecs.MediaTypeImageIndex, dockerManifest, dockerList:
		return true
	}
	return false
}

// manifest is what a manifest or an index names. With image-manifest=false, the
// "manifests" of BuildKit's index are the layers and the configuration of the cache.
type manifest struct {
	Manifests []ocispecs.Descriptor `json:"manifests"`
	Config    *ocispecs.Descriptor  `json:"config"`
	Layers    []ocispecs.Descriptor `json:"layers"`
	Subject   *ocispecs.Descriptor  `json:"subject"`
}

func (m manifest) all() []ocispecs.Descriptor {
	all := append(append([]ocispecs.Descriptor{}, m.Manifests...), m.Layers...)
	for _, one := range []*ocispecs.Descriptor{m.Config, m.Subject} {
		if one != nil {
			all = append(all, *one)
		}
	}
	return all
}

// reach is what a manifest reaches, itself included, whatever its type is.
type reach struct {
	blobs    map[digest.Digest]int64 // sizes, as announced
	followed map[digest.Digest]bool  // of these, manifests
	missing  []digest.Digest         // of these, manifests that are not there
	bad      []digest.Digest         // manifests that cannot be read: what they reach is not known
}

// whole reports whether all that is reached is known.
func (r reach) whole() bool { return len(r.missing)+len(r.bad) == 0 }

func newReach() reach {
	return reach{blobs: map[digest.Digest]int64{}, followed: map[digest.Digest]bool{}}
}

// follow adds to r what a manifest reaches. restore is asked for a manifest that is not
// there; it may be nil.
func (r *reach) follow(root *os.Root, from ocispecs.Descriptor, restore func(digest.Digest) (bool, error)) error {
	for todo := []ocispecs.Descriptor{from}; len(todo) > 0; {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if at.Digest.Validate() != nil {
			continue // its manifest is then none that BuildKit can read
		}
		r.blobs[at.Digest] = at.Size
		if !names(at.MediaType) || r.followed[at.Digest] {
			continue // named under another type, too, it is followed for the one that names others
		}
		r.followed[at.Digest] = true
		m, err := readManifest(root, at.Digest)
		if missing(err) && restore != nil {
			restored, failed := restore(at.Digest)
			if failed != nil {
				return failed
			}
			if restored {
				m, err = readManifest(root, at.Digest)
			}
		}
		switch {
		case missing(err):
			r.missing = append(r.missing, at.Digest)
		case errors.Is(err, errBad):
			r.bad = append(r.bad, at.Digest)
		case err != nil:
			return err
		}
		todo = append(todo, m.all()...)
	}
	return nil
}

// manifestAt returns the descriptor of a manifest by its digest, also of one that the index names no more.
func manifestAt(root *os.Root, index ocispecs.Index, d digest.Digest) (ocispecs.Descriptor, bool) {
	for _, m := range index.Manifests {
		if m.Digest == d {
			return m, true
		}
	}
	if d.Validate() != nil {
		return ocispecs.Descriptor{}, false
	}
	gone, err := readTrash(root)
	if err == nil {
		_, err = gone.restore(root, d)
	}
	if err != nil {
		return ocispecs.Descriptor{}, false
	}
	body, err := readBlob(root, d)
	var of struct {
		MediaType string `json:"mediaType"`
	}
	if err != nil || json.Unmarshal(body, &of) != nil || !names(of.MediaType) {
		return ocispecs.Descriptor{}, false
	}
	return ocispecs.Descriptor{Digest: d, MediaType: of.MediaType, Size: int64(len(body))}, true
}

// errBad says that a manifest is not one.
var errBad = errors.New("it cannot be read")

// readManifest reads a manifest, whose digest must fit: what a wrong one reaches is not
// to be believed.
func readManifest(root *os.Root, d digest.Digest) (manifest, error) {
	body, err := readBlob(root, d)
	if err != nil {
		return manifest{}, err
	}
	var m manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return manifest{}, fmt.Errorf("manifest %s: %w: %w", d, errBad, err)
	}
	return m, nil
}

// readBlob reads a small blob and compares it with its digest.
func readBlob(root *os.Root, d digest.Digest) (_ []byte, err error) {
	f, _, err := openQuietly(root, blobPath(d))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	body, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxManifest {
		return nil, fmt.Errorf("blob %s: %w: more than %d bytes", d, errBad, maxManifest)
	}
	if d.Algorithm().FromBytes(body) != d {
		return nil, fmt.Errorf("blob %s: %w: its bytes have another digest", d, errBad)
	}
	return body, nil
}

// openQuietly opens a file so that reading it leaves its time of access, which tells
// of imports, as it is. Where that is not allowed, quiet is false.
func openQuietly(root *os.Root, name string) (_ *os.File, quiet bool, _ error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		f, err = root.Open(name)
		return f, false, err
	}
	return f, true, err
}

// blobInfo is a blob as the file system has it.
type blobInfo struct {
	size     int64
	modified time.Time // when it was first written whole: an export that finds it leaves it as it is
}

// scan lists all blobs.
func scan(root *os.Root) (map[digest.Digest]blobInfo, error) {
	all := map[digest.Digest]blobInfo{}
	algorithms, err := readDir(root, blobsDir)
	if err != nil {
		return nil, err
	}
	for _, algorithm := range algorithms {
		files, err := readDir(root, blobsDir+"/"+algorithm.Name())
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			d, ok := digestOf(algorithm.Name(), file.Name())
			if !ok || !file.Type().IsRegular() {
				continue // none of BuildKit's
			}
			info, err := file.Info()
			if missing(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			all[d] = blobInfo{info.Size(), info.ModTime()}
		}
	}
	return all, nil
}

// readDir lists a directory; one that is not there is empty.
func readDir(root *os.Root, name string) ([]os.DirEntry, error) {
	f, err := root.Open(name)
	if missing(err) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only
	entries, err := f.ReadDir(-1)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	return entries, err
}
