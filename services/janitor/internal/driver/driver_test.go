package driver_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/services/janitor/internal/driver"
)

func TestOpen(t *testing.T) {
	for name, c := range map[string]struct{ storage, root, err string }{
		"a directory":          {"filesystem: {rootdirectory: /srv/registry}", "/srv/registry", ""},
		"the default":          {"filesystem: {}", "/var/lib/registry", ""},
		"with other settings":  {"filesystem: {rootdirectory: /srv/registry}\n  delete: {enabled: true}\n  redirect: {disable: true}", "/srv/registry", ""},
		"the registry's own":   {"inmemory: {}", "", "own memory"},
		"no driver of its":     {"tape: {reel: 7}", "", "tape"},
		"more than one":        {"filesystem: {}\n  inmemory: {}", "", "no configuration"},
		"nothing of a storage": {"", "", "no configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.yml")
			if err := os.WriteFile(file, []byte("version: 0.1\nstorage:\n  "+c.storage+"\nhttp: {addr: 127.0.0.1:5000}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			s, err := driver.Open(t.Context(), file)
			switch {
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v", err)
				}
			case err != nil:
				t.Error(err)
			case s.Root() != c.root:
				t.Errorf("root %s", s.Root())
			}
		})
	}
	if _, err := driver.Open(t.Context(), filepath.Join(t.TempDir(), "none")); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no file: %v", err)
	}
}
