package hostdir_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/hostdir"
)

func TestOpen(t *testing.T) {
	base := t.TempDir()
	for _, dir := range []string{"allowed/app/src", "allowed2", "secret", "allowed-not"} {
		if err := os.MkdirAll(filepath.Join(base, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(base, "allowed/app/file"), "hello")
	write(t, filepath.Join(base, "secret/key"), "k")
	link(t, "../secret", filepath.Join(base, "allowed/out"))
	link(t, filepath.Join(base, "secret"), filepath.Join(base, "allowed/out-abs"))
	link(t, "app", filepath.Join(base, "allowed/in"))
	link(t, filepath.Join(base, "allowed"), filepath.Join(base, "way-in"))
	roots := hostdir.Roots{filepath.Join(base, "allowed"), filepath.Join(base, "allowed2")}

	for name, tc := range map[string]struct {
		path string
		kind fault.Kind // -1: it opens
	}{
		"the root":                  {"allowed", -1},
		"below the root":            {"allowed/app/src", -1},
		"the second root":           {"allowed2", -1},
		"dots that stay inside":     {"allowed/app/../app", -1},
		"a link that stays inside":  {"allowed/in", -1},
		"a link from elsewhere":     {"way-in/app", -1},
		"outside":                   {"secret", fault.PermissionDenied},
		"above":                     {"", fault.PermissionDenied},
		"outside by dots":           {"allowed/../secret", fault.PermissionDenied},
		"outside by a link":         {"allowed/out", fault.PermissionDenied},
		"outside by a full link":    {"allowed/out-abs", fault.PermissionDenied},
		"a name that begins alike":  {"allowed-not", fault.PermissionDenied},
		"missing inside":            {"allowed/none", fault.InvalidArgument},
		"missing outside, unsaid":   {"secret/none", fault.PermissionDenied},
		"a file, not a directory":   {"allowed/app/file", fault.InvalidArgument},
		"missing outside by dots":   {"allowed/../secret/none", fault.PermissionDenied},
		"through a link, a missing": {"allowed/out/none", fault.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			root, err := roots.Open(base + "/" + tc.path)
			if tc.kind == -1 {
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = root.Close() }()
				if _, err := root.Open("../secret/key"); err == nil {
					t.Error("what was opened can be left by ..")
				}
				return
			}
			var refused *fault.Error
			if !errors.As(err, &refused) || refused.Kind != tc.kind || refused.Remedy == "" {
				t.Fatalf("err = %v, want kind %v with a remedy", err, tc.kind)
			}
		})
	}

	t.Run("links in it lead nowhere else", func(t *testing.T) {
		root, err := roots.Open(filepath.Join(base, "allowed"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = root.Close() }()
		if _, err := root.ReadFile("out/key"); err == nil {
			t.Error("a file outside was read through a link")
		}
	})
	t.Run("no roots", func(t *testing.T) {
		if _, err := (hostdir.Roots)(nil).Open(base); fault.KindOf(err) != fault.PermissionDenied {
			t.Errorf("err = %v", err)
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}
