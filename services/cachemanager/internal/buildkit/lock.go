package buildkit

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// lockRef is the id of the job that a run holds in the daemon.
const lockRef = "kiln-cache-run"

// Lock makes this the only run on the daemon, of all cache managers on all hosts,
// until unlock is called or this process ends. The lock is in the daemon itself: a
// job of a fixed id that builds nothing, for BuildKit has no two jobs of one id, and
// ends a job whose client is gone. A daemon that is locked is an ALREADY_EXISTS
// fault.
//
// The context that it returns ends when the lock is lost, which is when the daemon
// goes away.
func (d *Daemon) Lock(ctx context.Context) (_ context.Context, unlock func(), err error) {
	held, lost := context.WithCancelCause(ctx)
	locked, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := d.client.Build(unsampled(ctx), client.SolveOpt{Ref: lockRef, Internal: true}, "kiln",
			func(ctx context.Context, _ gateway.Client) (*gateway.Result, error) {
				close(locked)
				select {
				case <-release:
				case <-ctx.Done():
				}
				return gateway.NewResult(), nil
			}, nil)
		lost(err)
		ended <- err
	}()
	select {
	case <-locked:
		return held, func() { close(release); <-ended }, nil
	case err := <-ended:
		if err != nil && strings.Contains(err.Error(), "job ID "+lockRef+" exists") {
			return nil, nil, fault.New(fault.AlreadyExists, "ALREADY_EXISTS",
				fmt.Sprintf("a run on daemon %q is under way", d.name), "wait for its end; ListRuns shows it, at the cache manager that started it")
		}
		return nil, nil, d.explain(ctx, err, "take the lock of a run")
	}
}
