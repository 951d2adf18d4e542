package contextstore_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/kilnbuild/kiln/services/builder/internal/contextstore"
)

// BenchmarkPut stores contexts of large and of many small files, each for the first
// time and when all of it is there.
func BenchmarkPut(b *testing.B) {
	bounds := limits()
	for name, shape := range map[string]struct{ files, size int }{
		"64x1MiB":  {64, 1 << 20},
		"20000x1K": {20_000, 1 << 10},
	} {
		archive := randomTar(b, shape.files, shape.size)
		b.Run(name+"/new", func(b *testing.B) {
			b.SetBytes(int64(len(archive)))
			for b.Loop() {
				b.StopTimer()
				s, _ := newStore(b, bounds)
				b.StartTimer()
				benchPut(b, s, archive)
			}
		})
		b.Run(name+"/again", func(b *testing.B) {
			s, _ := newStore(b, bounds)
			benchPut(b, s, archive)
			b.SetBytes(int64(len(archive)))
			for b.Loop() {
				benchPut(b, s, archive)
			}
		})
	}
}

func benchPut(b *testing.B, s *contextstore.Store, archive []byte) {
	b.Helper()
	if _, err := s.Put(b.Context(), project, bytes.NewReader(archive), ""); err != nil {
		b.Fatal(err)
	}
}

func randomTar(b *testing.B, files, size int) []byte {
	b.Helper()
	random := rand.NewChaCha8([32]byte{})
	items := make([]item, files)
	for i := range items {
		content := make([]byte, size)
		if _, err := random.Read(content); err != nil {
			b.Fatal(err)
		}
		items[i] = item{Name: "d" + itoa(i%100) + "/" + itoa(i), Body: string(content)}
	}
	return tarOf(b, items...)
}
