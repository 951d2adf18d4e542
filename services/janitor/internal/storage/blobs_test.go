package storage

import (
	digester "crypto/sha256"
	"fmt"
	"slices"
	"testing"

	"github.com/kilnbuild/kiln/services/janitor/internal/content"
	"github.com/kilnbuild/kiln/services/janitor/internal/inventory"
)

// Each blob is found by its sum and no other is, however they are spread.
func TestBlobsAreFound(t *testing.T) {
	spread := map[string]func(i int) content.Sum{
		"evenly":        func(i int) content.Sum { return sumOf(i) },
		"all at a side": func(i int) content.Sum { return content.Sum{7, 0xff, 0xff, 0xff, 0xff, byte(i >> 8), byte(i)} },
		"alike":         func(i int) content.Sum { return content.Sum{7, 1, 1, 1, 1, byte(i >> 8), byte(i)} },
	}
	for name, of := range spread {
		var dirs [256]directory
		for i := range 2000 {
			if s := of(i); i%2 == 0 {
				dirs[s[0]].hashes = append(dirs[s[0]].hashes, s)
			}
		}
		all, err := newBlobs(t.Context(), dirs[:])
		if err != nil {
			t.Fatal(err)
		}
		numbers := map[int32]bool{}
		for i := range 2000 {
			s, is := of(i), i%2 == 0
			n := inventory.Missing
			if i%4 < 2 {
				n = all.name(s)
			}
			if all.has(s) != is || i%4 == 0 && (n < 0 || int(n) >= len(all.bytes) || numbers[n]) || i%4 == 1 && n != inventory.Missing {
				t.Fatalf("%s: %d: found %t, number %d", name, i, all.has(s), n)
			}
			numbers[n] = true
		}
		var left []content.Sum
		if err := all.unnamed(func(s content.Sum) error { left = append(left, s); return nil }); err != nil {
			t.Fatal(err)
		}
		if slices.SortFunc(left, content.Sum.Compare); len(slices.Compact(left)) != 500 {
			t.Errorf("%s: %d are not named", name, len(left))
		}
	}
}

func sumOf(i int) content.Sum { return digester.Sum256(fmt.Append(nil, i)) }
