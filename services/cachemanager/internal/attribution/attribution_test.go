package attribution_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/services/cachemanager/internal/attribution"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func at(ms int) time.Time { return noon.Add(time.Duration(ms) * time.Millisecond) }

func step(name string, from, to int) attribution.Step {
	return attribution.Step{Digest: "sha256:" + name, Name: name, Start: at(from), End: at(to)}
}

func cached(name string, from, to int) attribution.Step {
	s := step(name, from, to)
	s.Cached = true
	return s
}

// What a build of a Dockerfile leaves in buildkitd v0.34, as it was seen.
func TestWhatOneBuildUses(t *testing.T) {
	b := attribution.Build{ID: "b1", Project: "web", Images: []string{"r/web:1"}, Steps: []attribution.Step{
		step("[internal] load build definition from Dockerfile", 0, 10),
		step("[internal] load .dockerignore", 20, 30),
		step("FROM r/base:1@sha256:0a", 40, 50),
		step("[stage-0 2/4] RUN --mount=type=cache,target=/c  go   build", 100, 200),
		step("[stage-0 3/4] COPY --from=r/base:1 /a /b", 201, 220),
		step("[stage-0 4/4] RUN echo three", 230, 300),
		step("[internal] load git source https://h/r.git#main", 5, 90),
	}}
	records := []cache.Record{
		{ID: "history:b1", Type: cache.History, Created: at(0)},
		{ID: "history:b1-2", Type: cache.History, Created: at(0)},
		{ID: "history:b12", Type: cache.History, Created: at(0)},
		{ID: "dockerfile", Type: cache.SourceLocal, Description: "local source for dockerfile", Created: at(-5000), LastUsed: at(310)},
		{ID: "context", Type: cache.SourceLocal, Description: "local source for context", Created: at(-5000), LastUsed: at(310)},
		{ID: "old context", Type: cache.SourceLocal, Description: "local source for context", Created: at(-5000), LastUsed: at(-4000)},
		{ID: "base", Type: cache.Regular, Description: "pulled from r/base:1@sha256:0a", Created: at(-9000)},
		{ID: "layer of base", Type: cache.Regular, Description: "imported", Created: at(-9000)},
		{ID: "checkout", Type: cache.GitCheckout, Description: "git snapshot for https://h/r.git#main", Created: at(50)},
		{ID: "other base", Type: cache.Regular, Description: "pulled from r/other:1@sha256:0b", Created: at(45)},
		{ID: "mount", Type: cache.CacheMount, Description: `cached mount /c from exec /bin/sh -c go build with id "//c"`, Created: at(-7000), LastUsed: at(305)},
		{ID: "one", Type: cache.Regular, Description: "mount / from exec /bin/sh -c go build", Created: at(150), Parents: []string{"base"}},
		{ID: "two", Type: cache.Regular, Description: "[stage-0 3/4] COPY --from=r/base:1 /a /b", Created: at(219), Parents: []string{"one"}},
		{ID: "three", Type: cache.Regular, Description: "mount / from exec /bin/sh -c echo three", Created: at(231), Parents: []string{"two"}},
		{ID: "same command, another time", Type: cache.Regular, Description: "mount / from exec /bin/sh -c echo three", Created: at(400)},
		{ID: "other command, same time", Type: cache.Regular, Description: "mount / from exec /bin/sh -c make", Created: at(231)},
	}
	uses := attribution.Uses{}
	changed := uses.Learn(records, []attribution.Build{b})
	want := []string{"base", "checkout", "context", "dockerfile", "history:b1", "history:b1-2", "mount", "one", "three", "two"}
	if diff := cmp.Diff(want, changed); diff != "" {
		t.Error(diff)
	}
	for _, id := range want {
		if u := uses[id]; !slices.Equal(u.Projects, []string{"web"}) || !slices.Equal(u.Images, []string{"r/web:1"}) {
			t.Errorf("%s: %v", id, u)
		}
	}
	if again := uses.Learn(records, []attribution.Build{b}); len(again) > 0 {
		t.Errorf("told again, %v is news", again)
	}

	// A build that finds all in the cache uses what the first has made, and so do those
	// below; of a step of the same text in another graph nothing is known.
	second := attribution.Build{ID: "b2", Project: "app", Steps: []attribution.Step{cached("[stage-0 3/4] COPY --from=r/base:1 /a /b", 9000, 9001)}}
	if changed := uses.Learn(records, []attribution.Build{second}); !slices.Equal(changed, []string{"base", "one", "two"}) {
		t.Error(changed)
	}
	if got := uses["one"].Projects; !slices.Equal(got, []string{"app", "web"}) {
		t.Error(got)
	}
	other := attribution.Build{ID: "b3", Project: "x", Steps: []attribution.Step{{Digest: "sha256:other", Name: "[stage-0 4/4] RUN echo three", Cached: true, Start: at(9000), End: at(9001)}}}
	if changed := uses.Learn(records, []attribution.Build{other}); len(changed) > 0 {
		t.Error(changed)
	}
}

