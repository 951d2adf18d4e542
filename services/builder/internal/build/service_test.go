package build_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// daemon is a build.Daemon that does as its function says. What a real one does
// is tested against a real one, in the e2e module; here it is about the order of
// events and the one end of each build.
type daemon func(ctx context.Context, sink func(any)) build.Result

func (daemon) Name() string { return "d1" }
func (daemon) Accept(context.Context, build.Spec) (func(), error) {
	return held(1), nil
}
func (d daemon) Solve(ctx context.Context, _ string, _ int, _ build.Spec, sink func(any)) build.Result {
	return d(ctx, sink)
}

// succeeds is a daemon that says a little and succeeds.
func succeeds(_ context.Context, sink func(any)) build.Result {
	sink(build.StepEvent{Name: "one"})
	sink(build.LogEvent{Data: []byte("hello")})
	return build.Result{Steps: build.StepCounts{Total: 1, Completed: 1}, Outputs: []build.OutputResult{{Digest: "sha256:d"}}}
}

// hangs is a daemon that builds until it is told to end.
func hangs(ctx context.Context, sink func(any)) build.Result {
	sink(build.StepEvent{Name: "forever"})
	<-ctx.Done()
	return build.Result{Failure: &build.Failure{Message: "canceled", Class: build.ByCancel}}
}

type refusing struct {
	daemon
	err error
}

func (r refusing) Accept(context.Context, build.Spec) (func(), error) { return nil, r.err }

type pool struct {
	daemon build.Daemon
	err    error

	mu     sync.Mutex
	since  time.Time
	health error
}

// holds counts what Accept and Hold keep.
var holds atomic.Int64

func held(n int64) (release func()) {
	holds.Add(n)
	return func() { holds.Add(-n) }
}

func (p *pool) Pick(context.Context) (build.Daemon, error) { return p.daemon, p.err }
func (p *pool) Health(string) (time.Time, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.since, p.health
}

func (p *pool) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since, p.health = time.Now(), err
}

// rig is a service with what it stands on. Two rigs with one store are a builder
// that was started again.
type rig struct {
	*build.Service
	store   *memory
	metrics *counted
}

// seen is an event as these tests store it.
type seen struct {
	Seq  uint64
	Kind string
	Text string
}

func encode(e build.Event) ([]byte, error) {
	text := []byte("{}")
	if log, ok := e.Kind.(build.LogEvent); ok {
		text = log.Data[:min(len(log.Data), 1000)]
	}
	return json.Marshal(seen{e.Sequence, fmt.Sprintf("%T", e.Kind), string(text)})
}

var ids atomic.Int64

func newRig(t *testing.T, p build.Pool, store *memory, slots int) *rig {
	t.Helper()
	r := &rig{store: store, metrics: &counted{}}
	r.Service = build.NewService(build.Options{
		Pool: p, Store: store, Queue: &line{free: slots}, Metrics: r.metrics, Log: slog.New(slog.DiscardHandler),
		NewID:  func() string { return fmt.Sprintf("b%04d", ids.Add(1)) },
		Hold:   func(build.Spec) func() { return held(1) },
		Encode: encode, Decode: func([]byte) (build.Spec, error) { return build.Spec{Project: "web", MaxAttempts: 3}, nil },
	})
	return r
}

// stop ends the rig as the builder ends, and waits for it.
func (r *rig) stop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		t.Error(err)
	}
}

func web() build.Submission {
	return build.Submission{Spec: build.Spec{Project: "web"}, Fingerprint: "f", Caller: build.Caller{TraceID: "t"}}
}

// into collects what a watcher is given, and fails at gaps.
func into(t *testing.T, events *[]seen) func(build.Frame) error {
	return func(f build.Frame) error {
		var e seen
		if err := json.Unmarshal(f.Data, &e); err != nil {
			t.Error(err)
		}
		if n := len(*events); e.Seq != f.Sequence || (n > 0 && e.Seq != (*events)[n-1].Seq+1) {
			t.Errorf("event %d after %d others", e.Seq, n)
		}
		*events = append(*events, e)
		return nil
	}
}

func (r *rig) final(t *testing.T, id string, want build.State) build.Record {
	t.Helper()
	rec, err := r.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if rec.State != want || rec.Outcome == nil || rec.Outcome.State != want || rec.Ended.IsZero() {
		t.Fatalf("build %s is %s with outcome %+v, want %s", id, rec.State, rec.Outcome, want)
	}
	return rec
}

