package pool_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/pool"
)

// member answers, fails, or hangs, as it is told.
type member struct {
	mu    sync.Mutex
	err   error
	hangs bool
	asked int
}

func (*member) Name() string    { return "d1" }
func (*member) Address() string { return "unix:///d1.sock" }
func (m *member) Check(ctx context.Context) (pool.Info, error) {
	m.mu.Lock()
	m.asked++
	err, hangs := m.err, m.hangs
	m.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return pool.Info{}, ctx.Err()
	}
	return pool.Info{Version: "v1"}, err
}

func (m *member) set(err error, hangs bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err, m.hangs = err, hangs
}

// run starts the pool's checks and returns what stops them.
func run(t *testing.T, p *pool.Pool[*member]) func() {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestPickFollowsTheDaemon(t *testing.T) {
	for name, broken := range map[string]func(*member){
		"it refuses": func(m *member) { m.set(errors.New("connection refused"), false) },
		"it hangs":   func(m *member) { m.set(nil, true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &member{}
				p := pool.New(m, slog.New(slog.DiscardHandler))
				defer run(t, p)()
				if _, err := p.Pick(t.Context()); err != nil {
					t.Fatal(err)
				}
				broken(m)
				time.Sleep(12 * time.Second) // until it is unreachable
				start := time.Now()
				_, err := p.Pick(t.Context())
				var refused *fault.Error
				if !errors.As(err, &refused) || refused.Kind != fault.Unavailable || refused.Remedy == "" {
					t.Fatalf("err = %v, want UNAVAILABLE with a remedy", err)
				}
				if took := time.Since(start); took > 4*time.Second {
					t.Errorf("said so after %v", took)
				}
				if since, err := p.Health("d1"); err == nil || since.IsZero() {
					t.Errorf("health: since %v, %v", since, err)
				}
				if p.Ready(t.Context()) == nil {
					t.Error("ready without a daemon")
				}
				m.set(nil, false)
				time.Sleep(6 * time.Second) // until no asking from before is under way
				if _, err := p.Pick(t.Context()); err != nil {
					t.Errorf("it is back, and: %v", err)
				}
				if _, err := p.Health("d1"); err != nil {
					t.Errorf("it is back, and its health: %v", err)
				}
			})
		})
	}
}

// One missed check, or a restart within seconds, ends nothing: not the health of builds that
// have not begun, not that of the builder, and a build that wants the daemon waits for it.
func TestPool_OneMissedCheckIsNotAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &member{}
		p := pool.New(m, slog.New(slog.DiscardHandler))
		defer run(t, p)()
		m.set(errors.New("connection refused"), false)
		time.Sleep(3 * time.Second)
		if p.Statuses()[0].Missed != 1 {
			t.Fatalf("%d checks missed, want 1", p.Statuses()[0].Missed)
		}
		if _, err := p.Health("d1"); err != nil {
			t.Errorf("health after one missed check: %v", err)
		}
		if err := p.Ready(t.Context()); err != nil {
			t.Errorf("not ready after one missed check: %v", err)
		}
		time.AfterFunc(1500*time.Millisecond, func() { m.set(nil, false) })
		if _, err := p.Pick(t.Context()); err != nil {
			t.Errorf("a build that came meanwhile: %v", err)
		}
	})
}

// A member that never answered is not ready, and builds are told so within seconds.
func TestPool_MemberThatNeverAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &member{err: errors.New("no such file")}
		p := pool.New(m, slog.New(slog.DiscardHandler))
		defer run(t, p)()
		if p.Ready(t.Context()) == nil {
			t.Error("ready without an answer")
		}
		start := time.Now()
		if _, err := p.Pick(t.Context()); fault.KindOf(err) != fault.Unavailable || time.Since(start) > 6*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// A fresh answer is used again: builds in a row must not each wait for one.
func TestPickAsksSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &member{}
		p := pool.New(m, slog.New(slog.DiscardHandler))
		defer run(t, p)()
		for range 100 {
			if _, err := p.Pick(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if m.asked != 1 {
			t.Errorf("asked %d times", m.asked)
		}
	})
}

// A caller that goes away neither waits on nor ends the asking of the others.
func TestPickShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &member{hangs: true}
		p := pool.New(m, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		patient := make(chan error)
		go func() {
			_, err := p.Pick(t.Context())
			patient <- err
		}()
		if _, err := p.Pick(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("err = %v", err)
		}
		if err := <-patient; fault.KindOf(err) != fault.Unavailable {
			t.Errorf("the one that stayed: %v", err)
		}
		if m.asked != 2 { // until it is unreachable, by both together
			t.Errorf("asked %d times", m.asked)
		}
	})
}

// Calls that are passed on do not ask, as long as the checks go well.
func TestCurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &member{}
		p := pool.New(m, slog.New(slog.DiscardHandler))
		for range 3 {
			if _, err := p.Current(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
		if m.asked != 1 {
			t.Errorf("asked %d times", m.asked)
		}
	})
}
