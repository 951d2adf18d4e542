package buildkit

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

var _ content.Store = layoutStore{}

// A layout's store gives the blobs of the layout, and nothing by other names, of
// other kinds, or from elsewhere.
func TestLayoutStore(t *testing.T) {
	dir := t.TempDir()
	blobs := filepath.Join(dir, "layout", "blobs", "sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		t.Fatal(err)
	}
	at := func(d digest.Digest) string { return filepath.Join(blobs, d.Encoded()) }
	held, outside, pipe, directory := digest.FromString("held"), digest.FromString("outside"), digest.FromString("pipe"), digest.FromString("directory")
	for _, err := range []error{
		os.WriteFile(at(held), []byte("held"), 0o600),
		os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600),
		os.Symlink(filepath.Join(dir, "secret"), at(outside)),
		unix.Mkfifo(at(pipe), 0o600),
		os.Mkdir(at(directory), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(filepath.Join(dir, "layout"))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	store := layoutStore{root}

	info, err := store.Info(t.Context(), held)
	if err != nil || info.Size != 4 || info.Digest != held {
		t.Errorf("info %v, %v", info, err)
	}
	reader, err := store.ReaderAt(t.Context(), ocispecs.Descriptor{Digest: held})
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(io.NewSectionReader(reader, 0, reader.Size())); err != nil || string(data) != "held" {
		t.Errorf("%q, %v", data, err)
	}
	if err := reader.Close(); err != nil {
		t.Error(err)
	}
	for name, d := range map[string]digest.Digest{
		"absent": digest.FromString("absent"), "a link out": outside, "a pipe": pipe, "a directory": directory,
		"a path": "sha256:../../../secret", "no digest": "",
	} {
		if _, err := store.ReaderAt(t.Context(), ocispecs.Descriptor{Digest: d}); err == nil {
			t.Errorf("%s was opened", name)
		}
	}
	if _, err := store.Info(t.Context(), digest.FromString("absent")); !cerrdefs.IsNotFound(err) {
		t.Errorf("absent: %v", err)
	}
	if _, err := store.Writer(context.Background()); err == nil {
		t.Error("the store can be written to")
	}
}
