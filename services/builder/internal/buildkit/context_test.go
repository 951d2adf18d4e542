package buildkit

import (
	"context"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/guard"
)

func optOf(t *testing.T, spec build.Spec) client.SolveOpt {
	t.Helper()
	dir := t.TempDir()
	if spec.Context.Directory != nil && spec.Context.Directory.Path == "" {
		spec.Context.Directory.Path = dir
	}
	d := &Daemon{opts: Options{Roots: []string{os.TempDir()}, Guard: guard.New(guard.Policy{Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Schemes: []string{"ssh", "https"}}, slog.New(slog.DiscardHandler))}}
	j, err := d.prepare("id", spec)
	if err != nil {
		t.Fatal(err)
	}
	opt := j.opt
	if err := j.close(); err != nil {
		t.Error(err)
	}
	return opt
}

// The daemon takes a file for unchanged when name, size, mode and time are the
// same under the same key: then it builds from the old bytes, and nobody is told.
func TestOtherContentIsNeverTakenForUnchanged(t *testing.T) {
	inline := func(content string) build.Spec {
		return build.Spec{Project: "p", Context: build.Context{Inline: &build.InlineContext{
			Files: []build.File{{Path: "a", Content: []byte(content)}},
		}}}
	}
	if a, b := optOf(t, inline("one")).SharedKey, optOf(t, inline("two")).SharedKey; a == b {
		t.Error("inline contexts of other content share a key")
	}
	if a, b := optOf(t, inline("one")).SharedKey, optOf(t, inline("one")).SharedKey; a != b {
		t.Error("the same inline context has another key: all of it would be sent again")
	}

	directory := func(dockerfile string) build.Spec {
		return build.Spec{Project: "p", Context: build.Context{Directory: &build.DirectoryContext{}}, Dockerfile: build.Dockerfile{Inline: dockerfile}}
	}
	if a, b := optOf(t, directory("")).SharedKey, optOf(t, directory("")).SharedKey; a == b {
		t.Error("two directories share a key")
	}
	time := func(dockerfile string) (modTime int64) {
		mount := optOf(t, directory(dockerfile)).LocalMounts[dockerfileName]
		err := mount.Walk(t.Context(), "", func(_ string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err == nil {
				modTime = info.ModTime().UnixNano()
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return modTime
	}
	first, other, again := time("FROM a"), time("FROM b"), time("FROM a")
	if first == other {
		t.Error("inline Dockerfiles of other content have the same time")
	}
	if first != again {
		t.Error("the same inline Dockerfile has another time")
	}
}

func TestInlineWalkSkipsDirectories(t *testing.T) {
	var files []build.File
	for _, name := range []string{"Dockerfile", "a/b/c", "a/d", "ab", "z/y"} {
		files = append(files, build.File{Path: name})
	}
	var seen []string
	err := inlineFS(files, 0).Walk(context.Background(), "", func(name string, entry fs.DirEntry, _ error) error {
		seen = append(seen, name)
		if name == "a" && entry.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(seen, " "); got != "Dockerfile a ab z z/y" {
		t.Errorf("walked %s", got)
	}
}
