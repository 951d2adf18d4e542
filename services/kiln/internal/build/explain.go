package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/service"
	kilnclient "github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
)

// cancelled is the exit code of a build that was cancelled, as that of docker buildx.
const cancelled = 130

// jargon is what gRPC puts before the message of a status.
var jargon = regexp.MustCompile(`rpc error: code = \w+ desc = `)

// plain is the error without the words that every failure begins with, and without
// those of gRPC.
func plain(err error) string {
	return jargon.ReplaceAllString(strings.TrimPrefix(err.Error(), "failed to solve: "), "")
}

// ofDaemon makes the error of a connection that the builder has to its daemon into
// one that says so. The builder passes on what its client of the daemon says, which
// is the same as what ours says of the builder; whether the builder answers tells
// them apart.
func (o *options) ofDaemon(ctx context.Context, err error, api builderv1.BuilderServiceClient) error {
	st, ok := grpcerrors.AsGRPCStatus(err)
	if !ok || st.Code() != codes.Unavailable || kilnclient.Reason(st.Err()) != "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	res, listErr := api.ListDaemons(ctx, &builderv1.ListDaemonsRequest{})
	if listErr != nil {
		return err
	}
	for _, d := range res.GetDaemons() {
		// The builder may not know yet: then the message names the daemon's address.
		dialled := d.GetAddress() != "" && strings.Contains(st.Message(), strings.TrimPrefix(strings.TrimPrefix(d.GetAddress(), "unix://"), "tcp://"))
		if dialled || d.GetState() != builderv1.DaemonState_DAEMON_STATE_READY {
			return fault.New(fault.Unavailable, "DAEMON_UNAVAILABLE",
				fmt.Sprintf("the builder at %s runs, and its buildkitd %s at %s does not answer", o.conn.Address, d.GetName(), d.GetAddress()),
				"start buildkitd there, see `kiln workers` and `kiln debug`, and build again")
		}
	}
	return err
}

// ofInfrastructure returns what the builder says of a failure that was no fault of the user:
// it knows what to do about it, and buildkitd's own words do not tell. Nil for others.
func ofInfrastructure(rec *builderv1.BuildRecord) error {
	st := status.FromProto(rec.GetOutcome().GetError())
	for _, detail := range st.Details() {
		failure, ok := detail.(*errorsv1.BuildFailure)
		if ok && failure.GetClass() == errorsv1.FailureClass_FAILURE_CLASS_INFRASTRUCTURE && kilnclient.Remedy(st.Err()) != "" {
			return errors.New(fault.Line(fault.New(fault.Internal, kilnclient.Reason(st.Err()), st.Message(), kilnclient.Remedy(st.Err()))))
		}
	}
	return nil
}

// ofSource returns what the builder advises when a file, a secret or an image of the build is
// missing. For other failures of the user, buildkitd's message and the log say it all.
func ofSource(rec *builderv1.BuildRecord) string {
	if st := status.FromProto(rec.GetOutcome().GetError()); kilnclient.Reason(st.Err()) == "SOURCE_NOT_FOUND" {
		return kilnclient.Remedy(st.Err())
	}
	return ""
}

// explain turns the error of a build into what the user reads: the place in the
// Dockerfile, what went wrong, and what to check when it was no fault of theirs. rec is the
// builder's record of the build; nil when there is none.
func (o *options) explain(ctx context.Context, err error, rec *builderv1.BuildRecord, stderr io.Writer) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return &service.Exit{Code: cancelled, Err: errors.New("the build was cancelled")}
	}
	if own, ok := errors.AsType[*fault.Error](err); ok {
		return errors.New(fault.Line(own))
	}
	if exit, ok := errors.AsType[*service.Exit](err); ok {
		return exit
	}
	for _, source := range errdefs.Sources(err) {
		if printErr := printSource(stderr, source); printErr != nil {
			return printErr
		}
	}
	if st, ok := grpcerrors.AsGRPCStatus(err); ok && (kilnclient.Reason(st.Err()) != "" || connect.OfConnection(st.Err())) {
		return o.conn.Explain(st.Err())
	}
	if o.registryCache && strings.Contains(err.Error(), strings.SplitN(o.cacheRepository, "/", 2)[0]) {
		return fault.New(fault.Internal, "", plain(err), "the cache lives at "+o.cacheRepository+", and --cache-repository names another place")
	}
	if judged := ofInfrastructure(rec); judged != nil {
		return judged
	}
	if remedy := ofSource(rec); remedy != "" {
		return fault.New(fault.NotFound, "", plain(err), remedy)
	}
	return errors.New(plain(err))
}
