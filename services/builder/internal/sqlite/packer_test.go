package sqlite

import (
	"bytes"
	"crypto/rand"
	"testing"
)

// What does not get smaller is kept as it is.
func TestPackOnlyWhenItHelps(t *testing.T) {
	p, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	noise := make([]byte, 1000)
	_, _ = rand.Read(noise) // Never fails.
	for name, test := range map[string]struct {
		data []byte
		want bool
	}{"noise": {noise, false}, "nothing": {nil, false}, "text": {bytes.Repeat([]byte("COPY . .\n"), 100), true}} {
		packed, is := p.pack(test.data)
		if is != test.want || len(packed) > len(test.data) || packed == nil {
			t.Errorf("%s: %d bytes of %d, packed %t", name, len(packed), len(test.data), is)
		}
	}
}
