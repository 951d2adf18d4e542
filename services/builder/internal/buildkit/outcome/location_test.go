package outcome

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

func at7(line int32) *pb.Position { return &pb.Position{Line: line} }

// A client chooses the ranges of its source map: none of them breaks the report.
func TestFailureOf_ReadsEverySourceMap(t *testing.T) {
	text := []byte("1\n2\n3\n4\n5\n6\nseven\n8\n9\n" + strings.Repeat("x", 1<<20) + "\xff")
	for name, c := range map[string]struct {
		source *errdefs.Source
		want   *build.Location
		marked string
	}{
		"range without an end": {&errdefs.Source{Info: &pb.SourceInfo{Filename: "f", Data: text}, Ranges: []*pb.Range{{Start: at7(7)}}},
			&build.Location{File: "f", StartLine: 7, EndLine: 7}, "   7 | >>> seven\n"},
		"range without a start": {&errdefs.Source{Info: &pb.SourceInfo{Data: text}, Ranges: []*pb.Range{{End: at7(7)}, nil}}, nil, ""},
		"one of two lacks an end": {&errdefs.Source{Info: &pb.SourceInfo{Filename: "f", Data: text}, Ranges: []*pb.Range{
			{Start: at7(2), End: at7(3)}, {}, {Start: at7(7)}}}, &build.Location{File: "f", StartLine: 2, EndLine: 7}, "   3 | >>> 3\n"},
		"end before the start": {&errdefs.Source{Info: &pb.SourceInfo{Data: text}, Ranges: []*pb.Range{{Start: at7(7), End: at7(-3)}}},
			&build.Location{StartLine: 7, EndLine: 7}, ">>> seven"},
		"beyond the file":    {&errdefs.Source{Info: &pb.SourceInfo{Data: text}, Ranges: []*pb.Range{{Start: at7(1 << 30)}}}, &build.Location{StartLine: 1 << 30, EndLine: 1 << 30}, ""},
		"negative":           {&errdefs.Source{Info: &pb.SourceInfo{Data: text}, Ranges: []*pb.Range{{Start: at7(-5)}}}, &build.Location{}, ""},
		"a line of 1 MB":     {&errdefs.Source{Info: &pb.SourceInfo{Data: text}, Ranges: []*pb.Range{{Start: at7(10)}}}, &build.Location{StartLine: 10, EndLine: 10}, ">>> xxx"},
		"no text":            {&errdefs.Source{Ranges: []*pb.Range{{Start: at7(1)}}}, nil, ""},
		"nothing":            {nil, nil, ""},
		"name without UTF-8": {&errdefs.Source{Info: &pb.SourceInfo{Filename: "a\xff", Data: text}, Ranges: []*pb.Range{{Start: at7(1)}}}, &build.Location{File: "a\uFFFD", StartLine: 1, EndLine: 1}, ">>> 1"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := lifecycle.WithReporter(t.Context(), func(_ context.Context, p *lifecycle.PanicError) { t.Errorf("panic: %v", p.Value) })
			got := FailureOf(ctx, errdefs.WithSource(errors.New("process did not complete"), c.source), nil).Location
			if (got == nil) != (c.want == nil) {
				t.Fatalf("location %v, want %v", got, c.want)
			}
			if got == nil {
				return
			}
			if !strings.Contains(got.Snippet, c.marked) || c.marked == "" && got.Snippet != "" || len(got.Snippet) > 4096 {
				t.Errorf("snippet of %d bytes %.200q, want %q in it", len(got.Snippet), got.Snippet, c.marked)
			}
			if got.Snippet = ""; *got != *c.want {
				t.Errorf("location %+v, want %+v", got, c.want)
			}
		})
	}
}

// poisoned panics when its details are read, as code of others may on others' data.
type poisoned struct{ error }

func (poisoned) ToProto() grpcerrors.TypedErrorProto { panic("poison") }

// A panic in the reading of an error's details costs the details, not the failure.
func TestFailureOf_SurvivesAPanicInTheDetails(t *testing.T) {
	panics := 0
	ctx := lifecycle.WithReporter(t.Context(), func(_ context.Context, p *lifecycle.PanicError) {
		if panics++; p.Value != "poison" || !strings.Contains(string(p.Stack), "poisoned") {
			t.Errorf("reported %v at\n%s", p.Value, p.Stack)
		}
	})
	f := FailureOf(ctx, poisoned{errors.New("dockerfile parse error on line 3")}, nil)
	if panics != 1 || f.Reason != "DOCKERFILE_INVALID" || f.Class != build.User {
		t.Errorf("%d panics were reported, and the failure is %+v", panics, f)
	}
}

// The text of a panic is for the log; a build tells that it is a fault of Kiln.
func TestFailureOf_KeepsPanicsFromCallers(t *testing.T) {
	f := FailureOf(t.Context(), &lifecycle.PanicError{Value: "secret innards", Stack: []byte("stack")}, nil)
	if f.Reason != "INTERNAL" || f.Class != build.Infrastructure || strings.Contains(f.Message, "innards") {
		t.Errorf("a panic is told as %+v", f)
	}
}
