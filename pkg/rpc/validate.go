package rpc

import (
	"errors"
	"fmt"

	"buf.build/go/protovalidate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// maxViolations bounds a BadRequest: statuses travel in headers.
const maxViolations = 16

// check refuses a message with fields that this server does not know, or with
// values outside the rules of the contract. What is no message passes.
func check(m any) error {
	msg, ok := m.(proto.Message)
	if !ok {
		return nil
	}
	if at := findUnknown(msg.ProtoReflect()); at != nil {
		return at.err()
	}
	err := protovalidate.GlobalValidator.Validate(msg)
	if err == nil {
		return nil
	}
	if invalid, ok := errors.AsType[*protovalidate.ValidationError](err); ok && len(invalid.Violations) > 0 {
		return refusal(invalid.Violations)
	}
	return fmt.Errorf("validating %s: %w", msg.ProtoReflect().Descriptor().FullName(), err)
}

// refusal is the status for violations of the contract's rules. Its message is
// the first of them.
func refusal(violations []*protovalidate.Violation) error {
	kept := violations[:min(len(violations), maxViolations)]
	listed := make([]*errdetails.BadRequest_FieldViolation, len(kept))
	for i, v := range kept {
		listed[i] = violationOf(pathOf(v), describe(v), "", remedyOf(v))
	}
	message := sentence(listed[0])
	if more := len(violations) - 1; more > 0 {
		message += fmt.Sprintf(" (and %d more)", more)
	}
	f := &fault.Error{Kind: fault.InvalidArgument, Reason: "INVALID_FIELD", Remedy: remedyOf(kept[0])}
	return build(f, message, listed).Err()
}

// warm compiles the rules of a service's requests, which would otherwise cost
// the first callers some milliseconds each.
func warm(service string) {
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		return // Not described by protobuf: nothing to compile.
	}
	desc, ok := found.(protoreflect.ServiceDescriptor)
	if !ok || !ours("/"+service) {
		return
	}
	for i := range desc.Methods().Len() {
		input, err := protoregistry.GlobalTypes.FindMessageByName(desc.Methods().Get(i).Input().FullName())
		if err == nil {
			_ = protovalidate.GlobalValidator.Validate(input.New().Interface())
		}
	}
}
