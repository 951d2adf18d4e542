package build

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/service"
	kilnclient "github.com/kilnbuild/kiln/proto/client"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
)

// cancelled is the exit code of a build that was cancelled, as that of docker buildx.
const cancelled = 130

// plain is the error without the words that every failure begins with.
func plain(err error) string {
	return strings.TrimPrefix(err.Error(), "failed to solve: ")
}

// explain turns the error of a build into what the user reads: the place in the
// Dockerfile, what went wrong, and what to check when it was no fault of theirs.
func (o *options) explain(ctx context.Context, err error, stderr io.Writer) error {
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
	return errors.New(plain(err))
}
