package build

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/progress/progressui"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/pkg/cachelease"
	"github.com/kilnbuild/kiln/pkg/contextfs"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
)

// outcome is what `--format json` prints. The names are part of the interface.
type outcome struct {
	BuildID     string  `json:"build_id"`
	State       string  `json:"state"`
	Digest      string  `json:"digest,omitempty"`
	Tag         string  `json:"tag"`
	Pushed      bool    `json:"pushed"`
	TotalSteps  int32   `json:"total_steps"`
	CachedSteps int32   `json:"cached_steps"`
	DurationS   float64 `json:"duration_s"`
	TraceID     string  `json:"trace_id,omitempty"`
	Error       string  `json:"error,omitempty"`
}

// run builds, shows progress on stderr and the outcome on stdout.
func run(ctx context.Context, o *options, stdout, stderr io.Writer) (err error) {
	tel, err := telemetry.Setup(ctx, telemetry.Options{Service: "kiln", LogWriter: stderr, LogLevel: "warn", LogFormat: "text"})
	if err != nil {
		return err
	}
	defer func() {
		// Without the caller's cancellation: what was traced of a cancelled build
		// matters too.
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err = errors.Join(err, tel.Shutdown(flush))
	}()
	ctx, span := tel.Tracer.Tracer("github.com/kilnbuild/kiln/services/kiln").Start(ctx, "kiln build",
		trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attribute.String("kiln.project", o.project)))
	defer span.End()

	if o.detach {
		return o.startDetached(ctx, tel, stdout, stderr)
	}
	api, err := o.dial(tel)
	if err != nil {
		return err
	}
	defer func() { _ = api.Close() }() // nothing is left to lose

	started := time.Now()
	ref := uuid.NewString()
	res, err := o.solve(ctx, ref, tel, stderr)
	for try := 1; cachelease.IsCollision(err) && try < collisionTries; try++ {
		ref = uuid.NewString()
		res, err = o.solve(ctx, ref, tel, stderr)
	}
	out := outcome{BuildID: ref, State: "SUCCEEDED", Tag: o.tag, DurationS: time.Since(started).Seconds()}
	if span.SpanContext().IsSampled() {
		out.TraceID = span.SpanContext().TraceID().String()
	}
	if err != nil {
		span.SetStatus(otelcodes.Error, "build failed")
		out.State, out.Error = stateOf(ctx, err), plain(err)
	} else {
		out.Digest, out.Pushed = res.ExporterResponse["containerimage.digest"], o.push
	}
	addSteps(context.WithoutCancel(ctx), api.API(), ref, &out)
	if printErr := o.print(stdout, stderr, out); printErr != nil {
		return printErr
	}
	return o.explain(ctx, err, stderr)
}

// collisionTries is how often a build is tried that collides with another which writes its
// cache to the same directory.
const collisionTries = 5

// solve runs the build with its progress display.
func (o *options) solve(ctx context.Context, ref string, tel *telemetry.Telemetry, stderr io.Writer) (*client.SolveResponse, error) {
	display, err := progressui.NewDisplay(stderr, progressui.DisplayMode(o.progress))
	if err != nil {
		return nil, fmt.Errorf("--progress %s: %w", o.progress, err)
	}
	opt, err := o.solveOpt(ctx, ref, stderr)
	if err != nil {
		return nil, err
	}
	release, err := o.leaseCacheDir(ctx, &opt, tel)
	if err != nil {
		return nil, err
	}
	defer release()
	address, opts := o.connection(tel)
	c, err := client.New(ctx, address, opts...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }() // nothing is left to lose
	ctx = metadata.AppendToOutgoingContext(ctx, "kiln-project", o.project)

	var reading contextfs.Watch
	for name, files := range opt.LocalMounts {
		opt.LocalMounts[name] = reading.Of(files)
	}
	solving, stop := reading.Begin(ctx)
	defer stop()
	var res *client.SolveResponse
	statuses := make(chan *client.SolveStatus, 64)
	var group errgroup.Group
	group.Go(func() error {
		var err error
		res, err = c.Solve(solving, nil, opt, statuses)
		return cmp.Or(reading.Failed(), err)
	})
	group.Go(func() error {
		// Not bound to ctx: what is left to show of a cancelled build is shown, and
		// Solve closes the channel.
		_, err := display.UpdateFrom(context.WithoutCancel(ctx), statuses)
		return err
	})
	return res, group.Wait()
}

// addSteps asks the builder for what it has counted. It is no failure of the
// build when the builder does not answer.
func addSteps(ctx context.Context, api builderv1.BuilderServiceClient, ref string, out *outcome) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	res, err := api.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: ref})
	if err == nil {
		out.TotalSteps, out.CachedSteps = res.GetBuild().GetSteps().GetTotal(), res.GetBuild().GetSteps().GetCached()
	}
}

func (o *options) print(stdout, stderr io.Writer, out outcome) error {
	if o.format == "json" {
		return json.NewEncoder(stdout).Encode(out)
	}
	if out.State != "SUCCEEDED" {
		return nil
	}
	verb := "built"
	switch {
	case o.push:
		verb = "pushed"
	case o.load:
		verb = "loaded"
	}
	name := o.tag
	if out.Digest != "" {
		name += "@" + out.Digest
	}
	_, err := fmt.Fprintf(stdout, "%s %s in %.2fs (%d of %d steps cached)\n",
		verb, name, out.DurationS, out.CachedSteps, out.TotalSteps)
	if err == nil && !o.push && !o.load {
		_, err = fmt.Fprintln(stderr, "note: the result stays in the build cache; use --push or --load to have the image")
	}
	return err
}

func stateOf(ctx context.Context, err error) string {
	if ctx.Err() != nil || errors.Is(err, context.Canceled) {
		return "CANCELLED"
	}
	return "FAILED"
}

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
		return errors.New("the build was cancelled")
	case grpcerrors.Code(err) == codes.Unavailable:
		return fmt.Errorf("cannot build through the builder at %s: %s; check that it runs (`kiln up` starts one), or name another with --builder",
			o.conn.Address, connect.Innermost(err.Error()))
	}
	if own, ok := errors.AsType[*fault.Error](err); ok {
		return errors.New(fault.Line(own))
	}
	for _, source := range errdefs.Sources(err) {
		if printErr := printSource(stderr, source); printErr != nil {
			return printErr
		}
	}
	if o.registryCache && strings.Contains(err.Error(), strings.SplitN(o.cacheRepository, "/", 2)[0]) {
		return fmt.Errorf("%s; the cache lives at %s, and --cache-repository names another place", plain(err), o.cacheRepository)
	}
	return errors.New(plain(err))
}
