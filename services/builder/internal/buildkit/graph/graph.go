// Package graph reads LLB graphs of callers within bounds.
//
// A pb.Definition holds operations as bytes, and a BuildOp among them holds another
// pb.Definition. Decoding them level by level copies the innermost operation once
// for each level: a message of 90 KB takes 350 MB. Walk cuts nested definitions
// out of the encoded bytes instead, so that each byte is decoded once.
package graph

import (
	"errors"
	"fmt"

	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/protocodec"
	"github.com/kilnbuild/kiln/pkg/protolimit"
)

// Limits bounds one walk.
type Limits struct {
	Depth    int // levels of definitions; a graph without nested ones has one
	Ops      int // operations, those of nested definitions included
	Elements int // messages, map entries and list items of all operations
}

// Default is far above what BuildKit's own clients send.
var Default = Limits{Depth: 16, Ops: 100_000, Elements: 1_000_000}

// Walk decodes the operations of a definition one by one and gives each to visit,
// those of nested definitions after the operation that holds them. The Def of a
// visited BuildOp is nil. Walk holds no more than one decoded operation.
//
// It returns the error of visit, a RESOURCE_EXHAUSTED fault when a limit is
// exceeded, or an INVALID_ARGUMENT fault when an operation cannot be decoded.
func Walk(def *pb.Definition, limits Limits, visit func(*pb.Op) error) error {
	w := walker{limits: limits, visit: visit}
	for _, raw := range def.GetDef() {
		if err := w.op(raw, 1); err != nil {
			return err
		}
	}
	return nil
}

type walker struct {
	limits        Limits
	visit         func(*pb.Op) error
	ops, elements int
}

// op visits one encoded operation and what is nested in it.
func (w *walker) op(raw []byte, depth int) error {
	if depth > w.limits.Depth {
		return over(fmt.Sprintf("the graph nests more than %d definitions", w.limits.Depth))
	}
	if w.ops++; w.ops > w.limits.Ops {
		return over(fmt.Sprintf("the graph has more than %d operations", w.limits.Ops))
	}
	shell, nested, err := split(raw)
	if err != nil {
		return unreadable(err)
	}
	var op pb.Op
	n, err := protolimit.Check(shell, op.ProtoReflect().Descriptor(),
		protolimit.Limits{Elements: w.limits.Elements - w.elements, Depth: protolimit.Default.Depth})
	if err != nil {
		return unreadable(err)
	}
	w.elements += n
	if err := protocodec.Unmarshal(shell, &op); err != nil {
		return unreadable(err)
	}
	if err := w.visit(&op); err != nil {
		return err
	}
	for _, def := range nested {
		if err := w.definition(def, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// definition visits the operations of an encoded pb.Definition.
func (w *walker) definition(raw []byte, depth int) error {
	return fields(raw, func(number protowire.Number, _, content []byte) error {
		if number != definitionDef || content == nil {
			return nil
		}
		return w.op(content, depth)
	})
}

// Field numbers of BuildKit's solver/pb/ops.proto.
const (
	opBuild       = protowire.Number(5) // Op.build
	buildDef      = protowire.Number(3) // BuildOp.def
	definitionDef = protowire.Number(1) // Definition.def
)

// split returns an encoded pb.Op without the definitions of its BuildOp, and those.
// Protobuf merges fields that occur several times, so all occurrences are cut out.
func split(raw []byte) (shell []byte, nested [][]byte, err error) {
	builds := false
	err = fields(raw, func(number protowire.Number, whole, content []byte) error {
		if number != opBuild || content == nil {
			shell = append(shell, whole...)
			return nil
		}
		builds = true
		var rest []byte
		if err := fields(content, func(number protowire.Number, whole, content []byte) error {
			if number == buildDef && content != nil {
				nested = append(nested, content)
				return nil
			}
			rest = append(rest, whole...)
			return nil
		}); err != nil {
			return err
		}
		shell = protowire.AppendBytes(protowire.AppendTag(shell, opBuild, protowire.BytesType), rest)
		return nil
	})
	if !builds {
		shell = raw
	}
	return shell, nested, err
}

// fields calls each for every field of an encoded message, with the whole field and,
// for a length-delimited one, its content, which is never nil.
func fields(raw []byte, each func(number protowire.Number, whole, content []byte) error) error {
	for len(raw) > 0 {
		number, wire, tag := protowire.ConsumeTag(raw)
		if tag < 0 {
			return protowire.ParseError(tag)
		}
		n := protowire.ConsumeFieldValue(number, wire, raw[tag:])
		if n < 0 {
			return protowire.ParseError(n)
		}
		whole := raw[:tag+n]
		raw = raw[tag+n:]
		var content []byte
		if wire == protowire.BytesType {
			content, _ = protowire.ConsumeBytes(whole[tag:])
			content = content[:len(content):len(content)]
		}
		if err := each(number, whole, content); err != nil {
			return err
		}
	}
	return nil
}

func over(message string) *fault.Error {
	return fault.New(fault.ResourceExhausted, "LIMIT_REACHED", message, "split the build into smaller ones")
}

// unreadable keeps a fault of a limit and wraps any other error.
func unreadable(err error) error {
	if own, ok := errors.AsType[*fault.Error](err); ok {
		return own
	}
	return fault.Wrap(err, fault.InvalidArgument, "INVALID_FIELD", "an operation of the graph cannot be decoded",
		"send what llb.Definition.ToPB returns")
}
