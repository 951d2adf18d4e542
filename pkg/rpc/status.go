package rpc

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// Domain is the domain of each ErrorInfo.
const Domain = "kiln.build"

// maxText bounds a text in a status, in bytes: statuses travel in headers.
const maxText = 2000

// Status maps an error to gRPC, the one place that does. A fault.Error becomes
// its code with ErrorInfo, and BadRequest, QuotaFailure or RetryInfo where they apply. A gRPC
// status passes through. The end of a context becomes CANCELLED or
// DEADLINE_EXCEEDED. All else becomes INTERNAL and says nothing of the cause.
// A nil error is OK.
func Status(err error) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	if _, panicked := errors.AsType[*lifecycle.PanicError](err); panicked {
		return internal()
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return fromFault(f)
	}
	if st, ok := status.FromError(err); ok {
		return st
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fromFault(fault.New(fault.DeadlineExceeded, "", "the call took longer than it may",
			"call with a longer deadline; the server's own bound is server.limits.unary_timeout"))
	case errors.Is(err, context.Canceled):
		return fromFault(fault.New(fault.Canceled, "", "the call was cancelled", "call again"))
	}
	return internal()
}

func internal() *status.Status {
	return fromFault(fault.New(fault.Internal, "", "a fault in Kiln", "report it, with the trace id; the service's log has the cause"))
}

func fromFault(f *fault.Error) *status.Status {
	kind := f.Kind
	message := f.Message
	if kind != fault.Internal {
		message = f.Error()
	}
	if f.Field != "" {
		violation := violationOf(f.Field, message, f.Value, f.Remedy)
		message = sentence(violation)
		if kind == fault.InvalidArgument {
			return build(f, message, []*errdetails.BadRequest_FieldViolation{violation})
		}
	}
	return build(f, message, nil)
}

// build puts a status together. ErrorInfo comes first.
func build(f *fault.Error, message string, violations []*errdetails.BadRequest_FieldViolation) *status.Status {
	code, reason := codeOf(f.Kind)
	if f.Reason != "" {
		reason = f.Reason
	}
	info := &errdetails.ErrorInfo{Domain: Domain, Reason: reason, Metadata: map[string]string{}}
	for key, value := range f.Metadata {
		info.Metadata[clip(key, maxShown)] = clip(value, maxText)
	}
	if f.Remedy != "" {
		info.Metadata["remedy"] = clip(f.Remedy, maxText)
	}
	details := []protoadapt.MessageV1{info}
	if len(violations) > 0 {
		details = append(details, &errdetails.BadRequest{FieldViolations: violations})
	}
	if limit := f.Metadata["limit"]; f.Kind == fault.ResourceExhausted && limit != "" {
		subject := limit // the limit of all, unless it is one of a tenant
		if tenant := f.Metadata["tenant"]; tenant != "" {
			subject = "tenant:" + tenant
		}
		details = append(details, &errdetails.QuotaFailure{Violations: []*errdetails.QuotaFailure_Violation{{
			Subject: clip(subject, maxShown), Description: clip(message, maxText),
		}}})
	}
	if f.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryAfter)})
	}
	st := status.New(code, clip(message, maxText))
	if full, err := st.WithDetails(details...); err == nil {
		return full
	}
	return st // The message alone still says it.
}

// unnamed is the reason of an error that should have named one.
const unnamed = "INTERNAL"

// codeOf is the code of a kind, and its reason unless the error names one.
func codeOf(kind fault.Kind) (codes.Code, string) {
	switch kind {
	case fault.InvalidArgument:
		return codes.InvalidArgument, "INVALID_FIELD"
	case fault.NotFound:
		return codes.NotFound, "NOT_FOUND"
	case fault.AlreadyExists:
		return codes.AlreadyExists, "ALREADY_EXISTS"
	case fault.PermissionDenied:
		return codes.PermissionDenied, "DENIED"
	case fault.Unauthenticated:
		return codes.Unauthenticated, "UNAUTHENTICATED"
	case fault.FailedPrecondition:
		return codes.FailedPrecondition, unnamed
	case fault.ResourceExhausted:
		return codes.ResourceExhausted, "LIMIT_REACHED"
	case fault.Unavailable:
		return codes.Unavailable, unnamed
	case fault.DeadlineExceeded:
		return codes.DeadlineExceeded, "TIMED_OUT"
	case fault.Canceled:
		return codes.Canceled, "CANCELLED"
	case fault.Unimplemented:
		return codes.Unimplemented, "UNIMPLEMENTED"
	case fault.Aborted:
		return codes.Aborted, "INTERRUPTED"
	case fault.OutOfRange:
		return codes.OutOfRange, "OUT_OF_RANGE"
	default:
		return codes.Internal, unnamed
	}
}

// withTraceID adds the id of the trace to the ErrorInfo, for a report.
func withTraceID(ctx context.Context, st *status.Status) *status.Status {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() || len(st.Details()) != 1 {
		return st
	}
	info, ok := st.Details()[0].(*errdetails.ErrorInfo)
	if !ok || info.GetDomain() != Domain {
		return st
	}
	if info.Metadata == nil {
		info.Metadata = map[string]string{}
	}
	info.Metadata["trace_id"] = span.TraceID().String()
	full, err := status.New(st.Code(), st.Message()).WithDetails(info)
	if err != nil {
		return st
	}
	return full
}
