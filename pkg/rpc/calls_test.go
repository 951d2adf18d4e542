package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

func inlineBuild(edit func(*builderv1.BuildSpec)) *builderv1.BuildRequest {
	spec := &builderv1.BuildSpec{
		Context:    &builderv1.Context{Kind: &builderv1.Context_Inline{Inline: &builderv1.InlineContext{}}},
		Dockerfile: &builderv1.Dockerfile{Source: &builderv1.Dockerfile_Inline{Inline: "FROM scratch"}},
	}
	if edit != nil {
		edit(spec)
	}
	return &builderv1.BuildRequest{Spec: spec}
}

func TestInvalidFieldsAreRefused(t *testing.T) {
	r := start(t, rigOptions{impl: &builds{
		get: func(context.Context, *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
			return nil, errors.New("the handler ran")
		},
		build: func(*builderv1.BuildRequest, grpc.ServerStreamingServer[builderv1.BuildResponse]) error {
			return errors.New("the handler ran")
		},
	}})
	build := func(edit func(*builderv1.BuildSpec)) func(context.Context) error {
		return func(ctx context.Context) error { return r.buildErr(ctx, inlineBuild(edit)) }
	}
	for name, test := range map[string]struct {
		call    func(context.Context) error
		field   string
		message string
		absent  string
	}{
		"too long": {
			call: build(func(s *builderv1.BuildSpec) {
				s.Dockerfile.Source = &builderv1.Dockerfile_Inline{Inline: strings.Repeat("x", 1048577)}
			}),
			field:   "spec.dockerfile.inline",
			message: `invalid field "spec.dockerfile.inline": value length must be at most 1048576 characters (got 1048577): send a shorter value`,
		},
		"missing": {
			call: func(ctx context.Context) error {
				_, err := r.client.GetBuild(ctx, &builderv1.GetBuildRequest{})
				return err
			},
			field:   "build_id",
			message: `invalid field "build_id": value length must be at least 1 characters (got 0): send a longer value`,
		},
		"oneof not set": {
			call:    build(func(s *builderv1.BuildSpec) { s.Context.Kind = nil }),
			field:   "spec.context.kind",
			message: `invalid field "spec.context.kind": exactly one field is required in oneof: set this field`,
		},
		"pattern": {
			call:    build(func(s *builderv1.BuildSpec) { s.Project = "Upper Case" }),
			field:   "spec.project",
			message: `(got "Upper Case"): see kiln.builder.v1.BuildSpec.project in the API reference`,
		},
		"enum": {
			call:    build(func(s *builderv1.BuildSpec) { s.Priority = 99 }),
			field:   "spec.priority",
			message: `value must be one of the defined enum values (got 99): use a value that the contract defines`,
		},
		"number": {
			call:    build(func(s *builderv1.BuildSpec) { s.ShmSizeBytes = -1 }),
			field:   "spec.shm_size_bytes",
			message: "(got -1)",
		},
		"duration": {
			call:    build(func(s *builderv1.BuildSpec) { s.Timeout = durationpb.New(-time.Second) }),
			field:   "spec.timeout",
			message: "(got -1s)",
		},
		"list": {
			call:    build(func(s *builderv1.BuildSpec) { s.Platforms = []string{"linux/amd64", "linux/amd64"} }),
			field:   "spec.platforms",
			message: "send each item once",
		},
		"map key": {
			call:    build(func(s *builderv1.BuildSpec) { s.BuildArgs = map[string]string{"a b": "secretive"} }),
			field:   `spec.build_args["a b"]`,
			message: "does not match regex pattern",
			absent:  "secretive",
		},
		"secret": {
			call: build(func(s *builderv1.BuildSpec) {
				s.Secrets = []*builderv1.Secret{{Id: "s", Value: []byte(strings.Repeat("hunter2", 80000))}}
			}),
			field:   "spec.secrets[0].value",
			message: "value length must be at most 512000 bytes: send a shorter value",
			absent:  "hunter2",
		},
	} {
		t.Run(name, func(t *testing.T) {
			st := refused(t, test.call(within(t)), codes.InvalidArgument, "INVALID_FIELD")
			if !strings.Contains(st.Message(), test.message) {
				t.Errorf("message %q lacks %q", st.Message(), test.message)
			}
			if test.absent != "" && (strings.Contains(st.String(), test.absent) || strings.Contains(r.log.String(), test.absent)) {
				t.Errorf("%q shows in %q or in the log", test.absent, st.String())
			}
			violations := detail[*errdetails.BadRequest](st).GetFieldViolations()
			if len(violations) != 1 || violations[0].GetField() != test.field {
				t.Fatalf("violations are %v, want field %s", violations, test.field)
			}
			if want := `invalid field "` + strings.ReplaceAll(test.field, `"`, `\"`) + `": ` + violations[0].GetDescription(); st.Message() != want {
				t.Errorf("message %q differs from the violation %q", st.Message(), want)
			}
		})
	}
}

