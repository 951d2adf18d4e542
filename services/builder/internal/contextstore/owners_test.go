package contextstore_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// project is the project of the tests that have one only.
const project = "web"

// A project sees what it uploaded or fetched, and nothing that only others did, whether
// it names the archive, the context, or a URL; the bytes are stored once.
func TestOwners_HideContextsOfOtherProjects(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, limits(), time.Now)
	archive := string(good(t))
	announced := digestOf([]byte(archive))
	info, err := s.Put(t.Context(), "web", strings.NewReader(archive), announced)
	if err != nil {
		t.Fatal(err)
	}
	const unknown = "sha256:00000000000000000000000000000000000000000000000000000000000000aa"
	hidden := func(s *contextstore.Store) {
		t.Helper()
		if _, ok := s.Known("payroll", announced); ok {
			t.Error("another project learns that the archive was uploaded")
		}
		_, missing := s.Use("payroll", unknown)
		for what, get := range map[string]func() error{
			"use":  func() error { _, err := s.Use("payroll", info.Digest); return err },
			"open": func() error { _, err := s.Open("payroll", info.Digest); return err },
		} {
			err := get()
			if fault.KindOf(err) != fault.NotFound ||
				strings.ReplaceAll(err.Error(), info.Digest, "") != strings.ReplaceAll(missing.Error(), unknown, "") {
				t.Errorf("%s by another project: %v; of one that is nowhere: %v", what, err, missing)
			}
		}
		if _, ok := s.Known("web", announced); !ok {
			t.Error("its own project does not know the archive")
		}
	}
	hidden(s)
	hidden(open(t, dir, limits(), time.Now))
	before := blobs(t, dir)
	same, err := s.Put(t.Context(), "payroll", strings.NewReader(archive), announced)
	if err != nil || same != info && same.Digest != info.Digest || blobs(t, dir) != before {
		t.Errorf("the same archive by another project: %+v, %v; %d blobs, before %d", same, err, blobs(t, dir), before)
	}
	if _, ok := open(t, dir, limits(), time.Now).Known("payroll", announced); !ok {
		t.Error("a project does not know what it uploaded")
	}
}

// What a URL gave to one project is asked for again by another.
func TestOwners_FetchForEachProject(t *testing.T) {
	archive := good(t)
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		_, _ = w.Write(archive)
	}))
	t.Cleanup(server.Close)
	s, _ := newStore(t, limits())
	for n, project := range []string{"web", "web", "payroll"} {
		info, err := s.Fetch(t.Context(), http.DefaultClient, project, server.URL, digestOf(archive))
		if err != nil {
			t.Fatal(err)
		}
		if want := []int{1, 1, 2}[n]; asked != want {
			t.Errorf("after %d fetches the server was asked %d times, want %d", n+1, asked, want)
		}
		if tree, err := s.Open(project, info.Digest); err != nil || tree.Close() != nil {
			t.Errorf("%s cannot open what it fetched: %v", project, err)
		}
	}
}

// The owners of a context go with it.
func TestOwners_GoWithTheContext(t *testing.T) {
	dir := t.TempDir()
	at := &clock{now: start}
	s := open(t, dir, limits(), at.Now)
	for _, project := range []string{"web", "a.b-c_d"} {
		if _, err := s.Put(t.Context(), project, strings.NewReader(string(good(t))), ""); err != nil {
			t.Fatal(err)
		}
	}
	if left := owners(t, dir); left != 2 {
		t.Fatalf("%d owners", left)
	}
	at.Add(49 * time.Hour)
	if _, err := s.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	if left := owners(t, dir); left != 0 {
		t.Errorf("%d owners are left", left)
	}
	stale := filepath.Join(dir, "owners", strings.Repeat("ab", 32)+".web")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, dir, limits(), at.Now)
	if left := owners(t, dir); left != 0 {
		t.Errorf("after a restart %d owners of contexts that are gone", left)
	}
}

func owners(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, "owners"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
