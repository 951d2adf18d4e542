package local

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

// layout is a directory as BuildKit's client writes it.
type layout struct {
	dir  string
	form string // media type of the manifests
}

func newLayout(t *testing.T) *layout {
	t.Helper()
	return &layout{dir: t.TempDir(), form: ocispecs.MediaTypeImageManifest}
}

func (l *layout) open(grace time.Duration) *Directory {
	return New(Options{Path: l.dir, Grace: grace, Log: slog.New(slog.DiscardHandler)})
}

func (l *layout) path(d digest.Digest) string {
	return filepath.Join(l.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// blob writes a blob unless it is there.
func (l *layout) blob(body []byte) (ocispecs.Descriptor, error) {
	d := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromBytes(body), Size: int64(len(body))}
	if _, err := os.Stat(l.path(d.Digest)); err == nil {
		return d, nil
	}
	if err := os.MkdirAll(filepath.Dir(l.path(d.Digest)), 0o755); err != nil {
		return d, err
	}
	ingest := filepath.Join(l.dir, "ingest", digest.FromString(d.Digest.String()+time.Now().String()).Encoded())
	if err := os.MkdirAll(ingest, 0o755); err != nil {
		return d, err
	}
	data := filepath.Join(ingest, "data")
	if err := os.WriteFile(data, body, 0o644); err != nil {
		return d, err
	}
	if err := os.Rename(data, l.path(d.Digest)); err != nil {
		return d, err
	}
	now := time.Now()
	if err := os.Chtimes(l.path(d.Digest), now, now); err != nil {
		return d, err
	}
	return d, os.RemoveAll(ingest)
}

// export exports a cache of layers, each made upon the one before, as BuildKit's client
// does since v0.34: under a shared lock from the first write to the new index. between is
// called before the index is written; it may be nil.
func (l *layout) export(tag string, between func(), layers ...string) (err error) {
	if err := os.MkdirAll(l.dir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(l.dir, "cache.lock"), os.O_RDONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	for unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil {
		time.Sleep(time.Millisecond)
	}
	manifest, err := l.manifest(layers...)
	if err != nil {
		return err
	}
	if between != nil {
		between()
	}
	return l.put(tag, manifest)
}

// manifest writes the blobs of a cache.
func (l *layout) manifest(layers ...string) (ocispecs.Descriptor, error) {
	var config cacheConfig
	var descriptors []ocispecs.Descriptor
	for i, layer := range layers {
		d, err := l.blob([]byte(layer))
		if err != nil {
			return d, err
		}
		descriptors = append(descriptors, d)
		created := fmt.Sprintf(`{"createdAt":"2026-01-01T00:00:%02dZ"}`, i)
		config.Layers = append(config.Layers, cacheLayer{Blob: d.Digest, Parent: i - 1, Annotations: json.RawMessage(created)})
		config.Records = append(config.Records, cacheRecord{Digest: digest.FromString(layer + " step"), Results: []cacheResult{{Layer: i}}})
	}
	c, err := l.json(config, configType)
	if err != nil {
		return c, err
	}
	var body any = ocispecs.Manifest{MediaType: l.form, Config: c, Layers: descriptors}
	if l.form != ocispecs.MediaTypeImageManifest {
		body = ocispecs.Index{MediaType: l.form, Manifests: append(descriptors, c)}
	}
	return l.json(body, l.form)
}

func (l *layout) json(value any, mediaType string) (ocispecs.Descriptor, error) {
	body, err := json.Marshal(value)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	d, err := l.blob(body)
	d.MediaType = mediaType
	return d, err
}

// put names a manifest in the index, in place, as client/ociindex does.
var putting sync.Mutex // BuildKit's lock fails who does not get it; tests are no test of that

func (l *layout) put(tag string, m ocispecs.Descriptor) error {
	putting.Lock()
	defer putting.Unlock()
	var index ocispecs.Index
	file, err := os.OpenFile(filepath.Join(l.dir, "index.json"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	var buffer bytes.Buffer
	if _, err := buffer.ReadFrom(file); err != nil {
		return err
	}
	if buffer.Len() > 0 {
		if err := json.Unmarshal(buffer.Bytes(), &index); err != nil {
			return err
		}
	}
	m.Annotations = map[string]string{ocispecs.AnnotationRefName: tag}
	kept := []ocispecs.Descriptor{m}
	for _, other := range index.Manifests {
		if other.Annotations[ocispecs.AnnotationRefName] != tag {
			kept = append(kept, other)
		}
	}
	index.Manifests = kept
	body, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if _, err := file.WriteAt(body, 0); err != nil {
		return err
	}
	return file.Truncate(int64(len(body)))
}

// whole is an error when a manifest of the index reaches what is not there.
func (l *layout) whole() error {
	body, err := os.ReadFile(filepath.Join(l.dir, "index.json"))
	if err != nil {
		return err
	}
	var index ocispecs.Index
	if err := json.Unmarshal(body, &index); err != nil {
		return err
	}
	for _, m := range index.Manifests {
		if err := l.complete(m); err != nil {
			return fmt.Errorf("tag %s: %w", tagOf(m), err)
		}
	}
	return nil
}

// complete reads all that a manifest names, without this package's own way to do so.
func (l *layout) complete(m ocispecs.Descriptor) error {
	body, err := os.ReadFile(l.path(m.Digest))
	if err != nil {
		return err
	}
	var parsed struct {
		Config    *ocispecs.Descriptor
		Layers    []ocispecs.Descriptor
		Manifests []ocispecs.Descriptor
	}
	if err := json.Unmarshal(body, &parsed); err != nil {
		return err
	}
	all := append(parsed.Layers, parsed.Manifests...)
	if parsed.Config != nil {
		all = append(all, *parsed.Config)
	}
	for _, d := range all {
		body, err := os.ReadFile(l.path(d.Digest))
		if err != nil {
			return err
		}
		if digest.FromBytes(body) != d.Digest {
			return fmt.Errorf("blob %s has other bytes", d.Digest)
		}
	}
	return nil
}

// blobs are the blobs that are there.
func (l *layout) blobs(t *testing.T) map[digest.Digest]bool {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(l.dir, "blobs", "sha256"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	all := map[digest.Digest]bool{}
	for _, file := range files {
		all[digest.NewDigestFromEncoded("sha256", file.Name())] = true
	}
	return all
}

func (l *layout) has(t *testing.T, body string) bool {
	t.Helper()
	return l.blobs(t)[digest.FromString(body)]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func got[V any](v V, err error) func(*testing.T) V {
	return func(t *testing.T) V {
		t.Helper()
		must(t, err)
		return v
	}
}

// removeAll removes tags as a run does.
func removeAll(t *testing.T, d *Directory, tags ...string) map[string]int64 {
	t.Helper()
	freed := map[string]int64{}
	must(t, d.Remove(context.Background(), listed(t, d, tags...), 0, func(tag string, bytes int64) { freed[tag] = bytes }))
	return freed
}

// listed returns tags as they are listed now; one that is not there has no revision.
func listed(t testing.TB, d *Directory, tags ...string) (all []cache.Target) {
	t.Helper()
	listing, err := d.List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, tag := range tags {
		target := cache.Target{ID: tag}
		for _, r := range listing.Records {
			if r.ID == tag {
				target = r.Target()
			}
		}
		all = append(all, target)
	}
	return all
}
