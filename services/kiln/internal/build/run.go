package build

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/progress/progressui"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/pkg/cachelease"
	"github.com/kilnbuild/kiln/pkg/contextfs"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

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
	// What BuildKit's client logs beside its errors is not for users, for example that
	// a file system has no fs-verity.
	bklog.L.Logger.SetOutput(io.Discard)
	if o.detach {
		return o.startDetached(ctx, tel, stdout, stderr)
	}
	// An ID from an earlier build is not left behind by one that fails.
	if o.iidFile != "" {
		if err := os.Remove(o.iidFile); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("--iidfile: %w", err)
		}
	}
	return o.build(ctx, tel, span, stdout, stderr)
}

// collisionTries is how often a build is tried that collides with another which writes its
// cache to the same directory.
const collisionTries = 5

// build builds by the gateway, and says what it came to.
func (o *options) build(ctx context.Context, tel *telemetry.Telemetry, span trace.Span, stdout, stderr io.Writer) error {
	api, err := o.dial(tel)
	if err != nil {
		return err
	}
	defer func() { _ = api.Close() }() // nothing is left to lose
	started := time.Now()
	s := &solving{options: o, ref: uuid.NewString()}
	err = s.run(ctx, tel, stdout, stderr)
	for try := 1; cachelease.IsCollision(err) && o.contextTar == nil && try < collisionTries; try++ {
		s = &solving{options: o, ref: uuid.NewString()}
		err = s.run(ctx, tel, stdout, stderr)
	}
	if o.call != nil && err == nil {
		return o.call.print(stdout, stderr, s.answer, o.dockerfileShown())
	}
	out := outcome{BuildID: s.ref, State: "SUCCEEDED", Tag: o.firstTag(), DurationS: time.Since(started).Seconds()}
	if span.SpanContext().IsSampled() {
		out.TraceID = span.SpanContext().TraceID().String()
	}
	if err != nil {
		span.SetStatus(otelcodes.Error, "build failed")
		out.State, out.Error = stateOf(ctx, err), plain(err)
	} else {
		out.Digest, out.Pushed = s.response["containerimage.digest"], o.pushes()
	}
	rec := record(context.WithoutCancel(ctx), api.API(), s.ref)
	out.TotalSteps, out.CachedSteps = rec.GetSteps().GetTotal(), rec.GetSteps().GetCached()
	if err == nil {
		err = s.writeFiles()
	}
	if printErr := o.print(stdout, stderr, out, s.response); printErr != nil {
		return printErr
	}
	if err != nil && ctx.Err() == nil {
		err = o.ofDaemon(ctx, err, api.API())
	}
	return o.explain(ctx, err, rec, stderr)
}

// solving is one try of a build.
type solving struct {
	*options
	ref      string
	response map[string]string       // of the exporters
	answer   map[string]string       // to --call
	warnings []*client.VertexWarning // that the frontend gave
}

// run runs the build with its progress display.
func (s *solving) run(ctx context.Context, tel *telemetry.Telemetry, stdout, stderr io.Writer) error {
	display, err := progressui.NewDisplay(stderr, progressui.DisplayMode(s.progress))
	if err != nil {
		return fmt.Errorf("--progress %s: %w", s.progress, err)
	}
	opt, err := s.solveOpt(ctx, s.ref, stdout, stderr)
	if err != nil {
		return err
	}
	release, err := s.leaseCacheDir(ctx, &opt, tel)
	if err != nil {
		return err
	}
	defer release()
	address, opts := s.connection(tel)
	c, err := client.New(ctx, address, opts...)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }() // nothing is left to lose
	ctx = metadata.AppendToOutgoingContext(ctx, "kiln-project", s.project)

	var reading contextfs.Watch
	for name, files := range opt.LocalMounts {
		opt.LocalMounts[name] = reading.Of(files)
	}
	watched, stop := reading.Begin(ctx)
	defer stop()
	statuses, shown := make(chan *client.SolveStatus, 64), make(chan *client.SolveStatus)
	var group errgroup.Group
	group.Go(func() error { return s.solve(watched, c, opt, statuses) })
	group.Go(func() error {
		defer close(shown)
		for status := range statuses {
			s.warnings = append(s.warnings, status.Warnings...)
			shown <- status
		}
		return nil
	})
	group.Go(func() error {
		// Not bound to ctx: what is left to show of a cancelled build is shown, and
		// Solve closes the channel.
		_, err := display.UpdateFrom(context.WithoutCancel(ctx), shown)
		for range shown { // The display has failed; the build goes on.
		}
		return err
	})
	if err := group.Wait(); err != nil {
		return cmp.Or(reading.Failed(), err)
	}
	if s.call == nil && s.metadataFile != "" {
		return s.addProvenance(ctx, c)
	}
	return nil
}

// solve asks for the build, or for the answer to --call.
func (s *solving) solve(ctx context.Context, c *client.Client, opt client.SolveOpt, statuses chan *client.SolveStatus) (err error) {
	if s.call != nil {
		s.answer, err = s.call.ask(ctx, c, opt, statuses)
		return err
	}
	res, err := c.Solve(ctx, nil, opt, statuses)
	if err == nil {
		s.response = res.ExporterResponse
	}
	return err
}

// record asks the builder for its record of the build. It is no failure of the build when
// the builder does not answer; the record is nil then.
func record(ctx context.Context, api builderv1.BuilderServiceClient, ref string) *builderv1.BuildRecord {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	res, err := api.GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: ref})
	if err != nil {
		return nil
	}
	return res.GetBuild()
}

func stateOf(ctx context.Context, err error) string {
	if ctx.Err() != nil || errors.Is(err, context.Canceled) {
		return "CANCELLED"
	}
	return "FAILED"
}
