package cachelease_test

import (
	"errors"
	"testing"

	"github.com/kilnbuild/kiln/pkg/cachelease"
)

func TestIsCollision(t *testing.T) {
	for text, want := range map[string]bool{
		"could not lock /var/cache/buildkit-cache/index.json.lock": true,
		"error writing layer blob: rpc error: code = Unknown desc = rename tmp file: rename /c/ingest/e0/updatedat.tmp /c/ingest/e0/updatedat: no such file or directory": true,
		"could not lock /var/lib/apt/lists/lock":               false,
		"open /src/ingest/data: permission denied":             false,
		"failed to read dockerfile: no such file or directory": false,
	} {
		if got := cachelease.IsCollision(errors.New(text)); got != want {
			t.Errorf("%q: %t", text, got)
		}
	}
	if cachelease.IsCollision(nil) {
		t.Error("no error")
	}
}
