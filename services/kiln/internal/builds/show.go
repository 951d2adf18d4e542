package builds

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

func showCommand(conn *connect.Flags) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:     "show ID",
		Aliases: []string{"inspect"},
		Short:   "Show all that is known of a build",
		Long: `Shows a build: where it stands, what it made and, when it failed, the place in the
Dockerfile, the last lines of the step and what to do. With --format json it is
the kiln.builder.v1.BuildRecord.`,
		Example: `  kiln builds show 4f3c1a2e
  kiln builds show 4f3c1a2e --format json`,
		Args:              oneID,
		ValidArgsFunction: completeBuild(conn),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			b, err := c.record(ctx, args[0])
			if err != nil {
				return err
			}
			if format == "json" {
				return show.JSON(c.out, b)
			}
			return writeBuild(c.out, c.term, b, c.now)
		}),
	}
	show.AddFormat(cmd, &format, "text or json")
	return cmd
}

// page writes a text of sections with aligned names; the first error counts.
type page struct {
	w    io.Writer
	term table.Terminal
	err  error
}

func (p *page) line(text string) {
	if p.err == nil {
		_, p.err = fmt.Fprintln(p.w, text)
	}
}

// field writes a name and its value, unless that is empty.
func (p *page) field(name, value string, style table.Style) {
	if value == "" {
		return
	}
	p.line(p.term.Paint(table.Faint, fmt.Sprintf("%-10s", name)) + " " + p.term.Paint(style, table.Clean(value)))
}

func (p *page) section(name string) {
	p.line("")
	p.line(p.term.Paint(table.Bold, name))
}

// writeBuild writes all that is known of a build.
func writeBuild(w io.Writer, term table.Terminal, b *builderv1.BuildRecord, now time.Time) error {
	p := &page{w: w, term: term}
	p.field("build", b.GetId(), table.Bold)
	p.field("state", stateWord(b.GetState()), stateStyle(b.GetState()))
	if q := b.GetQueue(); q != nil {
		p.field("queue", fmt.Sprintf("place %d: %s", q.GetPosition(), q.GetReason()), table.Plain)
	}
	p.field("project", b.GetProject(), table.Plain)
	p.field("origin", originWord(b.GetOrigin()), table.Plain)
	p.field("created", at(b.GetCreateTime(), now), table.Plain)
	p.field("started", at(b.GetStartTime(), now), table.Plain)
	p.field("ended", at(b.GetEndTime(), now), table.Plain)
	p.field("duration", duration(b, now)+phases(b.GetOutcome().GetTimes()), table.Plain)
	p.field("steps", steps(b.GetSteps()), table.Plain)
	p.field("tags", strings.Join(b.GetTags(), " "), table.Plain)
	p.field("daemon", b.GetDaemon(), table.Plain)
	p.field("caller", b.GetCaller(), table.Plain)
	if b.GetAttempt() > 1 {
		p.field("attempt", fmt.Sprint(b.GetAttempt()), table.Plain)
	}
	p.field("retry of", b.GetRetryOf(), table.Plain)
	p.field("request id", b.GetRequestId(), table.Plain)
	p.field("trace", b.GetTraceId(), table.Plain)
	p.field("events", fmt.Sprint(b.GetLastSequence()), table.Plain)
	if outputs := b.GetOutcome().GetOutputs(); len(outputs) > 0 {
		p.section("outputs")
		p.outputs(outputs)
	}
	if failed := client.ErrorOf(b.GetId(), b.GetOutcome()); failed != nil {
		p.section("why it " + endedWord(failed.State))
		p.failure(failed)
	}
	return p.err
}

// outputs writes where each output is.
func (p *page) outputs(outputs []*builderv1.OutputResult) {
	for _, out := range outputs {
		switch {
		case out.GetArtifact() != "":
			p.field("artifact", fmt.Sprintf("%s, %s", out.GetArtifact(), human.Size(out.GetSizeBytes())), table.Plain)
			p.field("digest", out.GetDigest(), table.Plain)
		case len(out.GetTags()) == 0:
			p.field("digest", out.GetDigest(), table.Plain)
		default:
			for _, tag := range out.GetTags() {
				p.field("pushed", tag+"@"+out.GetDigest(), table.Plain)
			}
		}
	}
}

// failure writes why a build did not succeed.
func (p *page) failure(e *client.BuildError) {
	reason := e.Reason
	if e.Class != 0 {
		reason += " (" + classWord(e.Class) + ")"
	}
	p.field("reason", reason, table.Red)
	p.field("message", e.Message, table.Plain)
	p.field("step", e.Step, table.Plain)
	if e.ExitCode != nil {
		p.field("exit code", fmt.Sprint(*e.ExitCode), table.Plain)
	}
	p.field("reference", e.Reference, table.Plain)
	p.field("remedy", e.Remedy, table.Plain)
	if at := e.Location; at != nil {
		p.section(fmt.Sprintf("%s:%d", table.Clean(at.GetFile()), at.GetStartLine()))
		for line := range strings.Lines(at.GetSnippet()) {
			style := table.Plain
			if strings.Contains(line, ">>>") {
				style = table.Red
			}
			p.line(p.term.Paint(style, cleanLine(line)))
		}
	}
	if len(e.LogTail) > 0 {
		p.section("last lines of the step")
		if e.LogClipped {
			p.line("(the daemon dropped a part of the step's output; raise BUILDKIT_STEP_LOG_MAX_SIZE of buildkitd to keep it)")
		}
		for _, line := range e.LogTail {
			p.line(cleanLine(line))
		}
	}
}

// cleanLine is table.Clean for a line whose indentation counts.
func cleanLine(line string) string {
	trimmed := strings.TrimLeft(line, " ")
	return strings.Repeat(" ", len(line)-len(trimmed)) + table.Clean(trimmed)
}

func endedWord(state builderv1.BuildState) string {
	switch state {
	case builderv1.BuildState_BUILD_STATE_FAILED:
		return "failed"
	case builderv1.BuildState_BUILD_STATE_TIMED_OUT:
		return "timed out"
	default:
		return "was " + stateWord(state)
	}
}

// at is a time, and how long ago it was.
func at(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02 15:04:05 UTC") + " (" + show.Ago(t, now) + ")"
}

func phases(t *builderv1.PhaseTimes) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf(" (queue %s, context %s, solve %s, export %s)", show.Lasted(t.GetQueue().AsDuration()),
		show.Lasted(t.GetContext().AsDuration()), show.Lasted(t.GetSolve().AsDuration()), show.Lasted(t.GetExport().AsDuration()))
}

func steps(s *builderv1.StepCounts) string {
	if s == nil {
		return ""
	}
	return fmt.Sprintf("%d: %d cached, %d run, %d failed", s.GetTotal(), s.GetCached(), s.GetCompleted(), s.GetFailed())
}