func TestManyViolationsAreListedAndBounded(t *testing.T) {
	r := start(t, rigOptions{})
	req := inlineBuild(func(s *builderv1.BuildSpec) {
		s.Labels = map[string]string{}
		for i := range 30 {
			s.Labels[fmt.Sprintf("%d%s", i, strings.Repeat("x", 300))] = ""
		}
	})
	st := refused(t, r.buildErr(within(t), req), codes.InvalidArgument, "INVALID_FIELD")
	if n := len(detail[*errdetails.BadRequest](st).GetFieldViolations()); n != 16 {
		t.Errorf("%d violations are listed, want 16", n)
	}
	if !strings.HasSuffix(st.Message(), "(and 29 more)") {
		t.Errorf("the message does not count the others: %q", st.Message())
	}
}

func TestUnknownFieldsAreRefused(t *testing.T) {
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 7)
	r := start(t, rigOptions{})
	for name, test := range map[string]struct {
		req  func() *builderv1.BuildRequest
		path string
	}{
		"top": {path: "99", req: func() *builderv1.BuildRequest {
			req := inlineBuild(nil)
			req.ProtoReflect().SetUnknown(unknown)
			return req
		}},
		"nested": {path: "spec.dockerfile.99", req: func() *builderv1.BuildRequest {
			return inlineBuild(func(s *builderv1.BuildSpec) { s.Dockerfile.ProtoReflect().SetUnknown(unknown) })
		}},
		"list": {path: "spec.secrets[1].99", req: func() *builderv1.BuildRequest {
			return inlineBuild(func(s *builderv1.BuildSpec) {
				s.Secrets = []*builderv1.Secret{{Id: "a"}, {Id: "b"}}
				s.Secrets[1].ProtoReflect().SetUnknown(unknown)
			})
		}},
		"map": {path: `spec.named_contexts["base"].99`, req: func() *builderv1.BuildRequest {
			return inlineBuild(func(s *builderv1.BuildSpec) {
				other := &builderv1.Context{Kind: s.Context.Kind}
				other.ProtoReflect().SetUnknown(unknown)
				s.NamedContexts = map[string]*builderv1.Context{"base": other}
			})
		}},
		"oneof": {path: "spec.context.inline.99", req: func() *builderv1.BuildRequest {
			return inlineBuild(func(s *builderv1.BuildSpec) { s.Context.GetInline().ProtoReflect().SetUnknown(unknown) })
		}},
	} {
		t.Run(name, func(t *testing.T) {
			st := refused(t, r.buildErr(within(t), test.req()), codes.InvalidArgument, "UNKNOWN_FIELD")
			violations := detail[*errdetails.BadRequest](st).GetFieldViolations()
			if len(violations) != 1 || violations[0].GetField() != test.path {
				t.Fatalf("violations are %v, want field %s", violations, test.path)
			}
			if !strings.Contains(st.Message(), "number 99") || !strings.Contains(st.Message(), "remove the field") {
				t.Errorf("the message lacks the number or the remedy: %q", st.Message())
			}
		})
	}
	t.Run("unary", func(t *testing.T) {
		req := &builderv1.GetBuildRequest{BuildId: "b"}
		req.ProtoReflect().SetUnknown(unknown)
		_, err := r.client.GetBuild(within(t), req)
		refused(t, err, codes.InvalidArgument, "UNKNOWN_FIELD")
	})
}

