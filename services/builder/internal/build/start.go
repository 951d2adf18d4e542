package build

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/kilnbuild/kiln/pkg/failpoint"
	"github.com/kilnbuild/kiln/pkg/fault"
)

// Submission is a build that is asked for.
type Submission struct {
	Spec Spec
	// Request is the request as it is stored: without secrets.
	Request []byte
	// Bytes is about what Spec holds in memory.
	Bytes int64
	// Fingerprint is the same for the same requests only.
	Fingerprint string
	// RequestID makes the build the same one for all that name it in its project.
	RequestID string
	// Detached builds go on without their caller.
	Detached bool
	// RetryOf is the id of the build that this one retries.
	RetryOf string
	Caller  Caller
}

// Places where a test kills the process.
const (
	failCreated  failpoint.Name = "build.created"
	failAdmitted failpoint.Name = "build.admitted"
	failSolving  failpoint.Name = "build.solving"
	failSolved   failpoint.Name = "build.solved"
	failOutcome  failpoint.Name = "build.outcome"
	failTold     failpoint.Name = "build.told"
	failRecover  failpoint.Name = "build.recover"
)

// Start takes a build, or finds the one that has its request id. The build runs
// on by itself; what is returned is its record as it was taken. Errors: those of
// Daemon.Accept, UNAVAILABLE without a daemon, RESOURCE_EXHAUSTED when too many
// wait, ALREADY_EXISTS when the request id belongs to another request.
func (s *Service) Start(ctx context.Context, sub Submission) (Record, error) {
	rec, _, err := s.start(ctx, sub)
	return rec, err
}

func (s *Service) start(ctx context.Context, sub Submission) (Record, *live, error) {
	done, err := s.begin()
	if err != nil {
		return Record{}, nil, err
	}
	defer done()
	if sub.RequestID != "" {
		rec, err := s.Store.Find(ctx, sub.Spec.Project, sub.RequestID)
		if !errors.Is(err, ErrUnknown) {
			return s.join(ctx, rec, sub, err)
		}
	}
	daemon, err := s.Pool.Pick(ctx)
	if err != nil {
		return Record{}, nil, err
	}
	release, err := daemon.Accept(ctx, sub.Spec)
	if err != nil {
		return Record{}, nil, err
	}
	taken := false
	defer func() {
		if !taken {
			release()
		}
	}()
	rec := recordOf(sub)
	rec.ID = s.NewID()
	if err := checkTags(rec.Tags); err != nil {
		return Record{}, nil, err
	}
	turn, err := s.Queue.Enter(Entry{Tenant: rec.Tenant(), Priority: rec.Priority, Bytes: sub.Bytes})
	if err != nil {
		return Record{}, nil, err
	}
	stored, created, err := s.create(ctx, rec, sub.Request)
	if err != nil || !created {
		turn.Release()
		return s.join(ctx, stored, sub, err)
	}
	failpoint.Hit(failCreated)
	s.Metrics.BuildStarted(ctx, rec.Origin)
	l := s.enliven(ctx, rec)
	if !sub.Detached {
		l.attach()
	}
	l.push(Started{BuildID: rec.ID, Daemon: daemon.Name(), TraceID: rec.TraceID})
	taken = true
	s.runs.Go(func() {
		defer release()
		s.run(l, sub.Spec, turn)
	})
	return rec, l, nil
}

func recordOf(sub Submission) Record {
	return Record{
		Project: sub.Spec.Project, State: Queued, Origin: OriginAPI, Created: time.Now(), Tags: sub.Spec.Tags(),
		TraceID: sub.Caller.TraceID, Caller: sub.Caller.Identity, RequestID: sub.RequestID, Fingerprint: sub.Fingerprint,
		RetryOf: sub.RetryOf, Attempt: 1, Detached: sub.Detached, HasSecrets: sub.Spec.HasSecrets(),
		MaxAttempts: max(1, sub.Spec.MaxAttempts), Priority: sub.Spec.Priority,
	}
}

// join answers with the build that has the request id already.
func (s *Service) join(ctx context.Context, rec Record, sub Submission, err error) (Record, *live, error) {
	if err != nil {
		return Record{}, nil, err
	}
	if rec.Fingerprint != sub.Fingerprint {
		clash := fault.New(fault.AlreadyExists, "ALREADY_EXISTS",
			fmt.Sprintf("request_id %q belongs to build %s, which has another request", sub.RequestID, rec.ID),
			"send the same request again to have the same build, or choose a new request_id for a new one")
		clash.Field, clash.Value = "request_id", sub.RequestID
		return Record{}, nil, clash
	}
	l, rec, err := s.lookUp(ctx, rec.ID)
	if l == nil {
		return rec, nil, err
	}
	if !sub.Detached {
		l.attach()
		return rec, l, nil
	}
	l.detach()
	// Before the answer, which promises that the build goes on.
	if err := l.settle(ctx); err != nil && !rec.State.Final() {
		return Record{}, nil, err
	}
	rec, err = s.Get(ctx, rec.ID)
	return rec, l, err
}

// Build takes a build as Start does, and watches it from its first event on.
// When ctx ends first, or emit gives an error, the build is cancelled; one with a
// request id only if nobody has come back for it comeBack later. A call that
// cancels its build returns when the solve has stopped.
func (s *Service) Build(ctx context.Context, sub Submission, emit func(Frame) error) error {
	rec, l, err := s.start(ctx, sub)
	if err != nil {
		return err
	}
	if l != nil {
		defer l.leave(ctx)
	}
	return s.Watch(ctx, rec.ID, 1, emit)
}

// comeBack is how long a build with a request id goes on when no call is left
// that asked for it.
const comeBack = 15 * time.Second
