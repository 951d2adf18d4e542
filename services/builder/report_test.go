package builder

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// listener takes reports, or is away.
type listener struct {
	cachemanagerv1.CacheManagerServiceClient

	mu   sync.Mutex
	code codes.Code // of its answers
	told []string
}

func (l *listener) ReportBuild(_ context.Context, req *cachemanagerv1.ReportBuildRequest, _ ...grpc.CallOption) (*cachemanagerv1.ReportBuildResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.code != codes.OK {
		return nil, status.Error(l.code, "no")
	}
	l.told = append(l.told, req.GetBuildId())
	return &cachemanagerv1.ReportBuildResponse{}, nil
}

func (l *listener) answer(code codes.Code) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.code = code
}

func (l *listener) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.told)
}

var oneStep = []build.StepEvent{{Digest: "sha256:1", Name: "[1/1] RUN make", State: build.StepDone}}

func TestReport(t *testing.T) {
	long := strings.Repeat("ä", maxStepName)
	graph := []build.StepEvent{
		{Digest: "done", Name: "x" + long, State: build.StepDone, Start: time.Unix(1, 0), End: time.Unix(2, 0)},
		{Digest: "cached", State: build.StepCached}, {Digest: "failed", State: build.StepFailed}, {Digest: "running"},
	}
	req := report(build.Record{ID: "1", Project: "web", Tags: []string{"r/web:1"}, Steps: build.StepCounts{Total: 4, Cached: 1}}, graph, []string{"w"})
	if len(req.GetSteps()) != 2 || req.GetSteps()[0].GetDigest() != "done" || req.GetSteps()[0].GetCached() || !req.GetSteps()[1].GetCached() ||
		req.GetSteps()[1].GetStartTime() != nil || req.GetTotalSteps() != 4 || req.GetCachedSteps() != 1 || req.GetImages()[0] != "r/web:1" {
		t.Errorf("%v", req)
	}
	if name := req.GetSteps()[0].GetName(); len(name) > maxStepName || !utf8.ValidString(name) || len(name) < maxStepName-4 {
		t.Errorf("a name of %d bytes", len(name))
	}
}

// A cache manager that is away is told when it is back; what it does not take is not
// offered again; and who stops says the last.
func TestReporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &listener{code: codes.Unavailable}
		r := newReporter(l, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- r.run(ctx) }()
		add := func(id string) { r.add(build.Record{ID: id}, oneStep, []string{"w"}) }
		add("1")
		add("2")
		time.Sleep(time.Minute)
		if told := l.all(); len(told) > 0 {
			t.Errorf("%v", told)
		}
		l.answer(codes.OK)
		time.Sleep(time.Minute)
		if told := l.all(); !slices.Equal(told, []string{"1", "2"}) {
			t.Errorf("%v", told)
		}
		l.answer(codes.InvalidArgument)
		add("3")
		time.Sleep(time.Minute)
		l.answer(codes.OK)
		time.Sleep(time.Minute)
		l.answer(codes.Unavailable)
		add("4")
		synctest.Wait()
		add("5")
		l.answer(codes.OK)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		told := l.all()
		slices.Sort(told)
		if !slices.Equal(told, []string{"1", "2", "4", "5"}) {
			t.Errorf("%v", told)
		}
	})
}

// Nobody waits for the reports, and their number is bounded.
func TestReporterIsBounded(t *testing.T) {
	r := newReporter(&listener{}, slog.New(slog.DiscardHandler))
	for i := range reportsKept + 10 {
		r.add(build.Record{ID: fmt.Sprint(i)}, oneStep, []string{"w"})
	}
	if len(r.ends) != reportsKept {
		t.Errorf("%d are kept", len(r.ends))
	}
	r.add(build.Record{}, nil, []string{"w"}) // no daemon had it
	(*reporter)(nil).add(build.Record{}, oneStep, nil)
}