func TestEachMessageOfAStreamIsChecked(t *testing.T) {
	received := 0
	r := start(t, rigOptions{impl: &builds{
		upload: func(stream grpc.ClientStreamingServer[builderv1.UploadContextRequest, builderv1.UploadContextResponse]) error {
			for {
				if _, err := stream.Recv(); err != nil {
					return err
				}
				received++
			}
		},
	}})
	stream, err := r.client.UploadContext(within(t))
	if err != nil {
		t.Fatal(err)
	}
	good := &builderv1.UploadContextRequest{Piece: &builderv1.UploadContextRequest_Header{Header: &builderv1.UploadHeader{Project: "web"}}}
	bad := &builderv1.UploadContextRequest{Piece: &builderv1.UploadContextRequest_Data{Data: make([]byte, 1048577)}}
	for _, m := range []*builderv1.UploadContextRequest{good, bad} {
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	_, err = stream.CloseAndRecv()
	refused(t, err, codes.InvalidArgument, "INVALID_FIELD")
	if received != 1 {
		t.Errorf("the handler got %d messages, want 1", received)
	}
}

func TestDeadlines(t *testing.T) {
	calls := 0
	var left time.Duration
	config := loopback()
	config.Limits = limitsConfig()
	config.Limits.UnaryTimeout = durationpb.New(2 * time.Second)
	r := start(t, rigOptions{config: config, impl: &builds{
		get: func(ctx context.Context, req *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
			calls++
			deadline, _ := ctx.Deadline()
			left = time.Until(deadline)
			if req.GetBuildId() == "slow" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &builderv1.GetBuildResponse{}, nil
		},
	}})
	get := func(id string, limit time.Duration) error {
		ctx := within(t)
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		_, err := r.client.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: id})
		return err
	}
	if err := get("warm", 0); err != nil {
		t.Fatal(err)
	}
	if left > 2*time.Second || left < time.Second {
		t.Errorf("a call without a deadline has %s, want the server's 2s", left)
	}
	if err := get("patient", time.Second); err != nil {
		t.Fatal(err)
	}
	if left > 980*time.Millisecond {
		t.Errorf("a call with 1s has %s: no time is kept back for the answer", left)
	}
	before := calls
	st := refused(t, get("hurried", 95*time.Millisecond), codes.DeadlineExceeded, "TIMED_OUT")
	if calls != before {
		t.Error("a call with less than 100ms left was served")
	}
	if !strings.Contains(st.Message(), "needs at least 100ms") {
		t.Errorf("message: %q", st.Message())
	}
	// The server's own answer, before the caller's clock ends the call.
	refused(t, get("slow", 300*time.Millisecond), codes.DeadlineExceeded, "TIMED_OUT")
}

func TestPanicsBecomeInternal(t *testing.T) {
	r := start(t, rigOptions{impl: &builds{
		get: func(context.Context, *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
			panic(fault.New(fault.NotFound, "NOT_FOUND", "secret innards", ""))
		},
		build: func(*builderv1.BuildRequest, grpc.ServerStreamingServer[builderv1.BuildResponse]) error {
			panic("secret innards")
		},
	}})
	_, unaryErr := r.client.GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "b"})
	streamErr := r.buildErr(within(t), inlineBuild(nil))
	for _, err := range []error{unaryErr, streamErr} {
		st := refused(t, err, codes.Internal, "INTERNAL")
		if text := st.Proto().String(); strings.Contains(text, "secret innards") || strings.Contains(text, ".go:") {
			t.Errorf("the cause leaks to the caller: %s", text)
		}
	}
	if log := r.log.String(); strings.Count(log, "secret innards") < 2 || !strings.Contains(log, "calls_test.go") {
		t.Errorf("the log lacks the panic or its stack: %s", log)
	}
}

