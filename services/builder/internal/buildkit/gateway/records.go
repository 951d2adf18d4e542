package gateway

import (
	"context"
	"errors"
	"fmt"
	"regexp"

	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// The builder's records say whose a ref is, also after a restart: the ref of a build
// through the gateway is its id, and that of a build by RPC is its id, with a number
// for each further attempt.

// suffixes are what the builder appends to the id of a build by RPC, the last one
// first; see refOf and Solve of package buildkit.
var suffixes = []*regexp.Regexp{regexp.MustCompile(`-again-[0-9]+$`), regexp.MustCompile(`-[0-9]+$`)}

// record returns the record of the build that a ref belongs to. ok is false when the
// builder has none.
func (g *Gateway) record(ctx context.Context, ref string) (rec build.Record, ok bool, err error) {
	if rec, ok, err = g.find(ctx, ref); ok || err != nil {
		return rec, ok, err
	}
	id := ref
	for _, suffix := range suffixes {
		shorter := suffix.ReplaceAllString(id, "")
		if shorter == id {
			continue
		}
		id = shorter
		if rec, ok, err = g.find(ctx, id); ok || err != nil {
			return rec, ok && rec.Origin == build.OriginAPI, err
		}
	}
	return rec, false, nil
}

func (g *Gateway) find(ctx context.Context, id string) (build.Record, bool, error) {
	rec, err := g.builds.Get(ctx, id)
	if own, known := errors.AsType[*fault.Error](err); known && own.Kind == fault.NotFound {
		return rec, false, nil
	}
	return rec, err == nil, err
}

// mine reports whether what a ref left belongs to the caller, and whether the builder
// has a record of it: the caller made it, and the caller's rules allow its project.
// Everything belongs to administrators.
func (g *Gateway) mine(ctx context.Context, c *call, ref string) (own, recorded bool, err error) {
	rec, ok, err := g.record(ctx, ref)
	if administers(ctx) {
		return true, ok, err
	}
	return ok && rec.Caller == c.owner.identity && auth.GrantOf(ctx).Project(rec.Project), ok, err
}

// reserved returns an error when a ref is, or could become, that of a build by RPC.
func (g *Gateway) reserved(ctx context.Context, ref string) error {
	rec, ok, err := g.record(ctx, ref)
	if err == nil && ok && rec.ID != ref {
		return refTaken(ref)
	}
	return err
}

// masked returns an error for the ref of a build by RPC that has secrets: what the daemon
// tells of it holds them, and WatchBuild masks them.
func (g *Gateway) masked(ctx context.Context, ref string) error {
	rec, ok, err := g.record(ctx, ref)
	if err != nil || !ok || !rec.HasSecrets {
		return err
	}
	return fault.New(fault.FailedPrecondition, "WRONG_STATE",
		fmt.Sprintf("build %s has secrets, and the daemon's status of it shows them", rec.ID),
		"watch it with WatchBuild, which masks them (`kiln builds watch "+rec.ID+"`)")
}
