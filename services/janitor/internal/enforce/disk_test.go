package enforce_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/trace/noop"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/state"
	"github.com/kilnbuild/kiln/services/janitor/internal/storage"
)

// disk is the storage of a registry in a directory, and the registry that it is of.
type disk struct {
	t    *testing.T
	root string
}

func newDisk(t *testing.T) disk { return disk{t, t.TempDir()} }

func (disk) Foreign(context.Context) error        { return nil }
func (disk) Caches(context.Context) (bool, error) { return false, nil }
func (disk) Deaf(context.Context) error           { return nil }

func (d disk) DeleteManifest(_ context.Context, repository string, digest content.Digest) error {
	return os.Remove(d.revision(repository, string(digest)))
}

func (d disk) path(parts ...string) string {
	return filepath.Join(append([]string{d.root, "docker/registry/v2"}, parts...)...)
}

func (d disk) revision(repository, digest string) string {
	return d.path("repositories", repository, "_manifests/revisions/sha256", digest[len("sha256:"):], "link")
}

func (d disk) put(at time.Time, text string, parts ...string) {
	d.t.Helper()
	path := d.path(parts...)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o600)
	}
	if err == nil {
		err = os.Chtimes(path, at, at)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// blob stores bytes, with a link of a repository, and returns their digest.
func (d disk) blob(repository, text string, at time.Time) string {
	d.t.Helper()
	sum := sha256.Sum256([]byte(text))
	h := hex.EncodeToString(sum[:])
	d.put(at, text, "blobs/sha256", h[:2], h, "data")
	d.put(at, "sha256:"+h, "repositories", repository, "_layers/sha256", h, "link")
	return "sha256:" + h
}

// image stores an image of one layer, with these tags, and returns its digest.
func (d disk) image(repository string, at time.Time, tags ...string) string {
	d.t.Helper()
	name := fmt.Sprint(repository, tags)
	config, layer := `{"of":"`+name+`"}`, "layer of "+name
	text := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"digest":%q,"size":%d}]}`,
		d.blob(repository, config, at), len(config), d.blob(repository, layer, at), len(layer))
	digest := d.blob(repository, text, at)
	h := digest[len("sha256:"):]
	d.put(at, digest, "repositories", repository, "_manifests/revisions/sha256", h, "link")
	for _, tag := range tags {
		d.put(at, digest, "repositories", repository, "_manifests/tags", tag, "index/sha256", h, "link")
		d.put(at, digest, "repositories", repository, "_manifests/tags", tag, "current/link")
	}
	return digest
}

func (d disk) has(repository, digest string) bool {
	_, err := os.Stat(d.revision(repository, digest))
	return err == nil
}

// engine returns one of the storage with a new state that has a policy, and that state.
func (d disk) engine(p policy.Policy) (*enforce.Engine, *state.Store) {
	d.t.Helper()
	store, err := state.Open(context.Background(), filepath.Join(d.t.TempDir(), "s.db"))
	if err == nil {
		d.t.Cleanup(func() { _ = store.Close() })
		err = store.Configure(context.Background(), p, time.Now())
	}
	if err != nil {
		d.t.Fatal(err)
	}
	var id atomic.Int64
	return enforce.New(enforce.Options{
		Storage: storage.New(d.root), Registry: d, Checker: d, State: store, Metrics: silent{}, Log: slog.New(slog.DiscardHandler),
		Tracer: noop.NewTracerProvider().Tracer(""), Now: time.Now, NewID: func() string { return fmt.Sprint("run", id.Add(1)) },
		Settle: 10 * time.Millisecond,
	}), store
}

const day = 24 * time.Hour

// ago is a time some days ago.
func ago(days int) time.Time { return time.Now().Add(-time.Duration(days) * day) }

// keeps is a policy with rules that keep some repositories for seven days.
func keeps(globs ...string) policy.Policy {
	week, p := 7*day, policy.Default(7*day)
	p.Rules = []policy.Rule{{Name: "week", Match: &policy.Match{Repositories: policy.Globs(globs...)}, Keep: &policy.Keep{Age: &week}}}
	return p
}

// protects is a policy with a rule before its own that protects some repositories.
func protects(p policy.Policy, globs ...string) policy.Policy {
	p.Rules = append([]policy.Rule{{Name: "protected", Match: &policy.Match{Repositories: policy.Globs(globs...)}, Protect: true}}, p.Rules...)
	return p
}
