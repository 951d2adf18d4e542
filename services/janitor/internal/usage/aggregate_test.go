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

func TestChoose_RepositoriesByPattern(t *testing.T) {
	snapshot := Snapshot{Time: time.Unix(7, 8)}
	for _, name := range []string{"a", "b/1", "b/2", "b/3", "c"} {
		snapshot.Repositories = append(snapshot.Repositories, RepositoryUsage{Name: name})
	}
	chosen, err := choose(snapshot, []string{"b/*", "c"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, r := range chosen.Repositories {
		names = append(names, r.Name)
	}
	if diff := cmp.Diff([]string{"b/1", "b/2", "b/3", "c"}, names); diff != "" || len(snapshot.Repositories) != 5 {
		t.Error(diff)
	}
	if _, err := choose(snapshot, []string{"zz"}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("unknown repository: %v", err)
	}
}

func TestChosen_GoesOnWithASurveyThatIsKept(t *testing.T) {
	kept := Snapshot{Time: time.Now(), Repositories: []RepositoryUsage{{Name: "a"}}}
	s := &Surveyor{recent: []Snapshot{kept}}
	got, err := s.Chosen(t.Context(), nil, kept.Time.UnixNano())
	if err != nil || len(got.Repositories) != 1 || !got.Time.Equal(kept.Time) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := s.Chosen(t.Context(), nil, 7); fault.KindOf(err) != fault.InvalidArgument {
		t.Errorf("a survey that nobody made: %v", err)
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
