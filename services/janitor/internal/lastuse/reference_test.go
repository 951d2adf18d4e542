package lastuse_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/lastuse"
)

func TestParse(t *testing.T) {
	r := lastuse.Registry{Address: "localhost:5000", Names: []string{"registry:5000"}}
	digest := "sha256:" + strings.Repeat("a", 64)
	for text, want := range map[string]string{
		"localhost:5000/cache/web:main": "cache/web :main",
		"127.0.0.1:5000/cache/web":      "cache/web :latest",
		"[::1]:5000/a:1":                "a :1",
		"registry:5000/a/b/c:x_y.z":     "a/b/c :x_y.z",
		"REGISTRY:5000/a@" + digest:     "a " + digest,
		"localhost:5000/a:1@" + digest:  "a " + digest,
		"localhost:5001/a:1":            "",
		"docker.io/library/a:1":         "",
		"a":                             "",
		"localhost:5000/":               "",
		"localhost:5000/A:1":            "",
		"localhost:5000/a:-":            "",
		"localhost:5000/a@sha256:x":     "",
		"localhost:5000/../a:1":         "",
	} {
		ref, err := r.Parse("f", text)
		got := ""
		if err == nil {
			got = ref.Repository + " " + string(ref.Name())
		} else if wrong, ok := errors.AsType[*fault.Error](err); !ok || wrong.Field != "f" || wrong.Remedy == "" {
			t.Errorf("%s: %v", text, err)
		}
		if got != want {
			t.Errorf("%s: %q, want %q", text, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("localhost:5000/cache/web:main")
	f.Add("localhost:5000/a@sha256:0")
	r := lastuse.Registry{Address: "localhost:5000"}
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := r.Parse("f", text)
		if err == nil && (ref.Repository == "" || strings.Contains(ref.Repository, "..") || strings.HasPrefix(ref.Repository, "/") || strings.Contains(ref.Tag, "/")) {
			t.Errorf("%q: %+v", text, ref)
		}
	})
}