func TestEventsAndRecordOfABuild(t *testing.T) {
	r := newRig(t, &pool{daemon: daemon(succeeds)}, newMemory(), 1)
	defer r.stop(t)
	sub := web()
	sub.Spec.Outputs = []build.Output{{Registry: &build.RegistryOutput{Tags: []string{"r/web:1"}}}}
	var events []seen
	if err := r.Build(t.Context(), sub, into(t, &events)); err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, e := range events {
		kinds = append(kinds, e.Kind)
	}
	if got, want := fmt.Sprint(kinds), "[build.Started build.StepEvent build.LogEvent build.Outcome]"; got != want {
		t.Errorf("events %s, want %s", got, want)
	}
	page, _ := r.store.Unended(t.Context())
	if len(page) != 0 {
		t.Errorf("%d builds have not ended", len(page))
	}
	var rec build.Record
	for id := range r.store.records {
		rec = r.final(t, id, build.Succeeded)
	}
	if rec.LastSeq != 4 || rec.Steps.Completed != 1 || rec.Outcome.Outputs[0].Digest != "sha256:d" ||
		rec.Tags[0] != "r/web:1" || rec.TraceID != "t" || rec.Started.IsZero() || rec.Daemon != "d1" {
		t.Errorf("record %+v", rec)
	}
	r.stop(t) // the metrics are told after the caller
	if r.metrics.started != 1 || r.metrics.ended != 1 {
		t.Errorf("metrics %+v", r.metrics)
	}
}

func TestWhatIsRefusedLeavesNothing(t *testing.T) {
	denied := fault.New(fault.PermissionDenied, "DENIED", "no", "ask")
	for name, p := range map[string]*pool{
		"no daemon": {err: denied}, "not accepted": {daemon: refusing{daemon(succeeds), denied}},
	} {
		r := newRig(t, p, newMemory(), 1)
		if err := r.Build(t.Context(), web(), nil); !errors.Is(err, denied) {
			t.Errorf("%s: %v", name, err)
		}
		if len(r.store.records) != 0 || r.metrics.started != 0 {
			t.Errorf("%s: a build is left", name)
		}
		r.stop(t)
	}
}

// The same request id is the same build: for callers at once, after its end, and
// for a builder that was started again; another request with it is refused.
func TestRequestIDIsOneBuild(t *testing.T) {
	var solves atomic.Int32
	p := &pool{daemon: daemon(func(ctx context.Context, sink func(any)) build.Result {
		solves.Add(1)
		return succeeds(ctx, sink)
	})}
	store := newMemory()
	r := newRig(t, p, store, 4)
	sub := web()
	sub.RequestID = "r1"
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			var events []seen
			if err := r.Build(t.Context(), sub, into(t, &events)); err != nil || len(events) != 4 {
				t.Errorf("%d events, %v", len(events), err)
			}
		})
	}
	group.Wait()
	r.stop(t)
	again := newRig(t, p, store, 4)
	defer again.stop(t)
	if err := again.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	rec, err := again.Start(t.Context(), sub)
	if err != nil || rec.State != build.Succeeded {
		t.Errorf("after a restart: %v, %v", rec.State, err)
	}
	if n := solves.Load(); n != 1 {
		t.Errorf("%d solves", n)
	}
	sub.Fingerprint = "other"
	if _, err := again.Start(t.Context(), sub); fault.KindOf(err) != fault.AlreadyExists {
		t.Errorf("another request: %v", err)
	}
	sub.Spec.Project = "other"
	if rec, err := again.Start(t.Context(), sub); err != nil || rec.ID == "" {
		t.Errorf("in another project: %v", err)
	}
}

