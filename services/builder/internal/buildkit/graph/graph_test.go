package graph_test

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/graph"
)

func encoded(t testing.TB, op *pb.Op) []byte {
	t.Helper()
	raw, err := proto.Marshal(op)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func source(identifier string) *pb.Op {
	return &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: identifier}}}
}

func building(def *pb.Definition) *pb.Op {
	return &pb.Op{Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1, Def: def, Attrs: map[string]string{"a": "b"}}}}
}

// nested is a definition with an operation at the bottom of so many others.
func nested(t testing.TB, levels int, bottom *pb.Op) *pb.Definition {
	def := &pb.Definition{Def: [][]byte{encoded(t, bottom)}}
	for range levels {
		def = &pb.Definition{Def: [][]byte{encoded(t, building(def))}}
	}
	return def
}

// sources lists the identifiers that a walk visits.
func sources(t testing.TB, def *pb.Definition, limits graph.Limits) ([]string, error) {
	t.Helper()
	var all []string
	err := graph.Walk(def, limits, func(op *pb.Op) error {
		if op.GetBuild().GetDef() != nil {
			t.Error("a BuildOp was visited with its definition")
		}
		if id := op.GetSource().GetIdentifier(); id != "" {
			all = append(all, id)
		}
		return nil
	})
	return all, err
}

func TestWalk_VisitsNestedOperations(t *testing.T) {
	inner := &pb.Definition{Def: [][]byte{encoded(t, source("b")), encoded(t, building(nested(t, 2, source("c"))))}}
	def := &pb.Definition{Def: [][]byte{encoded(t, source("a")), encoded(t, building(inner)), encoded(t, source("d"))}}
	all, err := sources(t, def, graph.Default)
	if err != nil || !slices.Equal(all, []string{"a", "b", "c", "d"}) {
		t.Errorf("%v, %v", all, err)
	}
}

// The daemon merges the two BuildOps of such an operation, and would read both
// definitions.
func TestWalk_VisitsDefinitionsThatProtobufMerges(t *testing.T) {
	raw := append(encoded(t, building(nested(t, 0, source("first")))), encoded(t, building(nested(t, 0, source("second"))))...)
	all, err := sources(t, &pb.Definition{Def: [][]byte{raw}}, graph.Default)
	if err != nil || !slices.Equal(all, []string{"first", "second"}) {
		t.Errorf("%v, %v", all, err)
	}
}

func TestWalk_RefusesDeepGraphsWithinLittleMemory(t *testing.T) {
	for _, levels := range []int{100, 1000, 8000} {
		def := nested(t, levels, source("bottom"))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := graph.Walk(def, graph.Default, func(*pb.Op) error { return nil })
		runtime.ReadMemStats(&after)
		if fault.KindOf(err) != fault.ResourceExhausted {
			t.Errorf("%d levels: %v", levels, err)
		}
		if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
			t.Errorf("%d levels in %d bytes take %d bytes of memory", levels, proto.Size(def), used)
		}
	}
}

// What is decoded is at most about what came, however deep it lies.
func TestWalk_DecodesEachByteOnce(t *testing.T) {
	big := &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Attrs: map[string]string{"k": string(make([]byte, 4<<20))}}}}
	def := nested(t, 12, big)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := graph.Walk(def, graph.Default, func(*pb.Op) error { return nil })
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; err != nil || used > 9<<20 {
		t.Errorf("4 MiB at level 12 take %d bytes of memory, %v", used, err)
	}
}

func TestWalk_BoundsOperationsAndElements(t *testing.T) {
	many := &pb.Definition{Def: make([][]byte, 101)}
	if err := graph.Walk(many, graph.Limits{Depth: 1, Ops: 100, Elements: 100}, func(*pb.Op) error { return nil }); fault.KindOf(err) != fault.ResourceExhausted {
		t.Errorf("101 operations: %v", err)
	}
	inputs := &pb.Op{}
	for range 60 {
		inputs.Inputs = append(inputs.Inputs, &pb.Input{})
	}
	two := &pb.Definition{Def: [][]byte{encoded(t, inputs), encoded(t, inputs)}}
	if err := graph.Walk(two, graph.Limits{Depth: 1, Ops: 10, Elements: 100}, func(*pb.Op) error { return nil }); fault.KindOf(err) != fault.ResourceExhausted {
		t.Errorf("120 inputs: %v", err)
	}
}

func TestWalk_ReturnsErrors(t *testing.T) {
	own := errors.New("no")
	if err := graph.Walk(nested(t, 1, source("a")), graph.Default, func(*pb.Op) error { return own }); !errors.Is(err, own) {
		t.Errorf("of visit: %v", err)
	}
	for name, raw := range map[string][]byte{
		"a cut tag":              {0x80},
		"a cut nested operation": protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), []byte{0x1a, 0x7f}),
	} {
		err := graph.Walk(&pb.Definition{Def: [][]byte{raw}}, graph.Default, func(*pb.Op) error { return nil })
		if fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// buildkitd does not ask that strings are UTF-8: a path is whatever bytes the file system has.
func TestWalk_KeepsStringsThatAreNotUTF8(t *testing.T) {
	identifier := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), []byte("local://\xff"))
	raw := protowire.AppendBytes(protowire.AppendTag(nil, 3, protowire.BytesType), identifier)
	var got string
	err := graph.Walk(&pb.Definition{Def: [][]byte{raw}}, graph.Default, func(op *pb.Op) error {
		got = op.GetSource().GetIdentifier()
		return nil
	})
	if err != nil || got != "local://\xff" {
		t.Errorf("%q, %v", got, err)
	}
}

// FuzzWalk compares with decoding level by level, as buildkitd does.
func FuzzWalk(f *testing.F) {
	for i := range 3 {
		f.Add(encoded(f, building(nested(f, i, source(fmt.Sprint("s", i))))))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		def := &pb.Definition{Def: [][]byte{raw}}
		want, ok := naive(def, 1)
		got, err := sources(t, def, graph.Default)
		if !ok {
			return // it is refused, or nests more than a walk may
		}
		if err != nil {
			t.Fatalf("buildkitd reads it, and Walk says %v", err)
		}
		for _, id := range want {
			if !slices.Contains(got, id) {
				t.Errorf("buildkitd reads the source %q, and Walk visits %q", id, got)
			}
		}
	})
}

func naive(def *pb.Definition, depth int) (all []string, ok bool) {
	for _, raw := range def.GetDef() {
		var op pb.Op
		if depth > graph.Default.Depth || proto.Unmarshal(raw, &op) != nil {
			return nil, false
		}
		if id := op.GetSource().GetIdentifier(); id != "" {
			all = append(all, id)
		}
		inner, ok := naive(op.GetBuild().GetDef(), depth+1)
		if !ok {
			return nil, false
		}
		all = append(all, inner...)
	}
	return all, true
}