func TestOwnAuthorizer(t *testing.T) {
	r := start(t, rigOptions{access: func(_ context.Context, method string, id auth.Identity) (auth.Grant, error) {
		if strings.HasSuffix(method, "/Build") {
			panic("a fault in the policy")
		}
		return auth.Grant{}, fault.New(fault.PermissionDenied, "DENIED", id.String()+" may not", "ask")
	}})
	_, err := r.client.GetBuild(within(t), &builderv1.GetBuildRequest{})
	st := refused(t, err, codes.PermissionDenied, "DENIED") // Before the request is looked at.
	if st.Message() != "anonymous may not" {
		t.Errorf("message: %q", st.Message())
	}
	// A policy that panics neither allows the call nor ends the server.
	refused(t, r.buildErr(within(t), inlineBuild(nil)), codes.Internal, "INTERNAL")
}

func TestRPCsThatAreNotServed(t *testing.T) {
	r := start(t, rigOptions{})
	_, err := r.client.ListDaemons(within(t), &builderv1.ListDaemonsRequest{})
	st := refused(t, err, codes.Unimplemented, "UNIMPLEMENTED")
	if !strings.Contains(st.Message(), "/kiln.builder.v1.BuilderService/ListDaemons") {
		t.Errorf("the message does not name the method: %q", st.Message())
	}
	for _, method := range []string{"/kiln.nothing.v1.Service/Call", "/other.Service/Call", "/kiln.builder.v1.BuilderService/Nothing"} {
		err := r.conn.Invoke(within(t), method, &builderv1.ListDaemonsRequest{}, &builderv1.ListDaemonsResponse{})
		refused(t, err, codes.Unimplemented, "UNIMPLEMENTED")
	}
	stream, err := r.client.WatchBuild(within(t), &builderv1.WatchBuildRequest{BuildId: "b"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	refused(t, err, codes.Unimplemented, "UNIMPLEMENTED")
}

func TestMessageLimit(t *testing.T) {
	config := loopback()
	config.Limits = limitsConfig()
	config.Limits.MaxMessageBytes = 64 << 10
	r := start(t, rigOptions{config: config})
	req := inlineBuild(func(s *builderv1.BuildSpec) { s.Definition = make([]byte, 70<<10) })
	if code := status.Code(r.buildErr(within(t), req)); code != codes.ResourceExhausted {
		t.Errorf("a message over the limit got %s, want ResourceExhausted", code)
	}
	req.Spec.Definition = make([]byte, 60<<10)
	if err := r.buildErr(within(t), req); status.Code(err) != codes.OK && err.Error() != "EOF" {
		t.Errorf("a message below the limit: %v", err)
	}
}

func TestLogOfCalls(t *testing.T) {
	r := start(t, rigOptions{impl: &builds{
		get: func(_ context.Context, req *builderv1.GetBuildRequest) (*builderv1.GetBuildResponse, error) {
			if req.GetBuildId() == "gone" {
				return nil, fault.New(fault.NotFound, "NOT_FOUND", "no such build", "list the builds")
			}
			return &builderv1.GetBuildResponse{}, nil
		},
	}})
	_, _ = r.client.GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "payload-in-request"})
	_, err := r.client.GetBuild(within(t), &builderv1.GetBuildRequest{BuildId: "gone"})
	refused(t, err, codes.NotFound, "NOT_FOUND")
	_ = r.buildErr(within(t), inlineBuild(func(s *builderv1.BuildSpec) { s.Project = "PAYLOAD" }))
	log := r.log.String()
	for _, want := range []string{
		`"level":"DEBUG","msg":"call","method":"/kiln.builder.v1.BuilderService/GetBuild","code":"OK","duration":`,
		`"identity":"anonymous"`,
		`"level":"WARN","msg":"call failed","method":"/kiln.builder.v1.BuilderService/GetBuild","code":"NotFound"`,
		`"reason":"NOT_FOUND","error":"no such build"`,
		`"reason":"INVALID_FIELD","field":"spec.project"`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s:\n%s", want, log)
		}
	}
	if strings.Contains(strings.ToLower(log), "payload") {
		t.Errorf("the log has a payload:\n%s", log)
	}
}
