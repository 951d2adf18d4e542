package janitor

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/human"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

func verifyCommand(conn *connect.Flags) *cobra.Command {
	var repositories []string
	var skip bool
	var most, format string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Resolve every manifest and compare every blob with its digest",
		Long: `Resolves every manifest of the registry, looks whether all that it names is there, and reads
every blob to compare it with its digest. Nothing is changed. What is wrong is said with
what to do about it, and the exit code is then 1.

With --format json each line is an event, a kiln.janitor.v1.VerifyRegistryResponse.`,
		Example: `  kiln janitor verify
  kiln janitor verify --repository 'cache/**' --max-rate 50MB
  kiln janitor verify --skip-content`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error {
			req := &janitorv1.VerifyRegistryRequest{Repositories: repositories, SkipContent: skip}
			if most != "" {
				n, err := units.FromHumanSize(most)
				if err != nil {
					return fault.New(fault.InvalidArgument, "", fmt.Sprintf("--max-rate is %q: %v", most, err), "write it like 50MB")
				}
				req.MaxBytesPerSecond = n
			}
			return c.verify(ctx, req, format)
		}),
	}
	cmd.Flags().StringSliceVar(&repositories, "repository", nil, "only these `repositories`: globs, as in a policy (default: all)")
	cmd.Flags().BoolVar(&skip, "skip-content", false, "only look whether all is there, and read no blob")
	cmd.Flags().StringVar(&most, "max-rate", "", "read at most so many `bytes` a second, such as 50MB")
	show.AddFormat(cmd, &format, "text, or json: one event a line")
	return cmd
}

func (c *call) verify(ctx context.Context, req *janitorv1.VerifyRegistryRequest, format string) error {
	stream, err := c.api.VerifyRegistry(ctx, req)
	if err != nil {
		return err
	}
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if format == "json" {
			err = show.JSON(c.out, event)
		} else {
			err = c.tellVerified(event)
		}
		if err != nil {
			return err
		}
		if p := event.GetFinished(); p.GetDefects() > 0 {
			return fault.New(fault.Internal, "", fmt.Sprintf("the registry is not whole: %d defects", p.GetDefects()), "each is said above with its remedy")
		}
	}
}

func (c *call) tellVerified(event *janitorv1.VerifyRegistryResponse) error {
	var err error
	switch e := event.GetEvent().(type) {
	case *janitorv1.VerifyRegistryResponse_Defect:
		d := e.Defect
		_, err = fmt.Fprintf(c.out, "%s %s %s: %s; %s\n", c.term.Paint(table.Red, word(d.GetKind(), "DEFECT_KIND_")), table.Clean(d.GetRepository()), d.GetDigest(), table.Clean(d.GetMessage()), d.GetRemedy())
		for _, ref := range d.GetReferences() {
			if err == nil {
				_, err = fmt.Fprintln(c.out, "  cannot be pulled:", table.Clean(ref))
			}
		}
	case *janitorv1.VerifyRegistryResponse_Progress:
		if c.term.Width > 0 {
			_, err = fmt.Fprintf(c.errOut, "%d of %d blobs, %s\n", e.Progress.GetBlobs(), e.Progress.GetTotalBlobs(), human.Size(e.Progress.GetSizeBytes()))
		}
	case *janitorv1.VerifyRegistryResponse_Finished:
		p := e.Finished
		_, err = fmt.Fprintf(c.out, "%d manifests and %d blobs were verified, %s read: %d defects\n", p.GetManifests(), p.GetBlobs(), human.Size(p.GetSizeBytes()), p.GetDefects())
	}
	return err
}
