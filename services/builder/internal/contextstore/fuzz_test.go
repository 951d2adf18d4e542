package contextstore_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// Whatever comes as an archive: it is refused with a reason and leaves nothing, or
// it is stored, can be read to its last byte, and is the same when it comes again.
func FuzzPut(f *testing.F) {
	f.Add(good(f))
	for _, c := range badArchives(f) {
		if len(c.archive) < 64<<10 {
			f.Add(c.archive)
		}
	}
	f.Fuzz(func(t *testing.T, archive []byte) {
		s, dir := newStore(t, tight())
		before := onDisk(t, dir)
		info, err := s.Put(t.Context(), bytes.NewReader(archive), "")
		if err != nil {
			if known, ok := errors.AsType[*fault.Error](err); !ok || known.Reason == "" || known.Remedy == "" {
				t.Errorf("refused without a reason: %v", err)
			}
			if after := onDisk(t, dir); after != before {
				t.Errorf("left behind: before\n%s\nafter\n%s", before, after)
			}
			return
		}
		readAll(t, s, info)
		again, err := s.Put(t.Context(), bytes.NewReader(archive), "")
		if err != nil || again.Digest != info.Digest {
			t.Errorf("%s, and again %s, %v", info.Digest, again.Digest, err)
		}
	})
}

func readAll(t *testing.T, s *contextstore.Store, info contextstore.Info) {
	t.Helper()
	tree, err := s.Open(info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tree.Close() }()
	var size int64
	for _, entry := range tree.Entries() {
		if !entry.Mode.IsRegular() {
			continue
		}
		file, err := tree.Open(entry.Path)
		if err != nil {
			t.Fatal(err)
		}
		n, err := io.Copy(io.Discard, file)
		if err = errors.Join(err, file.Close()); err != nil || n != entry.Size {
			t.Errorf("%q: %d bytes of %d, %v", entry.Path, n, entry.Size, err)
		}
		size += n
	}
	if size != info.Bytes {
		t.Errorf("%d bytes, and the store says %d", size, info.Bytes)
	}
}
