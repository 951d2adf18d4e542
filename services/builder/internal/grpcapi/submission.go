package grpcapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/rpc"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// submission makes a request into what the domain takes. What is stored of it,
// and what tells it from others, is without the secrets.
func (s *Server) submission(ctx context.Context, in *builderv1.BuildSpec, requestID string) (build.Submission, error) {
	if len(in.GetSecrets())+len(in.GetSshKeys()) > 0 && !rpc.SecureTransport(ctx) {
		insecure := fault.New(fault.FailedPrecondition, "INSECURE_TRANSPORT",
			"the request holds secrets, and it came in plain text over a network",
			"call the builder over TLS (server.tls of its configuration), or on its own host over loopback or a unix socket")
		insecure.Field = "spec.secrets"
		return build.Submission{}, insecure
	}
	spec, err := s.translate.Spec(in)
	if err != nil {
		return build.Submission{}, err
	}
	if err := ofProject(ctx, spec.Project); err != nil { // also before one with the same request_id is found
		return build.Submission{}, err
	}
	request, err := proto.MarshalOptions{Deterministic: true}.Marshal(withoutSecrets(in))
	if err != nil {
		return build.Submission{}, fmt.Errorf("encoding the request: %w", err)
	}
	sum := sha256.Sum256(request)
	return build.Submission{
		Spec: spec, Request: request, Fingerprint: hex.EncodeToString(sum[:]), RequestID: requestID, Caller: Caller(ctx), Bytes: int64(proto.Size(in)),
	}, nil
}

// withoutSecrets is a copy of a request that has the ids of its secrets only.
func withoutSecrets(in *builderv1.BuildSpec) *builderv1.BuildSpec {
	if len(in.GetSecrets())+len(in.GetSshKeys()) == 0 {
		return in
	}
	out := &builderv1.BuildSpec{}
	// Field by field, so that no copy of a secret is made that nobody clears.
	from, to := in.ProtoReflect(), out.ProtoReflect()
	fields := from.Descriptor().Fields()
	for i := range fields.Len() {
		switch f := fields.Get(i); f.Name() {
		case "secrets", "ssh_keys":
		default:
			if from.Has(f) {
				to.Set(f, from.Get(f))
			}
		}
	}
	for _, secret := range in.GetSecrets() {
		out.Secrets = append(out.Secrets, &builderv1.Secret{Id: secret.GetId()})
	}
	for _, key := range in.GetSshKeys() {
		out.SshKeys = append(out.SshKeys, &builderv1.SshKey{Id: key.GetId()})
	}
	return out
}

// Decode reads a stored request of a build without secrets.
func (t Translator) Decode(request []byte) (build.Spec, error) {
	in := &builderv1.BuildSpec{}
	if err := proto.Unmarshal(request, in); err != nil {
		return build.Spec{}, fmt.Errorf("decoding the request: %w", err)
	}
	return t.Spec(in)
}

// withSecrets reads a stored request and gives it its secrets back, which the
// caller sends again: just those that it had.
func withSecrets(request []byte, secrets []*builderv1.Secret, keys []*builderv1.SshKey) (*builderv1.BuildSpec, error) {
	out := &builderv1.BuildSpec{}
	if err := proto.Unmarshal(request, out); err != nil {
		return nil, fmt.Errorf("decoding the request: %w", err)
	}
	if err := sameIDs("secrets", out.GetSecrets(), secrets); err != nil {
		return nil, err
	}
	if err := sameIDs("ssh_keys", out.GetSshKeys(), keys); err != nil {
		return nil, err
	}
	out.Secrets, out.SshKeys = secrets, keys
	return out, nil
}

func sameIDs[T interface{ GetId() string }](field string, had, sent []T) error {
	missing, unknown := map[string]bool{}, map[string]bool{}
	for _, s := range had {
		missing[s.GetId()] = true
	}
	for _, s := range sent {
		if !missing[s.GetId()] {
			unknown[s.GetId()] = true
		}
	}
	for _, s := range sent {
		delete(missing, s.GetId())
	}
	switch {
	case len(missing) > 0:
		names := strings.Join(slices.Sorted(maps.Keys(missing)), ", ")
		err := fault.New(fault.FailedPrecondition, "WRONG_STATE",
			fmt.Sprintf("the build had %s %q, which are not kept", field, names), "send them again with the retry")
		err.Field = field
		return err
	case len(unknown) > 0:
		return fault.Invalid(field, strings.Join(slices.Sorted(maps.Keys(unknown)), ", "), "the build had none of that id",
			"send just the secrets that the build had")
	default:
		return nil
	}
}
