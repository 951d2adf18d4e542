package janitor

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/kilnbuild/kiln/pkg/clock"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/human"
	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/enforce"
	"github.com/kilnbuild/kiln/services/janitor/internal/run"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// onceOptions are the flags of `kiln-janitor run`.
type onceOptions struct {
	once, dry, all bool
	format         string
}

// exitPartly is the exit code of a run that did a part.
const exitPartly = 2

// runCommand is `kiln-janitor run`: one run, without a server.
func runCommand(of service.Spec[*configv1.JanitorConfig]) *cobra.Command {
	o := &onceOptions{}
	var out io.Writer
	spec := of
	spec.Use, spec.Short = "run", "Do one run and end, for timers and CronJobs: 0 is done, 2 done in part, 1 failed"
	spec.Example = `  kiln-janitor run --once --set registry.storage_root=/var/lib/registry
  kiln-janitor run --once --dry-run --format json --config /etc/kiln/janitor.yaml`
	spec.Run = func(ctx context.Context, cfg *configv1.JanitorConfig, tel *telemetry.Telemetry) error {
		return o.run(ctx, cfg, tel, out)
	}
	cmd := service.Command(spec)
	cmd.PreRun = func(cmd *cobra.Command, _ []string) { out = cmd.OutOrStdout() }
	cmd.Flags().BoolVar(&o.once, "once", true, "do one run and end; the service itself runs by schedule.cron")
	cmd.Flags().BoolVar(&o.dry, "dry-run", false, "only say what would go")
	cmd.Flags().BoolVar(&o.all, "force-all", false, "go on also when everything would go")
	cmd.Flags().StringVar(&o.format, "format", "text", "text, or json: the kiln.janitor.v1.Run")
	return cmd
}

func (o *onceOptions) run(ctx context.Context, cfg *configv1.JanitorConfig, tel *telemetry.Telemetry, out io.Writer) (err error) {
	if o.format != "text" && o.format != "json" {
		return fault.Invalid("format", o.format, "is no format", "write text or json")
	}
	if !o.once {
		return fault.Invalid("once", "false", "is what the service itself does", "start kiln-janitor without a subcommand to run by schedule.cron")
	}
	tuneMemory()
	cfg = Complete(cfg)
	p, err := newParts(ctx, cfg, tel, false)
	if err != nil {
		return err
	}
	defer func() {
		if closed := p.close(context.WithoutCancel(ctx)); err == nil {
			err = closed
		}
	}()
	if cfg.GetNotifications() != nil { // nobody listened since the service was there
		if err := p.store.Unheard(ctx, clock.Now(), clock.Now()); err != nil {
			return err
		}
	}
	if !o.dry {
		p.schedule.TakeUp(ctx)
	}
	r, err := p.engine.RunOnce(ctx, enforce.Order{Trigger: run.Once, Force: !o.dry, All: o.all}, nil)
	if err != nil {
		return err
	}
	if err := o.summary(out, r); err != nil {
		return err
	}
	return outcome(r)
}

// outcome is the exit code of a run.
func outcome(r run.Run) error {
	switch r.State {
	case run.Succeeded:
		return nil
	case run.Partial:
		why := r.Err
		if why == nil {
			why = fault.New(fault.Aborted, "", "the budget of the run is spent", "the next run goes on")
		}
		return &service.Exit{Code: exitPartly, Err: why}
	case run.Running, run.Failed, run.Cancelled, run.Interrupted:
	}
	if r.Err != nil {
		return r.Err
	}
	return fmt.Errorf("the run ended as %s", r.State)
}

func (o *onceOptions) summary(out io.Writer, r run.Run) error {
	if o.format == "json" {
		text, err := protojson.Marshal(wire.RunProto(r))
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s\n", text)
		return err
	}
	a, verb := r.Removed, "removed"
	if r.Dry {
		a, verb = r.Predicted, "would remove"
	}
	_, err := fmt.Fprintf(out, "run %s: %s in %s\n%s %d manifests, %d blobs and %d uploads: %s\n", r.ID, r.State, r.Ended.Sub(r.Started).Round(time.Millisecond),
		verb, a.Manifests, a.Blobs, a.Uploads, human.Size(a.Bytes))
	if err == nil && r.Waiting.Bytes > 0 {
		_, err = fmt.Fprintf(out, "%d blobs with %s follow when builds cannot want them any more\n", r.Waiting.Blobs, human.Size(r.Waiting.Bytes))
	}
	if err == nil && !r.Dry {
		_, err = fmt.Fprintf(out, "resolved %d manifests: %d are not whole\n", r.Verified, r.Broken)
	}
	return err
}
