package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
)

func TestErrors(t *testing.T) {
	cause := fmt.Errorf("reading: %w", io.ErrUnexpectedEOF)
	for name, test := range map[string]struct {
		err  error
		text string
		line string
		kind fault.Kind
	}{
		"new": {
			err:  fault.New(fault.NotFound, "NOT_FOUND", "no build with id b1", "list the builds"),
			text: "no build with id b1", line: "no build with id b1 (list the builds)", kind: fault.NotFound,
		},
		"wrap": {
			err:  fault.Wrap(cause, fault.Unavailable, "DAEMON_UNAVAILABLE", "the daemon does not answer", ""),
			text: "the daemon does not answer: reading: unexpected EOF", line: "the daemon does not answer: reading: unexpected EOF", kind: fault.Unavailable,
		},
		"invalid": {
			err:  fault.Invalid("spec.target", "x y", "no stage has this name", "name a stage"),
			text: "no stage has this name", line: "spec.target: no stage has this name (name a stage)", kind: fault.InvalidArgument,
		},
		"wrapped again": {
			err:  fmt.Errorf("building: %w", fault.New(fault.Aborted, "INTERRUPTED", "stopped", "build again")),
			text: "building: stopped", line: "building: stopped (build again)", kind: fault.Aborted,
		},
		"of others": {err: io.EOF, text: "EOF", line: "EOF", kind: fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			if test.err.Error() != test.text {
				t.Errorf("text %q, want %q", test.err.Error(), test.text)
			}
			if fault.Line(test.err) != test.line {
				t.Errorf("line %q, want %q", fault.Line(test.err), test.line)
			}
			if fault.KindOf(test.err) != test.kind {
				t.Errorf("kind %s, want %s", fault.KindOf(test.err), test.kind)
			}
		})
	}
	if err := fault.Wrap(cause, fault.Internal, "INTERNAL", "m", "r"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error("the cause is lost")
	}
}

func TestKindNames(t *testing.T) {
	for kind, want := range map[fault.Kind]string{fault.Internal: "Internal", fault.Aborted: "Aborted", -1: "Kind(-1)", 99: "Kind(99)"} {
		if kind.String() != want {
			t.Errorf("%d is %q, want %q", int(kind), kind.String(), want)
		}
	}
}