// A build without a request id ends with its call; one with an id only when
// nobody comes back for it.
func TestACallerThatGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{daemon: daemon(hangs)}, newMemory(), 4)
		defer r.stop(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		err := r.Build(ctx, web(), func(build.Frame) error { return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		for id := range r.store.records {
			r.final(t, id, build.Cancelled)
		}

		sub := web()
		sub.RequestID = "r1"
		leave := func() (string, error) {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			err := r.Build(ctx, sub, func(build.Frame) error { return nil })
			rec, _ := r.store.Find(t.Context(), "web", "r1")
			return rec.ID, err
		}
		id, _ := leave()
		time.Sleep(10 * time.Second)
		if again, _ := leave(); again != id {
			t.Errorf("came back to %s, want %s", again, id)
		}
		time.Sleep(14 * time.Second)
		if rec, _ := r.Get(t.Context(), id); rec.State != build.Running {
			t.Fatalf("14 s after its last call the build is %s", rec.State)
		}
		time.Sleep(2 * time.Second)
		r.final(t, id, build.Cancelled)
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{daemon: daemon(hangs)}, newMemory(), 4)
		defer r.stop(t)
		sub := web()
		sub.Spec.Timeout = time.Minute
		rec, err := r.Start(t.Context(), sub)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(61 * time.Second)
		if rec = r.final(t, rec.ID, build.TimedOut); rec.Outcome.Failure.Class != build.ByTimeout {
			t.Errorf("failure %+v", rec.Outcome.Failure)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		sub = web()
		sub.Spec.Project = "deadline"
		_ = r.Build(ctx, sub, func(build.Frame) error { return nil })
		for id, stored := range r.store.records {
			if stored.Project == "deadline" {
				r.final(t, id, build.TimedOut)
			}
		}
	})
}

// Cancel ends a build that runs and one that waits, and leaves one that ended.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{daemon: daemon(hangs)}, newMemory(), 1)
		defer r.stop(t)
		running, _ := r.Start(t.Context(), web())
		waiting, _ := r.Start(t.Context(), web())
		synctest.Wait()
		time.Sleep(time.Second)
		if rec, _ := r.Get(t.Context(), waiting.ID); rec.State != build.Queued || rec.Waiting == nil {
			t.Errorf("the second build: %+v", rec)
		}
		for _, id := range []string{waiting.ID, running.ID, running.ID} {
			rec, err := r.Cancel(t.Context(), id)
			if err != nil || rec.State != build.Cancelled || rec.Waiting != nil {
				t.Errorf("cancelled: %+v, %v", rec, err)
			}
			r.final(t, id, build.Cancelled)
		}
		if _, err := r.Cancel(t.Context(), "nope"); fault.KindOf(err) != fault.NotFound {
			t.Errorf("unknown: %v", err)
		}
	})
}

// What the infrastructure breaks is tried again as the policy says; what the user
// broke is not.
func TestRetries(t *testing.T) {
	for name, c := range map[string]struct {
		class    build.Class
		attempts int
		fails    int
		solves   int
		state    build.State
	}{
		"no policy":       {build.Infrastructure, 0, 1, 1, build.Failed},
		"succeeds later":  {build.Infrastructure, 3, 2, 3, build.Succeeded},
		"fails each time": {build.Infrastructure, 3, 9, 3, build.Failed},
		"the user's":      {build.User, 3, 9, 1, build.Failed},
		"policy":          {build.Policy, 3, 9, 1, build.Failed},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				solves := 0
				r := newRig(t, &pool{daemon: daemon(func(ctx context.Context, sink func(any)) build.Result {
					if solves++; solves <= c.fails {
						return build.Result{Failure: &build.Failure{Message: "broke", Class: c.class}}
					}
					return succeeds(ctx, sink)
				})}, newMemory(), 1)
				defer r.stop(t)
				sub := web()
				sub.Spec.MaxAttempts = c.attempts
				var events []seen
				if err := r.Build(t.Context(), sub, into(t, &events)); err != nil {
					t.Fatal(err)
				}
				for id := range r.store.records {
					if rec := r.final(t, id, c.state); rec.Attempt != c.solves || solves != c.solves {
						t.Errorf("attempt %d, %d solves, want %d", rec.Attempt, solves, c.solves)
					}
				}
			})
		})
	}
}

// When the builder stops: what waits goes on later, what runs too if its policy
// says so, all else is INTERRUPTED; and each has one outcome.
func TestStopAndStartAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		r := newRig(t, &pool{daemon: daemon(hangs)}, store, 3)
		detached := web()
		detached.Detached = true
		resumes := detached
		resumes.Spec.MaxAttempts = 2
		secret := resumes
		secret.Spec.Secrets = []build.Secret{{ID: "s", Value: []byte("x")}}
		start := func(sub build.Submission) string {
			rec, err := r.Start(t.Context(), sub)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			return rec.ID
		}
		runs, goesOn, hadSecret := start(detached), start(resumes), start(secret)
		waits, waitsSecret, attached := start(detached), start(secret), start(web())
		watched := make(chan error, 1)
		go func() { watched <- r.Watch(t.Context(), waits, 0, func(build.Frame) error { return nil }) }()
		time.Sleep(time.Second)
		r.stop(t)
		if err := <-watched; fault.KindOf(err) != fault.Unavailable {
			t.Errorf("the watcher of a build that goes on got %v", err)
		}
		for _, id := range []string{runs, hadSecret, waitsSecret, attached} {
			r.final(t, id, build.Interrupted)
		}

		again := newRig(t, &pool{daemon: daemon(succeeds)}, store, 1)
		defer again.stop(t)
		if err := again.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		for id, attempt := range map[string]int{goesOn: 2, waits: 1} {
			if rec := again.final(t, id, build.Succeeded); rec.Attempt != attempt {
				t.Errorf("%s: attempt %d, want %d", id, rec.Attempt, attempt)
			}
			var events []seen
			if err := again.Watch(t.Context(), id, 0, into(t, &events)); err != nil || events[len(events)-1].Kind != "build.Outcome" {
				t.Errorf("%v, %v", events, err)
			}
		}
	})
}

