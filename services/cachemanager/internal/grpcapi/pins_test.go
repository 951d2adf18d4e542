package grpcapi

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/pkg/pagetoken"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/enforce"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/state"
)

// Pins that come and go between two pages move none of the others to the wrong page.
func TestListPins_GoesOnInAListThatChanges(t *testing.T) {
	store, err := state.Open(t.Context(), filepath.Join(t.TempDir(), "cache.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	engine := enforce.New(enforce.Options{State: store})
	server := NewServer(Options{Engine: engine, State: store, Pages: pagetoken.EphemeralTokens(), Now: func() time.Time { return now }})
	add := func(id string, at time.Time) {
		t.Helper()
		pin := policy.Pin{ID: id, Cache: cache.Ref{Daemon: "a"}, Record: "r", Created: at}
		if _, err := store.AddPin(t.Context(), pin, ""); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 6 {
		add(fmt.Sprint("p", i), now.Add(-time.Duration(i/2)*time.Hour)) // two of each time
	}
	var got []string
	for req := (&cachemanagerv1.ListPinsRequest{PageSize: 2}); ; {
		res, err := server.ListPins(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range res.GetPins() {
			got = append(got, p.GetId())
		}
		if req.PageToken = res.GetNextPageToken(); req.PageToken == "" {
			break
		}
		switch len(got) {
		case 2: // the last one shown goes, and one comes that belongs to the first page
			if _, err := store.RemovePin(t.Context(), "p1"); err != nil {
				t.Fatal(err)
			}
		case 4:
			add("new", now.Add(time.Hour))
			add("newer", now.Add(2*time.Hour))
			add("newest", now.Add(3*time.Hour))
		}
	}
	if want := []string{"p0", "p1", "p2", "p3", "p4", "p5"}; !slices.Equal(got, want) {
		t.Errorf("listed %q, want %q", got, want)
	}
}
