package client_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// starts answers StartBuild with errors first, then with a record, and notes the
// request ids.
type starts struct {
	errs []error
	mu   sync.Mutex
	ids  []string
}

func (s *starts) StartBuild(_ context.Context, req *builderv1.StartBuildRequest) (*builderv1.StartBuildResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids = append(s.ids, req.GetRequestId())
	if n := len(s.ids); n <= len(s.errs) {
		return nil, s.errs[n-1]
	}
	return &builderv1.StartBuildResponse{Build: &builderv1.BuildRecord{Id: "b1", RequestId: req.GetRequestId()}}, nil
}

// A call that is made again names the same build.
func TestStartTriesAgainWithTheSameID(t *testing.T) {
	s := &starts{errs: []error{
		kilnError(t, codes.Unavailable, "DAEMON_UNAVAILABLE", "", 0),
		kilnError(t, codes.ResourceExhausted, "LIMIT_REACHED", "", 10*time.Millisecond),
		status.Error(codes.Internal, "stream terminated by RST_STREAM"),
	}}
	c, _ := dial(t, &script{startBuild: s.StartBuild})
	for _, id := range []string{"", "mine"} {
		s.ids = nil
		var opts []client.BuildOption
		if id != "" {
			opts = append(opts, client.RequestID(id))
		}
		rec, err := c.Start(t.Context(), &builderv1.BuildSpec{}, opts...)
		if err != nil || rec.GetId() != "b1" {
			t.Fatalf("%v, %v", rec, err)
		}
		if len(s.ids) != 4 || len(slices.Compact(slices.Clone(s.ids))) != 1 || s.ids[0] == "" || (id != "" && s.ids[0] != id) {
			t.Errorf("request ids %q, want four times the same (%q)", s.ids, id)
		}
	}
}

// What does not pass is told at once, as it came.
func TestStartErrorsThatDoNotPass(t *testing.T) {
	for _, err := range []error{
		kilnError(t, codes.InvalidArgument, "INVALID_FIELD", "mend it", 0),
		kilnError(t, codes.ResourceExhausted, "LIMIT_REACHED", "", 0),
		kilnError(t, codes.Internal, "INTERNAL", "", 0),
		kilnError(t, codes.AlreadyExists, "ALREADY_EXISTS", "", 0),
		status.Error(codes.Unimplemented, "unknown service"),
	} {
		s := &starts{errs: []error{err}}
		c, _ := dial(t, &script{startBuild: s.StartBuild})
		_, got := c.Start(t.Context(), &builderv1.BuildSpec{})
		if status.Code(got) != status.Code(err) || len(s.ids) != 1 || client.Reason(got) != client.Reason(err) {
			t.Errorf("%v: got %v after %d calls", err, got, len(s.ids))
		}
	}
	s := &starts{errs: []error{kilnError(t, codes.InvalidArgument, "INVALID_FIELD", "mend it", 0)}}
	c, _ := dial(t, &script{startBuild: s.StartBuild})
	if _, err := c.Start(t.Context(), nil); client.Reason(err) != "INVALID_FIELD" || client.Remedy(err) != "mend it" {
		t.Errorf("reason %q, remedy %q", client.Reason(err), client.Remedy(err))
	}
}

