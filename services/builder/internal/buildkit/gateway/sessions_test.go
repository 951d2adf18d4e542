package gateway

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Whatever calls come and go: the sessions that are named at one time are each of
// one identity, and nothing is kept of those that no call names.
func TestSessionsBelongToOne(t *testing.T) {
	type call struct {
		identity string
		ids      []string
		release  func()
	}
	rapid.Check(t, func(t *rapid.T) {
		s := newRoutes()
		var open []call
		t.Repeat(map[string]func(*rapid.T){
			"claim": func(t *rapid.T) {
				c := call{
					identity: rapid.SampledFrom([]string{"", "ann", "eve"}).Draw(t, "identity"),
					ids:      rapid.SliceOfN(rapid.SampledFrom([]string{"s1", "s2", "s3"}), 0, 3).Draw(t, "ids"),
				}
				free := !slices.ContainsFunc(open, func(other call) bool {
					return other.identity != c.identity && slices.ContainsFunc(other.ids, func(id string) bool { return slices.Contains(c.ids, id) })
				})
				_, release, err := s.claim(c.identity, c.ids)
				if free != (err == nil) || err != nil && fault.KindOf(err) != fault.NotFound {
					t.Fatalf("%v claims, with %v open: %v", c, open, err)
				}
				if c.release = release; err == nil {
					open = append(open, c)
				}
			},
			"release": func(t *rapid.T) {
				if len(open) == 0 {
					return
				}
				at := rapid.IntRange(0, len(open)-1).Draw(t, "at")
				open[at].release()
				open = slices.Delete(open, at, at+1)
			},
			"": func(t *rapid.T) {
				for id := range s.sessions {
					if !slices.ContainsFunc(open, func(c call) bool { return slices.Contains(c.ids, id) }) {
						t.Fatalf("session %s is kept, and no call names it", id)
					}
				}
			},
		})
	})
}

// A client that left is no failure that the builder's log warns of.
func TestSession_OfAClientThatLeftEndsAsCancelled(t *testing.T) {
	gone := fault.New(fault.Unavailable, "UNAVAILABLE", "the client no longer answers", "build again")
	if err := leaving(gone); fault.KindOf(err) != fault.Canceled {
		t.Error(err)
	}
	wrong := fault.New(fault.InvalidArgument, "INVALID_FIELD", "it does not speak HTTP/2", "")
	if err := leaving(wrong); fault.KindOf(err) != fault.InvalidArgument {
		t.Error(err)
	}
	if err := leaving(nil); err != nil {
		t.Error(err)
	}
}
