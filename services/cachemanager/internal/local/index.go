package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// imageName is the annotation by which BuildKit finds a manifest before it looks at
// the tag (client/ociindex).
const imageName = "io.containerd.image.name"

const (
	indexTries = 20
	indexEvery = 10 * time.Millisecond
	maxIndex   = 64 << 20
)

// readIndex reads index.json. It takes no lock: a reader's lock would make an export
// fail that ends at that moment, for BuildKit does not wait for it. BuildKit writes the
// file in place, so that half of it may be seen for a moment; one that cannot be read
// for longer is a FAILED_PRECONDITION fault, and never an empty one.
func (d *Directory) readIndex(ctx context.Context, root *os.Root) (ocispecs.Index, []byte, error) {
	for try := 1; ; try++ {
		var index ocispecs.Index
		body, err := root.ReadFile(indexFile)
		if missing(err) {
			return ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}, nil, nil
		}
		if err == nil {
			err = json.Unmarshal(body, &index)
		}
		if err == nil {
			err = whole(index)
		}
		switch {
		case err == nil:
			return index, body, nil
		case errors.Is(err, os.ErrPermission):
			return index, nil, d.explain(err, "read")
		case try == indexTries:
			return index, nil, fault.Wrap(err, fault.FailedPrecondition, "WRONG_STATE", fmt.Sprintf("the index of directory %s cannot be read", d.opts.Path),
				"nothing is removed as long as it is so; put a good index.json in its place, or move it away to begin with an empty cache")
		}
		select {
		case <-time.After(indexEvery):
		case <-ctx.Done():
			return index, nil, context.Cause(ctx)
		}
	}
}

// whole reports what is wrong with an index that is JSON.
func whole(index ocispecs.Index) error {
	for i, m := range index.Manifests {
		if err := m.Digest.Validate(); err != nil {
			return fmt.Errorf("manifests[%d]: %w", i, err)
		}
	}
	return nil
}

// tagOf is the id of a manifest of the index: the name by which it is imported, or
// else its digest.
func tagOf(m ocispecs.Descriptor) string {
	for _, key := range []string{imageName, ocispecs.AnnotationRefName} {
		if name := m.Annotations[key]; name != "" {
			return name
		}
	}
	return m.Digest.String()
}

// manifestsOf are the manifests of the index by tag.
func manifestsOf(index ocispecs.Index) map[string][]ocispecs.Descriptor {
	byTag := map[string][]ocispecs.Descriptor{}
	for _, m := range index.Manifests {
		byTag[tagOf(m)] = append(byTag[tagOf(m)], m)
	}
	return byTag
}

// revision tells the manifests that a tag has from those that it has later: their digests.
func revision(manifests []ocispecs.Descriptor) string {
	all := make([]string, len(manifests))
	for i, m := range manifests {
		all[i] = m.Digest.String()
	}
	return strings.Join(all, ",")
}

// find is the manifest that an import of a tag takes.
func find(index ocispecs.Index, tag string) (ocispecs.Descriptor, bool) {
	for _, key := range []string{imageName, ocispecs.AnnotationRefName} {
		for _, m := range index.Manifests {
			if m.Annotations[key] == tag {
				return m, true
			}
		}
	}
	return ocispecs.Descriptor{}, false
}

// errChanged says that the index was changed by another meanwhile.
var errChanged = errors.New("the index has changed")

// writeIndex puts an index in the place of the one that was read as before, or is
// errChanged when that is no more. A reader sees the one or the other. It holds the
// lock that BuildKit's clients before v0.34 write under, who fail when they find it
// taken, for one comparison and one rename.
func (d *Directory) writeIndex(ctx context.Context, root *os.Root, index ocispecs.Index, before []byte) error {
	body, err := json.Marshal(index)
	if err != nil {
		return err
	}
	const prepared = ownDir + "/index.json"
	as, err := accessOf(root, indexFile, 0o644) // so that those who export can write it afterwards
	if err == nil {
		err = replace(root, prepared, as, body, toDisk)
	}
	if err != nil {
		return err
	}
	lock, err := d.await(ctx, root, indexLock, time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }() // which unlocks
	if now, err := root.ReadFile(indexFile); err != nil || !bytes.Equal(now, before) {
		return errors.Join(errChanged, err)
	}
	return root.Rename(prepared, indexFile)
}

// digestOf is a digest of a blob's file name.
func digestOf(algorithm, name string) (digest.Digest, bool) {
	d := digest.NewDigestFromEncoded(digest.Algorithm(algorithm), name)
	return d, d.Validate() == nil
}