// Patience ends, and so does the context: nothing is tried for ever.
func TestStartEnds(t *testing.T) {
	nobody := connect(t, "127.0.0.1:1", client.WithPatience(300*time.Millisecond))
	if _, err := nobody.Start(t.Context(), nil); status.Code(err) != codes.Unavailable {
		t.Errorf("no builder: %v", err)
	}
	c, _ := dial(t, &script{startBuild: func(context.Context, *builderv1.StartBuildRequest) (*builderv1.StartBuildResponse, error) {
		return nil, kilnError(t, codes.ResourceExhausted, "LIMIT_REACHED", "", 20*time.Second)
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Start(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a full queue: %v", err)
	}
	impatient, _ := dial(t, &script{startBuild: (&starts{errs: []error{kilnError(t, codes.ResourceExhausted, "LIMIT_REACHED", "", time.Minute)}}).StartBuild}, client.WithPatience(time.Second))
	if _, err := impatient.Start(t.Context(), nil); client.RetryAfter(err) != time.Minute {
		t.Errorf("a queue that is full for longer than the patience: %v", err)
	}
}

// endless is a build that runs until it is cancelled.
type endless struct {
	*script
	cancelled chan string
}

func newEndless() *endless {
	e := &endless{cancelled: make(chan string, 10)}
	e.script = &script{
		startBuild: record("b1"),
		watchBuild: func(_ *builderv1.WatchBuildRequest, stream builderv1.BuilderService_WatchBuildServer) error {
			if err := stream.Send(&builderv1.WatchBuildResponse{Event: logEvent(1, "first")}); err != nil {
				return err
			}
			<-stream.Context().Done()
			return stream.Context().Err()
		},
		cancelBuild: func(_ context.Context, req *builderv1.CancelBuildRequest) (*builderv1.CancelBuildResponse, error) {
			e.cancelled <- req.GetBuildId()
			return &builderv1.CancelBuildResponse{}, nil
		},
	}
	return e
}

// A build that nobody waits for any more is cancelled, unless it was detached.
func TestBuildIsCancelledWithItsCaller(t *testing.T) {
	stop := errors.New("stop")
	tests := map[string]struct {
		opts []client.BuildOption
		fn   func(cancel func()) error
		want error
	}{
		"its context ends":          {fn: func(cancel func()) error { cancel(); return nil }, want: context.Canceled},
		"its function fails":        {fn: func(func()) error { return stop }, want: stop},
		"detached, and it ends":     {opts: []client.BuildOption{client.Detach()}, fn: func(cancel func()) error { cancel(); return nil }, want: context.Canceled},
		"detached, and it has ends": {opts: []client.BuildOption{client.Detach()}, fn: func(func()) error { return stop }, want: stop},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			e := newEndless()
			c, _ := dial(t, e.script)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out, err := c.Build(ctx, &builderv1.BuildSpec{}, func(*builderv1.BuildEvent) error { return test.fn(cancel) }, test.opts...)
			if out != nil || !errors.Is(err, test.want) {
				t.Errorf("%v, %v", out, err)
			}
			if got, want := len(e.cancelled), 1-len(test.opts); got != want {
				t.Errorf("cancelled %d times, want %d", got, want)
			}
		})
	}
}

// A context that ends while the builder has not yet said which build it has
// started leaves no build behind.
func TestBuildIsCancelledWhileItStarts(t *testing.T) {
	e := newEndless()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e.startBuild = func(ctx context.Context, req *builderv1.StartBuildRequest) (*builderv1.StartBuildResponse, error) {
		cancel()
		return record("b1")(ctx, req)
	}
	c, _ := dial(t, e.script)
	if _, err := c.Build(ctx, &builderv1.BuildSpec{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	select {
	case id := <-e.cancelled:
		if id != "b1" {
			t.Errorf("cancelled %q", id)
		}
	default:
		t.Error("the build goes on")
	}
}

// A retry is made again under one id, and brings its secrets each time.
func TestRetry(t *testing.T) {
	var requests []*builderv1.RetryBuildRequest
	c, _ := dial(t, &script{retryBuild: func(_ context.Context, req *builderv1.RetryBuildRequest) (*builderv1.RetryBuildResponse, error) {
		requests = append(requests, req)
		if len(requests) < 3 {
			return nil, status.Error(codes.Unavailable, "shutting down")
		}
		return &builderv1.RetryBuildResponse{Build: &builderv1.BuildRecord{Id: "b2", RetryOf: req.GetBuildId()}}, nil
	}})
	rec, err := c.Retry(t.Context(), &builderv1.RetryBuildRequest{BuildId: "b1", Secrets: []*builderv1.Secret{{Id: "s"}}})
	if err != nil || rec.GetRetryOf() != "b1" {
		t.Fatalf("%v, %v", rec, err)
	}
	for _, req := range requests {
		if req.GetRequestId() == "" || req.GetRequestId() != requests[0].GetRequestId() || len(req.GetSecrets()) != 1 {
			t.Errorf("%v", req)
		}
	}
}
