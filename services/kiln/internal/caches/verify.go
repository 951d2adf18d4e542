package caches

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/config"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/human"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

func verifyCommand(conn *connect.Flags) *cobra.Command {
	var rate, format string
	var orphans bool
	cmd := &cobra.Command{
		Use:   "verify [DIRECTORY...]",
		Short: "Read all blobs of type=local directories, and say what is wrong",
		Long: `Reads all blobs of the type=local directories that the cache manager keeps, compares
them with their digests, and says what is corrupt, missing or foreign. Nothing is
changed: kiln clean-cache repairs. It ends with an error when a cache cannot be imported
whole.

With --format json each line is an event, a kiln.cachemanager.v1.VerifyCacheResponse.`,
		Example: `  kiln cache verify
  kiln cache verify /var/cache/buildkit-cache --max-rate 50MB
  kiln cache verify --orphans --format json`,
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			req := &cachemanagerv1.VerifyCacheRequest{Directories: args}
			if rate != "" {
				bytes, err := config.ParseSize(rate)
				if err != nil {
					return fmt.Errorf("--max-rate: %w", err)
				}
				req.MaxBytesPerSecond = bytes
			}
			return c.verify(ctx, req, format, orphans)
		}),
	}
	cmd.Flags().StringVar(&rate, "max-rate", "", "most `bytes` to read in a second, such as 50MB (default: no bound)")
	cmd.Flags().BoolVar(&orphans, "orphans", false, "also show what nothing reaches, which the next run collects")
	show.AddFormat(cmd, &format, "text, or json: one event a line")
	return cmd
}

func (c *call) verify(ctx context.Context, req *cachemanagerv1.VerifyCacheRequest, format string, orphans bool) error {
	stream, err := c.api.VerifyCache(ctx, req)
	if err != nil {
		return err
	}
	broken := 0
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		d := event.GetDefect()
		if breaks(d) {
			broken++
		}
		switch {
		case format == "json":
			err = show.JSON(c.out, event)
		case d != nil && (orphans || !passes(d)):
			err = c.tellDefect("", d)
		case event.GetFinished() != nil:
			p := event.GetFinished()
			if p.GetBlobs() == 0 && p.GetDefects() == 0 {
				_, err = fmt.Fprintln(c.out, "nothing to verify: the cache manager keeps no type=local directory that holds blobs")
				break
			}
			_, err = fmt.Fprintf(c.out, "read %d blobs, %s: %d defects\n", p.GetBlobs(), human.Size(p.GetSizeBytes()), p.GetDefects())
		}
		if err != nil {
			return err
		}
	}
	if broken > 0 {
		return fault.New(fault.FailedPrecondition, "", fmt.Sprintf("%d defects keep caches from being imported whole", broken), "kiln clean-cache --force repairs")
	}
	return nil
}

// breaks reports whether a cache cannot be imported whole because of a defect.
func breaks(d *cachemanagerv1.Defect) bool {
	switch d.GetKind() {
	case cachemanagerv1.DefectKind_DEFECT_KIND_MISSING_BLOB, cachemanagerv1.DefectKind_DEFECT_KIND_BAD_INDEX, cachemanagerv1.DefectKind_DEFECT_KIND_BAD_MANIFEST:
		return true
	case cachemanagerv1.DefectKind_DEFECT_KIND_CORRUPT_BLOB:
		return true // also an orphan: the next export takes it as it is
	default:
		return false
	}
}

// passes reports whether a defect goes by itself.
func passes(d *cachemanagerv1.Defect) bool {
	return d.GetKind() == cachemanagerv1.DefectKind_DEFECT_KIND_ORPHAN || d.GetKind() == cachemanagerv1.DefectKind_DEFECT_KIND_ABORTED_INGEST
}

func (c *call) tellDefect(did string, d *cachemanagerv1.Defect) error {
	text := fmt.Sprintf("%s%s  %s  %s", did, c.term.Paint(table.Red, word(d.GetKind(), "DEFECT_KIND_")), table.Clean(d.GetDirectory()), table.Clean(d.GetMessage()))
	if did == "" {
		text += ": " + d.GetRemedy()
	}
	_, err := fmt.Fprintln(c.out, text)
	return err
}
