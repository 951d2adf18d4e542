package usage

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/janitor/internal/content"
)

// manifest names blobs, whose digests are their sizes, and children.
func manifest(digest content.Digest, bytes int64, blobs []int64, children ...content.Digest) content.Manifest {
	m := content.Manifest{Digest: digest, Bytes: bytes, Children: children}
	for _, size := range blobs {
		m.Blobs = append(m.Blobs, content.NewBlob(content.Digest(fmt.Sprint(size)), size))
	}
	return m
}

func repository(name string, tags []Tag, manifests ...content.Manifest) Repository {
	r := Repository{Name: name, Tags: tags, Manifests: map[content.Digest]content.Manifest{}}
	for _, m := range manifests {
		r.Manifests[m.Digest] = m
	}
	return r
}

func TestAggregate(t *testing.T) {
	found := []Repository{
		// An index of two images that share the layer of 100, and a second tag on one
		// of the images.
		repository("app", []Tag{{"1", "index"}, {"amd64", "m1"}},
			manifest("index", 1, nil, "m1", "m2", "gone"),
			manifest("m1", 2, []int64{100, 200, 100}),
			manifest("m2", 3, []int64{100, 300})),
		// Shares one layer with app, and has a tag that leads nowhere.
		repository("cache/app", []Tag{{"dangling", ""}, {"latest", "c"}}, manifest("c", 4, []int64{200, 5000})),
		repository("empty", nil),
		{Name: "broken", Err: errors.New("500")},
		// An index that names itself must not turn in circles.
		repository("ring", []Tag{{"r", "ring"}}, manifest("ring", 9, nil, "ring")),
	}
	found[0].Broken = 1

	got, reached := Aggregate(found)
	wantTotal := Totals{
		Repositories: 5, Failed: 1, Tags: 5, Manifests: 5, Blobs: 9,
		DeduplicatedBytes: 1 + 2 + 3 + 100 + 200 + 300 + 4 + 5000 + 9,
		SumOwnBytes:       606 + 5204 + 9,
	}
	if diff := cmp.Diff(wantTotal, got.Total); diff != "" {
		t.Error(diff)
	}
	if len(reached) != 9 {
		t.Errorf("reached %v", reached)
	}
	want := []RepositoryUsage{
		{
			Name: "cache/app", Tags: 2, Manifests: 1, Blobs: 3, OwnBytes: 5204, SharedBytes: 200, ExclusiveBytes: 5004,
			TagUsages: []TagUsage{{Tag: Tag{Name: "dangling"}}, {Tag: Tag{"latest", "c"}, OwnBytes: 5204, ExclusiveBytes: 5004}},
		},
		{
			Name: "app", Tags: 2, Manifests: 3, Blobs: 6, OwnBytes: 606, SharedBytes: 200, ExclusiveBytes: 406, Broken: 1,
			TagUsages: []TagUsage{
				{Tag: Tag{"1", "index"}, OwnBytes: 606, ExclusiveBytes: 1 + 3 + 300},
				{Tag: Tag{"amd64", "m1"}, OwnBytes: 302},
			},
		},
		{Name: "ring", Tags: 1, Manifests: 1, Blobs: 1, OwnBytes: 9, ExclusiveBytes: 9, TagUsages: []TagUsage{{Tag: Tag{"r", "ring"}, OwnBytes: 9, ExclusiveBytes: 9}}},
		{Name: "broken", Err: found[3].Err},
		{Name: "empty"},
	}
	if diff := cmp.Diff(want, got.Repositories, cmpopts.EquateEmpty(), cmpopts.EquateErrors()); diff != "" {
		t.Error(diff)
	}
}

func TestTagUsagesAreBounded(t *testing.T) {
	r := repository("many", nil, manifest("m", 1, nil))
	for i := range maxTagUsages + 5 {
		r.Tags = append(r.Tags, Tag{Name: fmt.Sprint(i), Digest: "m"})
	}
	got, _ := Aggregate([]Repository{r})
	if one := got.Repositories[0]; len(one.TagUsages) != maxTagUsages || one.Tags != maxTagUsages+5 {
		t.Errorf("%d usages of %d tags", len(one.TagUsages), one.Tags)
	}
}

func TestPages(t *testing.T) {
	snapshot := Snapshot{Time: time.Unix(7, 8)}
	for _, name := range []string{"a", "b/1", "b/2", "b/3", "c"} {
		snapshot.Repositories = append(snapshot.Repositories, RepositoryUsage{Name: name})
	}
	q := Query{Repositories: []string{"b/*", "c"}, Size: 3}
	var names []string
	offset := 0
	for {
		p, err := page(snapshot, q, offset)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range p.Repositories {
			names = append(names, r.Name)
		}
		if p.Next == "" {
			break
		}
		c, err := parseCursor(p.Next, q.Repositories)
		if err != nil || c.taken != snapshot.Time.UnixNano() {
			t.Fatalf("%+v, %v", c, err)
		}
		offset = c.offset
		if _, err := parseCursor(p.Next, []string{"b/*"}); fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("token of another request: %v", err)
		}
	}
	if diff := cmp.Diff([]string{"b/1", "b/2", "b/3", "c"}, names); diff != "" {
		t.Error(diff)
	}
	if _, err := page(snapshot, Query{Repositories: []string{"zz"}, Size: 1}, 0); fault.KindOf(err) != fault.NotFound {
		t.Errorf("unknown repository: %v", err)
	}
	for _, token := range []string{"%", "aGVsbG8", cursor{1, -1}.token(nil)} {
		if _, err := parseCursor(token, nil); fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("token %q: %v", token, err)
		}
	}
}

func TestMatches(t *testing.T) {
	tests := []struct {
		patterns []string
		name     string
		want     bool
	}{
		{nil, "x", true},
		{[]string{"x"}, "x", true},
		{[]string{"x"}, "xy", false},
		{[]string{"a", "x*"}, "x/y", true},
		{[]string{"*"}, "x", true},
	}
	for _, test := range tests {
		if got := matches(test.patterns, test.name); got != test.want {
			t.Errorf("%v matches %q: %t", test.patterns, test.name, got)
		}
	}
}
