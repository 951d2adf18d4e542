package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// releases makes two releases of the same sizes, modes and times, which a link chooses.
func releases(t *testing.T, dir string, text string) {
	t.Helper()
	for _, name := range []string{"one", "two"} {
		release := filepath.Join(dir, name)
		labtest.Write(t, release, map[string]string{"Dockerfile": text, "content": name})
		for _, file := range []string{"Dockerfile", "content"} {
			at := time.Unix(1, 0)
			if err := os.Chtimes(filepath.Join(release, file), at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Content that changes under the same size, mode and time is built, from a directory of
// the builder's host and by kiln build; what does not change is not sent again.
func TestContext_ChangedInPlaceIsBuilt(t *testing.T) {
	s := sharedStack(t)
	text := "FROM " + s.base + "\nCOPY content /content\nRUN echo have-$(cat /content)-$(date +%s)\n"
	byRPC := func(t *testing.T, dir, ref string) {
		spec := directory(dir)
		spec.Outputs = push(ref)
		s.succeed(t, spec)
	}
	byCLI := func(t *testing.T, dir, ref string) {
		labtest.Must(s.kiln(t, "build", dir, dir, ref, "--push", "--progress", "quiet"))(t)
	}
	for door, build := range map[string]func(t *testing.T, dir, ref string){"directory": byRPC, "kiln build": byCLI} {
		t.Run(door, func(t *testing.T) {
			root := s.dir(t, map[string]string{"x": ""})
			releases(t, root, text)
			current := filepath.Join(root, "current")
			ref := s.ref("in-place-" + strings.ReplaceAll(door, " ", "-"))
			for _, release := range []string{"one", "two", "one"} {
				_ = os.Remove(current) // the first has none
				if err := os.Symlink(release, current); err != nil {
					t.Fatal(err)
				}
				build(t, current, ref)
				if got := file(t, ref, "", "/content"); got != release {
					t.Errorf("the link leads to %q, and the build has %q", release, got)
				}
			}
			// Written in place, as tar --mtime and touch do.
			path := filepath.Join(root, "one", "content")
			labtest.Write(t, filepath.Join(root, "one"), map[string]string{"content": "new"})
			if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			build(t, current, ref)
			if got := file(t, ref, "", "/content"); got != "new" {
				t.Errorf("written in place, and the build has %q", got)
			}
		})
	}
}

// A directory that nobody touched is not sent again.
func TestContext_UnchangedDirectoryIsNotSentAgain(t *testing.T) {
	s := sharedStack(t)
	dir := s.dir(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY big /\n", "big": strings.Repeat(unique(), 1<<16)})
	time.Sleep(100 * time.Millisecond) // what changed just now may change again
	sent := func() (n int64) {
		for _, e := range s.succeed(t, directory(dir)).events {
			if step := e.GetStep(); strings.HasPrefix(step.GetItem(), "transferring context") && step.GetState() == builderv1.StepState_STEP_STATE_PROGRESS {
				n = max(n, step.GetCurrentBytes())
			}
		}
		return n
	}
	if first, second := sent(), sent(); first < 1<<20 || second > 1<<16 {
		t.Errorf("%d bytes were sent, and %d of the unchanged directory", first, second)
	}
}
