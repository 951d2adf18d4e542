// Package fault holds the typed errors of Kiln's domains.
//
// A domain says what went wrong, in words and as a reason a program can read,
// and what to do about it. Package rpc turns that into a gRPC status; nothing
// here knows gRPC.
package fault

import (
	"errors"
	"strconv"
	"time"
)

// Kind is the class of an error. Each has one gRPC code; see rpc.Status.
type Kind int

// The kinds. The zero value is Internal: an error nobody classified is a fault
// of Kiln itself.
const (
	Internal           Kind = iota // A fault in Kiln. The caller sees Message only, never the cause.
	InvalidArgument                // The request is wrong, whatever the state of the system.
	NotFound                       // What the request names does not exist.
	AlreadyExists                  // What the request would make exists.
	PermissionDenied               // The caller may not do this.
	Unauthenticated                // The caller has no identity that is accepted.
	FailedPrecondition             // The system is not in the state that the request needs.
	ResourceExhausted              // A limit is reached.
	Unavailable                    // A part does not answer now; trying again may help.
	DeadlineExceeded               // It took longer than allowed.
	Canceled                       // The caller gave up.
	Unimplemented                  // Not served by this version.
	Aborted                        // Cut short by a conflict or a restart.
	OutOfRange                     // Beyond what there is, or no longer is.
)

// String is the name of the kind, for logs.
func (k Kind) String() string {
	names := [...]string{
		"Internal", "InvalidArgument", "NotFound", "AlreadyExists", "PermissionDenied", "Unauthenticated",
		"FailedPrecondition", "ResourceExhausted", "Unavailable", "DeadlineExceeded", "Canceled", "Unimplemented", "Aborted", "OutOfRange",
	}
	if k < 0 || int(k) >= len(names) {
		return "Kind(" + strconv.Itoa(int(k)) + ")"
	}
	return names[k]
}

// Error is an error of a domain.
type Error struct {
	// Kind is its class.
	Kind Kind
	// Reason is a value of kiln.errors.v1.Reason without "REASON_", such as
	// "NOT_FOUND". Empty: the usual reason of Kind.
	Reason string
	// Message says what is wrong, in lower case and without a full stop.
	Message string
	// Remedy says what to do about it, in one clause: "send a shorter name".
	Remedy string
	// Field is the path of the field of the request that is wrong, such as
	// "spec.context.directory". Empty when no field is.
	Field string
	// Value is what the field held, for the message. Never a secret.
	Value string
	// RetryAfter is how long to wait before trying again. 0: unknown.
	RetryAfter time.Duration
	// Metadata is further facts for programs. Never a secret.
	Metadata map[string]string
	// Err is the cause. It may be nil.
	Err error
}

// Error is Message, then the cause if there is one.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Unwrap is the cause.
func (e *Error) Unwrap() error { return e.Err }

// New makes an error without a cause.
func New(kind Kind, reason, message, remedy string) *Error {
	return &Error{Kind: kind, Reason: reason, Message: message, Remedy: remedy}
}

// Wrap makes an error with a cause.
func Wrap(err error, kind Kind, reason, message, remedy string) *Error {
	return &Error{Kind: kind, Reason: reason, Message: message, Remedy: remedy, Err: err}
}

// Invalid makes the error for a field of a request that is wrong. Value may be
// empty when it would tell nothing or must not be shown.
func Invalid(field, value, message, remedy string) *Error {
	return &Error{
		Kind: InvalidArgument, Reason: "INVALID_FIELD",
		Field: field, Value: value, Message: message, Remedy: remedy,
	}
}

// KindOf is the kind of the first Error in err's chain, and Internal when
// there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// ReasonOf is the reason of the first Error in err's chain, and empty when there is none.
func ReasonOf(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return ""
}

// Line is err for a person, on one line, with the field and the remedy where
// the chain names them: what a command prints.
func Line(err error) string {
	text := err.Error()
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return text
	}
	if e.Field != "" {
		text = e.Field + ": " + text
	}
	if e.Remedy != "" {
		text += " (" + e.Remedy + ")"
	}
	return text
}
