package buildkit

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// explain makes an error of the daemon one that says what is wrong and what to
// do. Doing is what it was asked, such as "list its cache".
func (d *Daemon) explain(ctx context.Context, err error, doing string) error {
	if err == nil {
		return nil
	}
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Canceled // The caller gave up; the daemon is not to blame.
	}
	code := grpcerrors.Code(err)
	if st, ok := grpcerrors.AsGRPCStatus(err); ok {
		err = errors.New(st.Message()) // Without the names of calls and codes around it.
	}
	switch {
	case code == codes.DeadlineExceeded || ctx.Err() != nil:
		return fault.Wrap(err, fault.Unavailable, "DAEMON_UNAVAILABLE",
			fmt.Sprintf("daemon %q at %s did not %s in time", d.name, d.address, doing),
			"look at the daemon's log: it may hang, or its disk may be slow")
	case code == codes.Unavailable:
		return fault.Wrap(err, fault.Unavailable, "DAEMON_UNAVAILABLE",
			fmt.Sprintf("daemon %q at %s does not answer", d.name, d.address), d.remedy(err))
	default:
		return fault.Wrap(err, fault.Unavailable, "DAEMON_UNAVAILABLE",
			fmt.Sprintf("daemon %q could not %s", d.name, doing), "look at the daemon's log")
	}
}

func (d *Daemon) remedy(err error) string {
	if strings.Contains(err.Error(), "permission denied") {
		return "let the cache manager use the socket: its user has to be in the group that owns it, often \"buildkit\""
	}
	return "start buildkitd, and check that it listens on " + d.address
}
