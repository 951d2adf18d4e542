package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc/health"
	healthgrpc "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

const (
	// checkTimeout bounds one check of a dependency.
	checkTimeout = 5 * time.Second
	// retryEvery is the longest pause between checks while one fails, so that
	// a service is ready soon after what it needs.
	retryEvery = time.Second
)

var (
	errNotChecked = errors.New("not checked yet")
	errNoAnswer   = fmt.Errorf("no answer within %s", checkTimeout)
)

// readiness is what health says: NOT_SERVING before Run, while a dependency
// fails, and from the moment the server is told to stop.
type readiness struct {
	log      *slog.Logger
	health   *health.Server
	draining chan struct{}

	mu       sync.Mutex
	services []string
	deps     []*dependency
	stopped  bool
	serving  bool
}

// dependency is something that the service needs. Its error is guarded by
// readiness.mu.
type dependency struct {
	name  string
	every time.Duration
	check func(context.Context) error
	err   error
}

func newReadiness(log *slog.Logger) *readiness {
	return &readiness{log: log, health: newHealth(), draining: make(chan struct{}), services: []string{""}}
}

func (r *readiness) add(service string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.services = append(r.services, service)
	r.health.SetServingStatus(service, healthgrpc.HealthCheckResponse_NOT_SERVING)
}

func (r *readiness) depend(name string, every time.Duration, check func(context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if every <= 0 {
		every = retryEvery
	}
	r.deps = append(r.deps, &dependency{name: name, every: every, check: check, err: errNotChecked})
}

// tasks are the checks, and one that starts things.
func (r *readiness) tasks() []lifecycle.Task {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.publish()
	tasks := make([]lifecycle.Task, len(r.deps))
	for i, dep := range r.deps {
		tasks[i] = lifecycle.Task{Name: "check of " + dep.name, Run: func(ctx context.Context) error {
			return r.watch(ctx, dep)
		}}
	}
	return tasks
}

// watch checks one dependency until ctx ends.
func (r *readiness) watch(ctx context.Context, dep *dependency) error {
	for {
		pause := dep.every
		if err := r.once(ctx, dep); err != nil {
			pause = min(pause, retryEvery)
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
	}
}

// once checks one time and records the outcome. A check that does not heed its
// context is a failure too, recorded in time, and not started again before it
// has returned.
func (r *readiness) once(ctx context.Context, dep *dependency) error {
	bounded, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	var err error
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		err = lifecycle.Protect(bounded, dep.check)
	}()
	select {
	case <-returned:
		if err != nil && bounded.Err() != nil {
			err = errNoAnswer
		}
		r.record(ctx, dep, err)
		return err
	case <-bounded.Done():
		r.record(ctx, dep, errNoAnswer)
	}
	select {
	case <-returned:
	case <-ctx.Done():
	}
	return errNoAnswer
}

// record remembers the outcome of a check, unless that ended because all ends.
func (r *readiness) record(ctx context.Context, dep *dependency, err error) {
	if ctx.Err() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	was := dep.err
	dep.err = err
	switch {
	case err == nil && was != nil:
		r.log.InfoContext(ctx, "dependency answers", "dependency", dep.name)
	case err != nil && (was == nil || errors.Is(was, errNotChecked)):
		r.log.WarnContext(ctx, "dependency does not answer", "dependency", dep.name, "error", err)
	}
	r.publish()
}

// publish tells the health service. The caller holds mu.
func (r *readiness) publish() {
	r.serving = !r.stopped
	for _, dep := range r.deps {
		r.serving = r.serving && dep.err == nil
	}
	state := healthgrpc.HealthCheckResponse_NOT_SERVING
	if r.serving {
		state = healthgrpc.HealthCheckResponse_SERVING
	}
	for _, service := range r.services {
		r.health.SetServingStatus(service, state)
	}
}

// measure makes the gauge of the dependencies.
func (r *readiness) measure(provider metric.MeterProvider) error {
	meter := provider.Meter("github.com/kilnbuild/kiln/pkg/rpc")
	_, err := meter.Int64ObservableGauge("kiln.dependency.up", metric.WithUnit("{dependency}"),
		metric.WithDescription("1 for a dependency that answered its last check, 0 for one that did not"),
		metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, dep := range r.deps {
				up := int64(1)
				if dep.err != nil {
					up = 0
				}
				o.Observe(up, metric.WithAttributes(attribute.String("dependency", dep.name)))
			}
			return nil
		}))
	if err != nil {
		return fmt.Errorf("making a metric: %w", err)
	}
	return nil
}

// drain turns health to NOT_SERVING for good.
func (r *readiness) drain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return
	}
	r.stopped, r.serving = true, false
	r.health.Shutdown()
	close(r.draining)
}

// answer is /readyz: 200 when serving, else 503, and a line per dependency.
func (r *readiness) answer(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	state := "ready"
	if !r.serving {
		state = "not ready"
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, _ = fmt.Fprintln(w, state)
	if r.stopped {
		_, _ = fmt.Fprintln(w, "shutting down")
	}
	for _, dep := range r.deps {
		if dep.err != nil {
			_, _ = fmt.Fprintf(w, "%s: %v\n", dep.name, dep.err)
		} else {
			_, _ = fmt.Fprintf(w, "%s: ok\n", dep.name)
		}
	}
}
