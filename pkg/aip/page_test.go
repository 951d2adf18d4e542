package aip_test

import (
	"cmp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/aip"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// Pages together are the list, none is larger than a client reads, and none but the
// last has fewer items than it was asked for and has room for.
func TestPage_CutsByItemsAndBytes(t *testing.T) {
	const clientMax = 4 << 20
	rapid.Check(t, func(r *rapid.T) {
		sizes := rapid.SliceOfN(rapid.IntRange(0, 1<<20), 0, 30).Draw(r, "sizes")
		asked := rapid.Int32Range(0, 60).Draw(r, "asked")
		message := func(size int) *builderv1.BuildRecord { return &builderv1.BuildRecord{Id: strings.Repeat("x", size)} }
		var got []int
		for from, pages := 0, 0; ; pages++ {
			items, next := aip.Page(aip.NewRoom(asked), sizes, from, message)
			for _, item := range items {
				got = append(got, len(item.GetId()))
			}
			bytes := proto.Size(&builderv1.ListBuildsResponse{Builds: items})
			if bytes > clientMax || len(items) > aip.PageSize(asked) {
				r.Fatalf("a page of %d items and %d bytes", len(items), bytes)
			}
			if from = next; next == 0 {
				break
			}
			if len(items) < aip.PageSize(asked) && bytes+sizes[next] < aip.MaxPageBytes-100 {
				r.Fatalf("a page of %d items and %d bytes, though the next item has %d", len(items), bytes, sizes[next])
			}
		}
		if len(got) != len(sizes) {
			r.Fatalf("%d items of %d", len(got), len(sizes))
		}
		for i := range got {
			if got[i] != sizes[i] {
				r.Fatalf("item %d has %d bytes, want %d", i, got[i], sizes[i])
			}
		}
	})
}

func TestPage_BeyondTheEnd(t *testing.T) {
	items, next := aip.Page(aip.NewRoom(5), []int{1, 2}, 7, func(int) *builderv1.BuildRecord { return nil })
	if len(items) != 0 || next != 0 {
		t.Errorf("%d items, next %d", len(items), next)
	}
}

// A list that changes between its pages shows each item that stays once, and none twice.
func TestAfter_GoesOnInAListThatChanges(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		number := rapid.IntRange(0, 40)
		all := rapid.SliceOfDistinct(number, func(n int) int { return n }).Draw(r, "list")
		slices.Sort(all)
		stays, shown := map[int]bool{}, map[int]int{}
		for _, n := range all {
			stays[n] = true
		}
		message := func(int) *builderv1.BuildRecord { return &builderv1.BuildRecord{} }
		for from := 0; ; {
			items, next := aip.Page(aip.NewRoom(rapid.Int32Range(1, 5).Draw(r, "size")), all, from, message)
			for i := range items {
				shown[all[from+i]]++
			}
			if next == 0 {
				break
			}
			last := all[next-1]
			for range rapid.IntRange(0, 4).Draw(r, "changes") {
				n := number.Draw(r, "n")
				if at, there := slices.BinarySearch(all, n); there {
					all = slices.Delete(all, at, at+1)
					delete(stays, n)
				} else {
					all = slices.Insert(all, at, n)
				}
			}
			from = aip.After(all, last, cmp.Compare[int])
		}
		for n := range stays {
			if shown[n] != 1 {
				r.Fatalf("%d is shown %d times", n, shown[n])
			}
		}
		for n, times := range shown {
			if times > 1 {
				r.Fatalf("%d is shown %d times", n, times)
			}
		}
	})
}
