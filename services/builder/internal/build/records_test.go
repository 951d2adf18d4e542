package build_test

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// Whatever comes and ends in whatever order, the pages of a list are all that is
// remembered, newest first, each once; nothing that runs is forgotten; and no
// more than the limit is kept besides.
func TestRecordsPages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 8).Draw(t, "limit")
		records := build.NewRecords(limit)
		var ids []string
		running := map[string]bool{}
		for i := range rapid.IntRange(0, 30).Draw(t, "builds") {
			id := fmt.Sprintf("b%d", i)
			if !records.Add(build.Record{ID: id, State: build.Running}) {
				t.Fatalf("%s was refused", id)
			}
			ids = append(ids, id)
			running[id] = true
			if rapid.Bool().Draw(t, "ends") {
				end := rapid.SampledFrom(ids).Draw(t, "which")
				records.Update(end, func(r *build.Record) { r.State = build.Succeeded })
				delete(running, end)
			}
		}
		size := rapid.IntRange(1, 9).Draw(t, "page size")
		var listed []string
		for token := ""; ; {
			page, next, err := records.List(size, token)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) > size {
				t.Fatalf("a page of %d, want at most %d", len(page), size)
			}
			for _, r := range page {
				listed = append(listed, r.ID)
			}
			if token = next; token == "" {
				break
			}
		}
		last := len(ids)
		seen := map[string]bool{}
		for _, id := range listed {
			var n int
			if _, err := fmt.Sscanf(id, "b%d", &n); err != nil || n >= last {
				t.Fatalf("%s after b%d", id, last)
			}
			last, seen[id] = n, true
			if _, err := records.Get(id); err != nil {
				t.Fatalf("%s is listed, and: %v", id, err)
			}
		}
		for id := range running {
			if !seen[id] {
				t.Fatalf("%s runs and is not listed", id)
			}
		}
		if len(ids) >= limit && len(listed) < limit {
			t.Fatalf("%d kept of %d, limit %d", len(listed), len(ids), limit)
		}
	})
}

func FuzzPageToken(f *testing.F) {
	records := build.NewRecords(10)
	for i := range 3 {
		records.Add(build.Record{ID: fmt.Sprint(i)})
	}
	_, token, err := records.List(1, "")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add("")
	f.Add("YmVmb3JlOjA")
	f.Fuzz(func(t *testing.T, token string) {
		page, _, err := records.List(2, token)
		if err == nil && len(page) > 2 {
			t.Errorf("%d records", len(page))
		}
	})
}
