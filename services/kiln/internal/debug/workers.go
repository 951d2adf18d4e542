package debug

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	workertypes "github.com/moby/buildkit/api/types"
	specs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

// WorkersCommand is `kiln workers`.
func WorkersCommand() *cobra.Command {
	var format string
	conn := &connect.Flags{}
	cmd := &cobra.Command{
		Use:   "workers",
		Short: "List the daemons, their workers and what they build for",
		Long: `Lists the builder's daemons, whether they answer, what they are running, and the workers and
platforms of each. With --format json it is the kiln.builder.v1.ListDaemonsResponse.`,
		Example: `  kiln workers
  kiln workers --format json`,
		Args: cobra.NoArgs,
		RunE: conn.RunE(func(cmd *cobra.Command, cc *grpc.ClientConn, _ []string) error {
			res, err := builderv1.NewBuilderServiceClient(cc).ListDaemons(cmd.Context(), &builderv1.ListDaemonsRequest{})
			if err != nil {
				return err
			}
			if format == "json" {
				return show.JSON(cmd.OutOrStdout(), res)
			}
			return writeWorkers(cmd.Context(), cmd.OutOrStdout(), cc, res.GetDaemons())
		}),
	}
	conn.Add(cmd.Flags())
	show.AddFormat(cmd, &format, "text or json")
	return cmd
}

func writeWorkers(ctx context.Context, out io.Writer, cc *grpc.ClientConn, daemons []*builderv1.Daemon) error {
	t := table.Table{Header: []string{"DAEMON", "STATE", "BUILDS", "VERSION", "WORKER", "SNAPSHOTTER", "PLATFORMS"}, GiveWay: 1}
	for _, d := range daemons {
		state := strings.ToLower(strings.TrimPrefix(d.GetState().String(), "DAEMON_STATE_"))
		style := table.Green
		if d.GetState() != builderv1.DaemonState_DAEMON_STATE_READY {
			style = table.Red
		}
		row := func(worker, snapshotter string, names []string) {
			t.Add(table.Cell{Text: d.GetName(), Style: table.Bold}, table.Cell{Text: state, Style: style}, table.Cell{Text: fmt.Sprint(d.GetRunningBuilds())},
				table.Cell{Text: d.GetVersion()}, table.Cell{Text: worker}, table.Cell{Text: snapshotter}, table.Cell{Text: strings.Join(names, " ")})
		}
		workers := workersOf(ctx, cc, len(daemons))
		for _, w := range workers {
			var names []string
			for _, p := range w.GetPlatforms() {
				names = append(names, platforms.Format(platforms.Normalize(specs.Platform{OS: p.GetOS(), Architecture: p.GetArchitecture(), Variant: p.GetVariant()})))
			}
			row(w.GetLabels()["org.mobyproject.buildkit.worker.executor"], w.GetLabels()["org.mobyproject.buildkit.worker.snapshotter"], names)
		}
		if len(workers) == 0 {
			row("", "", d.GetPlatforms())
		}
	}
	if err := t.Write(out, table.TerminalOf(out)); err != nil {
		return err
	}
	for _, d := range daemons {
		if d.GetMessage() != "" {
			if _, err := fmt.Fprintf(out, "%s: %s\n", d.GetName(), d.GetMessage()); err != nil {
				return err
			}
		}
	}
	return nil
}

// workersOf are those of the daemon behind the gateway, which knows one; none when it cannot
// be asked, or is one of several.
func workersOf(ctx context.Context, cc *grpc.ClientConn, daemons int) []*workertypes.WorkerRecord {
	if daemons != 1 {
		return nil
	}
	res, err := controlapi.NewControlClient(cc).ListWorkers(ctx, &controlapi.ListWorkersRequest{})
	if err != nil {
		return nil
	}
	return res.GetRecord()
}
