package gateway

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/buildkit/client"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/queue"
)

// slots is the queue that the builder has, as package builder gives it to its builds.
type slots struct{ *queue.Queue }

func (s slots) Enter(e build.Entry) (build.Turn, error) {
	ticket, err := s.Queue.Enter(queue.Entry(e))
	if err != nil {
		return nil, err
	}
	return place{ticket}, nil
}

func (s slots) Readmit(e build.Entry) build.Turn { return place{s.Queue.Readmit(queue.Entry(e))} }

type place struct{ *queue.Ticket }

func (p place) Wait(ctx context.Context, notify func(build.Waiting)) error {
	return p.Ticket.Wait(ctx, func(at queue.Place) { notify(build.Waiting{Position: at.Position, Reason: at.Reason}) })
}

// withSlots gives the builds of a rig a queue with so many slots.
func withSlots(n int) func(*build.Options) {
	return func(o *build.Options) { o.Queue = slots{queue.New(queue.Options{Slots: n})} }
}

// Targets of a bake wait in their client for one another: `bake --jobs defer-output`
// exports none before all are built. That ends with fewer slots than targets.
func TestBuildsOfOneClientThatWaitForOneAnother(t *testing.T) {
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n, " slots"), func(t *testing.T) {
			r := newRig(t, withSlots(n))
			c := r.client(t, "ann")
			const targets = 8
			var solved, evaluated sync.WaitGroup
			solved.Add(targets)
			evaluated.Add(targets)
			errs := make(chan error, targets)
			for range targets {
				go func() {
					_, err := c.Build(t.Context(), client.SolveOpt{Ref: identity.NewID()}, "test", func(ctx context.Context, gw gwclient.Client) (*gwclient.Result, error) {
						for _, all := range []*sync.WaitGroup{&solved, &evaluated} {
							if _, err := gw.Solve(ctx, gwclient.SolveRequest{}); err != nil {
								return nil, err
							}
							all.Done()
							all.Wait()
						}
						return gwclient.NewResult(), nil
					}, nil)
					errs <- err
				}()
			}
			for range targets {
				select {
				case err := <-errs:
					if err != nil {
						t.Error(err)
					}
				case <-time.After(30 * time.Second):
					t.Fatal("the builds wait for one another")
				}
			}
		})
	}
}

// A build of a bake that has begun waits for a slot in the background only: the slot
// of a build that nobody waits for is not given back.
func TestSlot_IsKeptWhileNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &ticketed{q: queue.New(queue.Options{Slots: 1})}
		b.take(t.Context())
		s := newSlot(t.Context(), newContention(func() int { return b.q.Stats().Queued }), owner{}, b, true)
		defer s.end()
		time.Sleep(time.Hour)
		if err := s.acquire(t.Context()); err != nil || b.resumed.Load() != 0 {
			t.Errorf("%v, resumed %d times", err, b.resumed.Load())
		}
		s.release()
		other, err := b.q.Enter(queue.Entry{})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Release()
		time.Sleep(lendToOthers + lendToOwn)
		synctest.Wait()
		if got := b.q.Stats(); got.Queued != 0 {
			t.Errorf("the slot that is not used was not given to the build that waits: %+v", got)
		}
		b.Yield()
	})
}

// ticketed is a build with a ticket of a queue.
type ticketed struct {
	q       *queue.Queue
	resumed atomic.Int32
	mu      sync.Mutex
	ticket  *queue.Ticket
}

func (b *ticketed) take(ctx context.Context) {
	b.ticket, _ = b.q.Enter(queue.Entry{})
	_ = b.ticket.Wait(ctx, nil)
}

func (b *ticketed) Yield() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ticket.Release()
}

func (b *ticketed) Resume(ctx context.Context) error {
	b.resumed.Add(1)
	ticket := b.q.Readmit(queue.Entry{Priority: 2})
	b.mu.Lock()
	b.ticket = ticket
	b.mu.Unlock()
	return ticket.Wait(ctx, nil)
}

// Whatever a client's builds wait for in the client, as long as they would end with
// slots for all of them they end with few, and no more of them than there are slots
// work in the daemon at once.
func TestSlots_NoClientDeadlocksTheQueue(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		bake := drawBake(rt)
		synctest.Test(t, func(t *testing.T) {
			q := queue.New(queue.Options{Slots: bake.slots})
			contended := newContention(func() int { return q.Stats().Queued })
			var working atomic.Int32
			var group sync.WaitGroup
			done := make([][]chan struct{}, len(bake.builds))
			for i, b := range bake.builds {
				done[i] = make([]chan struct{}, len(b.parts))
				for j := range b.parts {
					done[i][j] = make(chan struct{})
				}
			}
			for i, b := range bake.builds {
				group.Go(func() {
					me := &ticketed{q: q}
					of := owner{connection: fmt.Sprint(b.client)}
					time.Sleep(b.comes)
					ended := contended.waits(of)
					me.take(t.Context())
					ended()
					s := newSlot(t.Context(), contended, of, me, true)
					defer me.Yield()
					defer s.end()
					for j, part := range b.parts {
						for _, need := range part.needs {
							<-done[need[0]][need[1]]
						}
						if err := s.acquire(t.Context()); err != nil {
							t.Error(err)
						}
						if n := working.Add(1); int(n) > bake.slots {
							t.Errorf("%d builds work with %d slots", n, bake.slots)
						}
						time.Sleep(part.takes)
						working.Add(-1)
						s.release()
						close(done[i][j])
					}
				})
			}
			group.Wait()
		})
	})
}

// bake is what some clients build at once: each build works in parts, and waits in its
// client, before a part, for parts of other builds.
type bake struct {
	slots  int
	builds []baked
}

type baked struct {
	client int
	comes  time.Duration
	parts  []part
}

type part struct {
	takes time.Duration
	needs [][2]int // build and part
}

// drawBake draws a bake that ends when there are slots for all: a part needs only
// parts that stand before it in one order of all of them.
func drawBake(t *rapid.T) bake {
	b := bake{slots: rapid.IntRange(1, 4).Draw(t, "slots")}
	n := rapid.IntRange(1, 12).Draw(t, "builds")
	rounds := rapid.IntRange(1, 3).Draw(t, "parts of each")
	millis := rapid.IntRange(0, 3000)
	for range n {
		b.builds = append(b.builds, baked{
			client: rapid.IntRange(0, 2).Draw(t, "client"), comes: time.Duration(millis.Draw(t, "comes")) * time.Millisecond,
			parts: make([]part, rounds),
		})
	}
	order := rapid.Permutation(indices(n)).Draw(t, "order")
	for round := range rounds {
		barrier := round > 0 && rapid.Bool().Draw(t, "all before")
		for at, i := range order {
			p := &b.builds[i].parts[round]
			p.takes = time.Duration(millis.Draw(t, "takes")) * time.Millisecond
			for _, other := range order[:at] {
				if rapid.Float64Range(0, 1).Draw(t, "needs") < 0.2 {
					p.needs = append(p.needs, [2]int{other, round})
				}
			}
			for other := range n {
				if barrier {
					p.needs = append(p.needs, [2]int{other, round - 1})
				}
			}
		}
	}
	return b
}

func indices(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}
