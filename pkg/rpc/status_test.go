package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/rpc"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

func TestStatusOfEachKind(t *testing.T) {
	for kind, code := range map[fault.Kind]codes.Code{
		fault.Internal:           codes.Internal,
		fault.InvalidArgument:    codes.InvalidArgument,
		fault.NotFound:           codes.NotFound,
		fault.AlreadyExists:      codes.AlreadyExists,
		fault.PermissionDenied:   codes.PermissionDenied,
		fault.Unauthenticated:    codes.Unauthenticated,
		fault.FailedPrecondition: codes.FailedPrecondition,
		fault.ResourceExhausted:  codes.ResourceExhausted,
		fault.Unavailable:        codes.Unavailable,
		fault.DeadlineExceeded:   codes.DeadlineExceeded,
		fault.Canceled:           codes.Canceled,
		fault.Unimplemented:      codes.Unimplemented,
		fault.Aborted:            codes.Aborted,
		fault.OutOfRange:         codes.OutOfRange,
		fault.Kind(99):           codes.Internal,
	} {
		st := rpc.Status(fault.New(kind, "", "m", "r"))
		if st.Code() != code {
			t.Errorf("%s is %s, want %s", kind, st.Code(), code)
		}
		// A reason that the error does not name is one of the contract too.
		reason := detail[*errdetails.ErrorInfo](st).GetReason()
		if _, ok := errorsv1.Reason_value["REASON_"+reason]; !ok {
			t.Errorf("%s has the reason %q, which the contract does not have", kind, reason)
		}
	}
}

func TestStatus(t *testing.T) {
	secret := errors.New("password is hunter2")
	for name, test := range map[string]struct {
		err     error
		code    codes.Code
		message string
		reason  string
	}{
		"nil":            {err: nil, code: codes.OK},
		"unknown":        {err: secret, code: codes.Internal, message: "a fault in Kiln", reason: "INTERNAL"},
		"fault":          {err: fault.New(fault.NotFound, "SOURCE_NOT_FOUND", "no such image", "r"), code: codes.NotFound, message: "no such image", reason: "SOURCE_NOT_FOUND"},
		"wrapped fault":  {err: fmt.Errorf("x: %w", fault.New(fault.NotFound, "", "no such image", "r")), code: codes.NotFound, message: "no such image", reason: "NOT_FOUND"},
		"with a cause":   {err: fault.Wrap(errors.New("connection refused"), fault.Unavailable, "DAEMON_UNAVAILABLE", "no daemon", "r"), code: codes.Unavailable, message: "no daemon: connection refused", reason: "DAEMON_UNAVAILABLE"},
		"internal cause": {err: fault.Wrap(secret, fault.Internal, "", "the record cannot be written", "r"), code: codes.Internal, message: "the record cannot be written", reason: "INTERNAL"},
		"field":          {err: fault.Invalid("spec.target", "x", "no stage has this name", "name a stage"), code: codes.InvalidArgument, message: `invalid field "spec.target": no stage has this name (got "x"): name a stage`, reason: "INVALID_FIELD"},
		"field, no value": {err: fault.Invalid("spec.target", "", "no stage has this name", "name a stage"), code: codes.InvalidArgument,
			message: `invalid field "spec.target": no stage has this name: name a stage`, reason: "INVALID_FIELD"},
		"denied field": {err: &fault.Error{Kind: fault.PermissionDenied, Reason: "DIRECTORY_NOT_ALLOWED", Field: "spec.context.directory.path", Value: "/etc", Message: "outside", Remedy: "r"},
			code: codes.PermissionDenied, message: `invalid field "spec.context.directory.path": outside (got "/etc"): r`, reason: "DIRECTORY_NOT_ALLOWED"},
		"status":           {err: status.Error(codes.DataLoss, "as it is"), code: codes.DataLoss, message: "as it is"},
		"deadline":         {err: fmt.Errorf("x: %w", context.DeadlineExceeded), code: codes.DeadlineExceeded, message: "the call took longer than it may", reason: "TIMED_OUT"},
		"cancel":           {err: fmt.Errorf("x: %w", context.Canceled), code: codes.Canceled, message: "the call was cancelled", reason: "CANCELLED"},
		"panic":            {err: &lifecycle.PanicError{Value: secret, Stack: []byte("stack")}, code: codes.Internal, message: "a fault in Kiln", reason: "INTERNAL"},
		"joined":           {err: errors.Join(errors.New("y"), fault.New(fault.Aborted, "", "m", "r")), code: codes.Aborted, message: "m", reason: "INTERRUPTED"},
		"not UTF-8":        {err: fault.New(fault.NotFound, "", "no \xff", "r"), code: codes.NotFound, message: "no \uFFFD", reason: "NOT_FOUND"},
		"remedy not UTF-8": {err: fault.New(fault.NotFound, "", "m", "\xff"), code: codes.NotFound, message: "m", reason: "NOT_FOUND"},
	} {
		t.Run(name, func(t *testing.T) {
			st := rpc.Status(test.err)
			if st.Code() != test.code || st.Message() != test.message {
				t.Errorf("%s %q, want %s %q", st.Code(), st.Message(), test.code, test.message)
			}
			if got := detail[*errdetails.ErrorInfo](st).GetReason(); got != test.reason {
				t.Errorf("reason %q, want %q", got, test.reason)
			}
			if strings.Contains(st.Proto().String(), "hunter2") {
				t.Errorf("the cause leaks: %v", st)
			}
		})
	}
}

func TestStatusDetails(t *testing.T) {
	f := fault.New(fault.ResourceExhausted, "LIMIT_REACHED", "64 builds are running", "try again later")
	f.RetryAfter = 3 * time.Second
	f.Metadata = map[string]string{"limit": "64"}
	st := rpc.Status(f)
	if got := detail[*errdetails.RetryInfo](st).GetRetryDelay().AsDuration(); got != 3*time.Second {
		t.Errorf("retry after %s", got)
	}
	if got := detail[*errdetails.QuotaFailure](st).GetViolations(); len(got) != 1 || got[0].GetSubject() != "64" {
		t.Errorf("quota failure %v", got)
	}
	metadata := detail[*errdetails.ErrorInfo](st).GetMetadata()
	if metadata["limit"] != "64" || metadata["remedy"] != "try again later" {
		t.Errorf("metadata: %v", metadata)
	}
	if f.Metadata["remedy"] != "" {
		t.Error("the error itself was changed")
	}
	long := rpc.Status(fault.Invalid("f", strings.Repeat("v", 5000), strings.Repeat("é", 5000), "r"))
	if n := len(long.Message()); n > 2100 {
		t.Errorf("the message has %d bytes", n)
	}
	if _, err := long.WithDetails(); err != nil {
		t.Errorf("a clipped status is broken: %v", err)
	}
}
