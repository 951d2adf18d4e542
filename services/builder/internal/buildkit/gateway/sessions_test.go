package gateway

import (
	"slices"
	"testing"

	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
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
				_, release, err := s.claim(owner{identity: c.identity}, c.ids)
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
				for of := range s.secrets {
					if !slices.ContainsFunc(open, func(c call) bool { return c.identity == of.identity && len(c.ids) > 0 }) {
						t.Fatalf("the secrets of %+v are kept, and it has no session", of)
					}
				}
			},
		})
	})
}

// A step that two targets of a bake have in common is given the secrets of one, and
// shown to both.
func TestSecrets_OfAllSessionsOfAClientAreMasked(t *testing.T) {
	table, bake, other := newRoutes(), owner{"ci", "10.0.0.1:1"}, owner{"ci", "10.0.0.1:2"}
	claim := func(of owner, id string) []*sessionRoute {
		claimed, release, err := table.claim(of, []string{id})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(release)
		return claimed
	}
	first, second, foreign := claim(bake, "s1"), claim(bake, "s2"), claim(other, "s3")
	buildkit.AddSecret(first[0].secrets, []byte("hunter22"))
	if got := secretsOf(second, "s2").Masker().Text("hunter22"); got != mask.Replacement {
		t.Errorf("the other target of the bake shows %q", got)
	}
	if secretsOf(foreign, "s3").Masker() != nil {
		t.Error("another client can find out the secret by what is masked for it")
	}
}

// Sessions that are never used are bounded, and leave room for others.
func TestSession_BoundsThoseOfAnIdentity(t *testing.T) {
	r := newRig(t)
	for range maxSessions {
		if _, ok := r.gateway.routes.open(owner{identity: "eve"}); !ok {
			t.Fatal("refused below the limit")
		}
	}
	for identity, want := range map[string]codes.Code{"eve": codes.ResourceExhausted, "ann": codes.InvalidArgument} {
		stream, err := r.client(t, identity).ControlClient().Session(t.Context()) // without an id, which is malformed
		if err == nil {
			_, err = stream.Recv()
		}
		if grpcerrors.Code(err) != want {
			t.Errorf("%s: %v", identity, err)
		}
	}
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
