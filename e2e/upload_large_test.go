package e2e_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/image"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// largeArchive is an archive of a Dockerfile and so many files of 1 MiB that do not
// compress. It is made as it is read.
func largeArchive(t *testing.T, dockerfile string, files int) io.Reader {
	t.Helper()
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		archive := tar.NewWriter(w)
		err := archive.WriteHeader(&tar.Header{Name: "Dockerfile", Mode: 0o644, Size: int64(len(dockerfile))})
		if err == nil {
			_, err = io.WriteString(archive, dockerfile)
		}
		random := rand.NewChaCha8([32]byte{})
		for i := 0; i < files && err == nil; i++ {
			if err = archive.WriteHeader(&tar.Header{Name: fmt.Sprintf("%04d", i), Mode: 0o644, Size: 1 << 20}); err == nil {
				_, err = io.CopyN(archive, random, 1<<20)
			}
		}
		_ = w.CloseWithError(errors.Join(err, archive.Close())) // always nil
	}()
	t.Cleanup(func() {
		_ = r.Close() // always nil
		<-done
	})
	return r
}

// The builder's memory does not grow with contexts: not when they come, and not
// when they go on to the daemon.
func TestLargeContextsTakeLittleMemory(t *testing.T) {
	s := ownStack(t, lab.StackOptions{})
	text := "FROM " + s.base + "\nRUN --mount=type=bind,target=/ctx cat /ctx/0* | wc -c\n"
	up := s.stored(t, largeArchive(t, text, 256), "")
	if up.GetSizeBytes() != 256<<20+int64(len(text)) {
		t.Errorf("%d bytes", up.GetSizeBytes())
	}
	if log := s.succeed(t, &builderv1.BuildSpec{Context: uploadedContext(up.GetDigest())}).log(); strings.TrimSpace(log) != fmt.Sprint(256<<20) {
		t.Errorf("the build read %q bytes", log)
	}
	if peak := peakMemory(t, s.Builder.PID()); peak > 128<<20 {
		t.Errorf("the builder took %d MiB", peak>>20)
	}
}

// A Dockerfile may have a .dockerignore of its own, which counts instead of the
// context's. And the nanoseconds by which the daemon is told one content from
// another are in no layer.
func TestUploadedContextInTheImage(t *testing.T) {
	s := sharedStack(t)
	up := s.stored(t, bytes.NewReader(tarOf(t,
		entry("Dockerfile", "FROM scratch\n"), entry("other.Dockerfile", "FROM scratch\nCOPY . /\n"),
		entry(".dockerignore", "a\n"), entry("other.Dockerfile.dockerignore", "b\n"), entry("a", "a"), entry("b", "b"),
	)), "")
	s.succeed(t, &builderv1.BuildSpec{
		Context:    uploadedContext(up.GetDigest()),
		Dockerfile: &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Path{Path: "other.Dockerfile"}},
		Outputs:    push(s.ref("ignoring")),
	})
	times := layerTimes(t, s.ref("ignoring"))
	if _, ok := times["b"]; ok || times["a"].IsZero() {
		t.Errorf("in the image: %v", times)
	}
	for _, name := range []string{"a", "Dockerfile", "other.Dockerfile"} {
		if at := times[name]; !at.Equal(time.Unix(1e9, 0)) {
			t.Errorf("%s has the time %s", name, at)
		}
	}
}

// layerTimes are the times of all files in an image's layers.
func layerTimes(t *testing.T, ref string) map[string]time.Time {
	t.Helper()
	img := labtest.Must(image.Pull(labtest.Context(t, time.Minute), ref, ""))(t)
	times := make(map[string]time.Time)
	for _, layer := range labtest.Must(img.Layers())(t) {
		content := labtest.Must(layer.Uncompressed())(t)
		for files := tar.NewReader(content); ; {
			h, err := files.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			times[h.Name] = h.ModTime
		}
		if err := content.Close(); err != nil {
			t.Error(err)
		}
	}
	return times
}