// A build that goes on, or that nobody reports, has made a record of the same text while the
// step of a reported one ran: neither of the two is said to be that one's.
func TestBuildThatIsNotReported(t *testing.T) {
	records := []cache.Record{
		{ID: "own", Type: cache.Regular, Description: "mount / from exec sh -c make", Created: at(90)},
		{ID: "other's", Type: cache.Regular, Description: "mount / from exec sh -c make", Created: at(40)},
	}
	uses := attribution.Uses{}
	if changed := uses.Learn(records, []attribution.Build{{ID: "1", Project: "a", Steps: []attribution.Step{step("[2/2] RUN make", 0, 100)}}}); len(changed) > 0 {
		t.Error(uses)
	}
}

// Two steps of the same text that ran at the same time leave a doubt, and nothing is
// said; one step that two builds waited for is of both.
func TestDoubt(t *testing.T) {
	record := []cache.Record{{ID: "r", Type: cache.Regular, Description: "mount / from exec sh -c make", Created: at(50)}}
	run := step("[2/2] RUN make", 0, 100)
	other := run
	other.Digest = "sha256:other"
	uses := attribution.Uses{}
	if changed := uses.Learn(record, []attribution.Build{{ID: "1", Project: "a", Steps: []attribution.Step{run}}, {ID: "2", Project: "b", Steps: []attribution.Step{other}}}); len(changed) > 0 {
		t.Error(uses)
	}
	uses.Learn(record, []attribution.Build{{ID: "1", Project: "a", Steps: []attribution.Step{run}}, {ID: "2", Project: "b", Steps: []attribution.Step{run}}})
	if got := uses["r"].Projects; !slices.Equal(got, []string{"a", "b"}) {
		t.Error(got)
	}
}

// Whatever runs at the same time, no project gets a record that its builds did not use,
// and what only one step can have made, it gets.
func TestNoProjectGetsWhatIsNotItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type truth struct {
			projects map[string]bool
			alone    bool // nothing else of its text ran at that moment
		}
		var builds []attribution.Build
		var records []cache.Record
		var commands []string
		var spans [][2]int
		truths := map[string]truth{}
		for i := range rapid.IntRange(1, 6).Draw(t, "builds") {
			b := attribution.Build{ID: fmt.Sprint("build", i), Project: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "project")}
			now := rapid.IntRange(0, 300).Draw(t, "start")
			for j := range rapid.IntRange(1, 4).Draw(t, "steps") {
				command := rapid.SampledFrom([]string{"make", "make install", "go test ./..."}).Draw(t, "command")
				took := rapid.IntRange(20, 200).Draw(t, "took")
				s := attribution.Step{Digest: fmt.Sprint(i, "/", j), Name: fmt.Sprintf("[%d/9] RUN %s", j, command), Start: at(now), End: at(now + took)}
				made := now + rapid.IntRange(6, took-6).Draw(t, "made")
				id := fmt.Sprint("record", i, "-", j)
				r := cache.Record{ID: id, Type: cache.Regular, Description: "mount / from exec /bin/sh -c " + command, Created: at(made), LastUsed: at(made + 1000)}
				if j > 0 {
					r.Parents = []string{fmt.Sprint("record", i, "-", j-1)}
				}
				b.Steps, records = append(b.Steps, s), append(records, r)
				commands, spans = append(commands, command), append(spans, [2]int{now, now + took})
				truths[id] = truth{projects: map[string]bool{b.Project: true}}
				now += took + 1
			}
			builds = append(builds, b)
		}
		// A record is surely its step's when no other step of its text ran as it was made, and
		// no other record of its text was made while the step ran.
		made := func(i int) int { return int(records[i].Created.Sub(noon).Milliseconds()) }
		within := func(i, step int) bool {
			return commands[step] == commands[i] && spans[step][0]-6 <= made(i) && made(i) <= spans[step][1]+6
		}
		for i, r := range records {
			fits := 0
			for j := range records {
				if within(i, j) {
					fits++
				}
				if within(j, i) {
					fits++
				}
			}
			known := truths[r.ID]
			known.alone = fits == 2
			truths[r.ID] = known
		}
		// Some are reported later than others, and some never are.
		uses := attribution.Uses{}
		together := rapid.Bool().Draw(t, "together")
		if together {
			uses.Learn(records, builds)
		} else {
			for _, i := range rapid.Permutation(indexes(len(builds))).Draw(t, "order") {
				if rapid.Bool().Draw(t, "reported") {
					uses.Learn(records, builds[i:i+1])
				}
			}
		}
		for _, r := range records {
			for _, p := range uses[r.ID].Projects {
				if !truths[r.ID].projects[p] {
					t.Fatalf("%s has %v, and is of %v", r.ID, uses[r.ID].Projects, truths[r.ID].projects)
				}
			}
			if together && truths[r.ID].alone && len(uses[r.ID].Projects) == 0 {
				t.Fatalf("%s is nobody's", r.ID)
			}
		}
	})
}

func indexes(n int) (all []int) {
	for i := range n {
		all = append(all, i)
	}
	return all
}
