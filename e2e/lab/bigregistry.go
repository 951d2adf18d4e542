package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// BigRegistry is the size of a storage to be made.
type BigRegistry struct {
	Repositories int
	// Manifests are those of all repositories; each has a config and Layers layers of its own.
	Manifests, Layers int
	// Tags are those of all repositories; the manifests beyond have none.
	Tags int
}

// Blobs is how many blobs such a storage has.
func (b BigRegistry) Blobs() int { return b.Manifests * (2 + b.Layers) }

// Write writes the storage of a registry as pushes would have, with small blobs, below a
// root directory. Repositories are "repo/0000" and so on, tags "t0" and so on. They were pushed
// to one after the other, in a week.
func (b BigRegistry) Write(ctx context.Context, root string) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	began := time.Now().Add(-week)
	for r := range b.Repositories {
		group.Go(func() error {
			w := bigWriter{root: filepath.Join(root, "docker/registry/v2"), repository: fmt.Sprintf("repo/%04d", r)}
			w.pushed = began.Add(week * time.Duration(r) / time.Duration(b.Repositories))
			tags := share(b.Tags, b.Repositories, r)
			for m := range share(b.Manifests, b.Repositories, r) {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				tag := ""
				if m < tags {
					tag = fmt.Sprintf("t%d", m)
				}
				w.manifest(fmt.Sprintf("%d-%d", r, m), b.Layers, tag)
			}
			for extra := share(b.Manifests, b.Repositories, r); extra < tags; extra++ { // more tags than manifests
				w.tag(fmt.Sprintf("t%d", extra), w.last)
			}
			return w.err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

// share is the part of n that the i-th of several has.
func share(n, of, i int) int { return n*(i+1)/of - n*i/of }

const week = 7 * 24 * time.Hour

type bigWriter struct {
	root, repository string
	pushed           time.Time
	last             string // digest of the last manifest
	err              error
}

func (w *bigWriter) manifest(name string, layers int, tag string) {
	config := w.blob(`{"architecture":"amd64","os":"linux","created":"2026-01-02T03:04:05Z","name":"` + name + `"}`)
	var list []string
	for i := range layers {
		list = append(list, w.blob(fmt.Sprintf("layer %s-%d", name, i)))
	}
	manifest := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}`,
		descriptorOf("application/vnd.oci.image.config.v1+json", config), strings.Join(each(list, "application/vnd.oci.image.layer.v1.tar"), ","))
	w.last = digestOf(manifest)
	w.file(w.data(w.last), manifest)
	w.link("_manifests/revisions/sha256/"+w.last, w.last)
	if tag != "" {
		w.tag(tag, w.last)
	}
}

func (w *bigWriter) tag(tag, digest string) {
	w.link("_manifests/tags/"+tag+"/index/sha256/"+digest, digest)
	w.link("_manifests/tags/"+tag+"/current", digest)
}

// blob writes a blob and its link, and returns its text.
func (w *bigWriter) blob(text string) string {
	digest := digestOf(text)
	w.file(w.data(digest), text)
	w.link("_layers/sha256/"+digest, digest)
	return text
}

func (w *bigWriter) data(digest string) string {
	return filepath.Join("blobs/sha256", digest[:2], digest, "data")
}

func (w *bigWriter) link(path, digest string) {
	path = filepath.Join("repositories", w.repository, path, "link")
	w.file(path, "sha256:"+digest)
	if w.err == nil {
		w.err = os.Chtimes(filepath.Join(w.root, path), w.pushed, w.pushed)
	}
}

func (w *bigWriter) file(path, text string) {
	if w.err != nil {
		return
	}
	path = filepath.Join(w.root, path)
	if w.err = os.MkdirAll(filepath.Dir(path), 0o755); w.err == nil {
		w.err = os.WriteFile(path, []byte(text), 0o644)
	}
}

func digestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func descriptorOf(mediaType, text string) string {
	return fmt.Sprintf(`{"mediaType":%q,"digest":"sha256:%s","size":%d}`, mediaType, digestOf(text), len(text))
}

func each(texts []string, mediaType string) (all []string) {
	for _, text := range texts {
		all = append(all, descriptorOf(mediaType, text))
	}
	return all
}

// Sync writes out what the kernel holds back.
func Sync() error {
	unix.Sync()
	return nil
}
