package contextstore_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Whatever comes, it is stored whole or refused as the sender's fault, with
// nothing left; and what is stored reads back and has one digest. Run it with
// -fuzzminimizetime 1x: timing changes what is covered, and Go would minimize that.
func FuzzPut(f *testing.F) {
	whole := good(f)
	f.Add(whole)
	f.Add(gzipOf(f, whole))
	f.Add(zstdOf(f, whole))
	for _, c := range smallBadArchives(f) {
		if len(c.archive) < 64<<10 {
			f.Add(c.archive)
		}
	}
	bounds := tight()
	bounds.MaxBytes = 1 << 20
	s, dir := newStore(f, bounds)
	f.Fuzz(func(t *testing.T, archive []byte) {
		info, err := s.Put(t.Context(), project, bytes.NewReader(archive), "")
		if err == nil {
			if got := describe(t, s, info.Digest); got != describe(t, s, put(t, s, archive).Digest) {
				t.Errorf("twice the same archive, and two contexts: %s", got)
			}
			return
		}
		failed, ok := errors.AsType[*fault.Error](err)
		if !ok || failed.Kind != fault.InvalidArgument && failed.Kind != fault.ResourceExhausted || failed.Remedy == "" {
			t.Errorf("refused with %v", err)
		}
		// That all else is as it was, TestPutRefuses sees: walking takes its time.
		if left, err := os.ReadDir(filepath.Join(dir, "incoming")); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
}