// A builder that drains lets builds that run end, also those that no call waits
// for, and begins no other in the slots that they leave.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newMemory()
		slow := daemon(func(ctx context.Context, sink func(any)) build.Result {
			select {
			case <-time.After(10 * time.Second):
				return succeeds(ctx, sink)
			case <-ctx.Done():
				return hangs(ctx, sink)
			}
		})
		r := newRig(t, &pool{daemon: slow}, store, 1)
		detached := web()
		detached.Detached = true
		start := func(sub build.Submission) string {
			rec, err := r.Start(t.Context(), sub)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			return rec.ID
		}
		runs, waits, attached := start(detached), start(detached), start(web())
		began := time.Now()
		go func() {
			time.Sleep(time.Second)
			if _, err := r.Start(t.Context(), detached); fault.KindOf(err) != fault.Unavailable {
				t.Errorf("a build that comes while the builder drains got %v", err)
			}
			r.final(t, attached, build.Interrupted)
		}()
		r.Drain(time.Minute)
		if took := time.Since(began); took < 5*time.Second || took > 15*time.Second {
			t.Errorf("it drained for %s", took)
		}
		r.final(t, runs, build.Succeeded)
		if rec, err := r.Get(t.Context(), waits); err != nil || rec.State != build.Queued || !rec.Started.IsZero() {
			t.Errorf("the build that waited: %+v, %v", rec, err)
		}
		r.stop(t)

		again := newRig(t, &pool{daemon: slow}, store, 1)
		defer again.stop(t)
		if err := again.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		again.final(t, waits, build.Succeeded)
	})
}

// What has not ended within the grace is interrupted.
func TestDrainIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, &pool{daemon: daemon(hangs)}, newMemory(), 1)
		detached := web()
		detached.Detached = true
		rec, err := r.Start(t.Context(), detached)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		began := time.Now()
		r.Drain(time.Minute)
		if took := time.Since(began); took != time.Minute {
			t.Errorf("it drained for %s", took)
		}
		r.stop(t)
		r.final(t, rec.ID, build.Interrupted)
	})
}

// kill is what kill -9 leaves: the store as it was, and no service.
func TestKilledAtAnyMomentEndsOnce(t *testing.T) {
	for _, state := range []build.State{build.Queued, build.Running} {
		for _, origin := range []build.Origin{build.OriginAPI, build.OriginGateway} {
			for _, attempts := range []int{1, 2} {
				store := newMemory()
				rec := build.Record{
					ID: "k", Project: "web", State: state, Origin: origin, Attempt: 1, MaxAttempts: attempts, Detached: true,
					RequestID: "r", Fingerprint: "f", Created: time.Now(),
				}
				if _, _, err := store.Create(t.Context(), rec, nil); err != nil {
					t.Fatal(err)
				}
				r := newRig(t, &pool{daemon: daemon(succeeds)}, store, 1)
				if err := r.Recover(t.Context()); err != nil {
					t.Fatal(err)
				}
				var events []seen
				if err := r.Watch(t.Context(), "k", 0, into(t, &events)); err != nil {
					t.Error(err)
				}
				want := build.Interrupted
				if origin == build.OriginAPI && (state == build.Queued || attempts > 1) {
					want = build.Succeeded
				}
				r.final(t, "k", want)
				outcomes := 0
				for _, e := range events {
					if e.Kind == "build.Outcome" {
						outcomes++
					}
				}
				if outcomes != 1 {
					t.Errorf("%s %s: %d outcomes", state, origin, outcomes)
				}
				r.stop(t)
			}
		}
	}
}
