package builds

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
)

type logsOptions struct {
	follow bool
	step   string
	format string
}

func logsCommand(conn *connect.Flags) *cobra.Command {
	o := &logsOptions{}
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Print what the steps of a build wrote",
		Long: `Prints what the steps of a build have written so far to their standard output and
error, line by line, and with --follow what they write until its end. Ctrl-C leaves the
build to itself, and ends the command with 130. Lines are printed as they are. With
--format json each line is a kiln.builder.v1.BuildEvent.`,
		Example: `  kiln builds logs 4f3c1a2e
  kiln builds logs 4f3c1a2e --follow
  kiln builds logs 4f3c1a2e --step 'RUN make'`,
		Args:              oneID,
		ValidArgsFunction: completeBuild(conn),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			b, err := c.record(ctx, args[0])
			if err != nil {
				return err
			}
			return c.logs(ctx, b, o)
		}),
	}
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on until the build ends")
	cmd.Flags().StringVar(&o.step, "step", "", "only steps whose name holds this `text`, or whose digest begins so")
	show.AddFormat(cmd, &o.format, "text, or json: one event a line")
	return cmd
}

// errEnough ends a watch that has shown what there was.
var errEnough = errors.New("enough")

func (c *call) logs(ctx context.Context, b *builderv1.BuildRecord, o *logsOptions) error {
	if b.GetLastSequence() == 0 && !o.follow {
		return nil
	}
	p := &logPrinter{options: o, w: c.out, names: map[string]string{}, partial: map[string][]byte{}}
	_, err := c.Watch(ctx, b.GetId(), 0, func(event *builderv1.BuildEvent) error {
		if err := p.take(event); err != nil {
			return err
		}
		if !o.follow && event.GetSequence() >= b.GetLastSequence() {
			return errEnough
		}
		return nil
	})
	// How the build ended is not what was asked for.
	if _, failed := errors.AsType[*client.BuildError](err); failed || errors.Is(err, errEnough) {
		err = nil
	}
	flushed := p.flush()
	if err != nil && o.follow && ctx.Err() != nil {
		return errLeft(b.GetId())
	}
	return errors.Join(err, flushed)
}

// logPrinter prints the lines of steps that run side by side, each as a whole.
type logPrinter struct {
	options *logsOptions
	w       io.Writer
	names   map[string]string // of steps, by digest
	order   []string          // digests of steps with a partial line, in order of first writing
	partial map[string][]byte // lines that have not ended
}

func (p *logPrinter) take(event *builderv1.BuildEvent) error {
	if step := event.GetStep(); step != nil {
		p.names[step.GetDigest()] = step.GetName()
	}
	log := event.GetLog()
	if log == nil || !p.wanted(log.GetStepDigest()) {
		return nil
	}
	if p.options.format == "json" {
		return show.JSON(p.w, event)
	}
	id := log.GetStepDigest()
	if _, known := p.partial[id]; !known {
		p.order = append(p.order, id)
	}
	p.partial[id] = append(p.partial[id], log.GetData()...)
	end := bytes.LastIndexByte(p.partial[id], '\n') + 1
	if end == 0 {
		return nil
	}
	_, err := p.w.Write(p.partial[id][:end])
	p.partial[id] = append([]byte(nil), p.partial[id][end:]...)
	return err
}

func (p *logPrinter) wanted(digest string) bool {
	text := p.options.step
	return text == "" || strings.Contains(p.names[digest], text) || strings.HasPrefix(digest, text) ||
		strings.HasPrefix(strings.TrimPrefix(digest, "sha256:"), text)
}

// flush prints the lines that have no end.
func (p *logPrinter) flush() error {
	for _, id := range p.order {
		if line := p.partial[id]; len(line) > 0 {
			if _, err := p.w.Write(append(line, '\n')); err != nil {
				return err
			}
		}
	}
	return nil
}
