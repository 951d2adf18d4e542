package builds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/pkg/human"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

func artifactsCommand(conn *connect.Flags) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "artifacts",
		Short: "List and fetch what a build has kept",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(artifactsLsCommand(conn), artifactsGetCommand(conn))
	return cmd
}

func artifactsLsCommand(conn *connect.Flags) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "ls ID",
		Short: "List the artifacts of a build",
		Long: `Lists the archives and trees that a build has kept. With --format json each line
is a kiln.builder.v1.OutputResult.`,
		Example:           `  kiln builds artifacts ls 4f3c1a2e`,
		Args:              oneID,
		ValidArgsFunction: completeBuild(conn),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			b, err := c.record(ctx, args[0])
			if err != nil {
				return err
			}
			return c.artifacts(b, format)
		}),
	}
	show.AddFormat(cmd, &format, "text, or json: one object a line")
	return cmd
}

func (c *call) artifacts(b *builderv1.BuildRecord, format string) error {
	all := artifactsOf(b)
	if format == "json" {
		for _, a := range all {
			if err := show.JSON(c.out, a); err != nil {
				return err
			}
		}
		return nil
	}
	if len(all) == 0 {
		_, err := fmt.Fprintln(c.errOut, noArtifacts(b))
		return err
	}
	t := table.Table{Header: []string{"ARTIFACT", "SIZE", "TYPE", "DIGEST"}, GiveWay: 2}
	for _, a := range all {
		t.Add(table.Cell{Text: a.GetArtifact(), Style: table.Bold}, table.Cell{Text: human.Size(a.GetSizeBytes())}, table.Cell{Text: a.GetMediaType()}, table.Cell{Text: a.GetDigest()})
	}
	return t.Write(c.out, c.term)
}

func artifactsOf(b *builderv1.BuildRecord) []*builderv1.OutputResult {
	var all []*builderv1.OutputResult
	for _, out := range b.GetOutcome().GetOutputs() {
		if out.GetArtifact() != "" {
			all = append(all, out)
		}
	}
	return all
}

func noArtifacts(b *builderv1.BuildRecord) string {
	if !ended(b) {
		return fmt.Sprintf("build %s has not ended: `kiln builds watch %s` waits for it", b.GetId(), b.GetId())
	}
	return fmt.Sprintf("build %s (%s) has kept no artifacts: its request needs an archive or a local output", b.GetId(), stateWord(b.GetState()))
}

func artifactsGetCommand(conn *connect.Flags) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "get ID [ARTIFACT]",
		Short: "Fetch an artifact of a build",
		Long: `Fetches an artifact into a file, which is complete or not there: what came before
a break is kept beside it, and the same command goes on from there. ARTIFACT may be
left out when the build has one only.`,
		Example: `  kiln builds artifacts get 4f3c1a2e
  kiln builds artifacts get 4f3c1a2e image.tar -o web.tar
  kiln builds artifacts get 4f3c1a2e image.tar -o - | docker load`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 1 || len(args) > 2 {
				return fmt.Errorf("get needs the ID of a build and the name of an artifact, and got %d arguments; `kiln builds artifacts ls ID` shows the names", len(args))
			}
			return nil
		},
		ValidArgsFunction: completeArtifact(conn),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			b, err := c.record(ctx, args[0])
			if err != nil {
				return err
			}
			artifact, err := choose(b, args[1:])
			if err != nil {
				return err
			}
			if output == "-" {
				return c.pipe(ctx, b.GetId(), artifact)
			}
			if output == "" {
				output = artifact.GetArtifact()
			}
			return c.fetch(ctx, b.GetId(), artifact, output)
		}),
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`file` to write, or - for standard output (default: the artifact's name)")
	return cmd
}

// choose returns the artifact that is named, or the only one.
func choose(b *builderv1.BuildRecord, name []string) (*builderv1.OutputResult, error) {
	all := artifactsOf(b)
	if len(all) == 0 {
		return nil, fault.New(fault.NotFound, "NOT_FOUND", noArtifacts(b), "")
	}
	var names []string
	for _, a := range all {
		if len(name) == 1 && a.GetArtifact() == name[0] {
			return a, nil
		}
		names = append(names, a.GetArtifact())
	}
	if len(name) == 0 && len(all) == 1 {
		return all[0], nil
	}
	text := "the build has several artifacts"
	if len(name) == 1 {
		text = fmt.Sprintf("the build has no artifact %q", name[0])
	}
	return nil, fault.New(fault.InvalidArgument, "", text, "name one of "+strings.Join(names, ", "))
}

// pipe writes an artifact to standard output.
func (c *call) pipe(ctx context.Context, id string, artifact *builderv1.OutputResult) error {
	n, err := c.Download(ctx, id, artifact.GetArtifact(), c.out)
	if err != nil {
		return err
	}
	return whole(artifact, n)
}

// fetch writes an artifact to a file. What an earlier fetch has left beside it is
// not fetched again.
func (c *call) fetch(ctx context.Context, id string, artifact *builderv1.OutputResult, path string) (err error) {
	part := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+short(id)+".part")
	f, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // an artifact is no secret
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreClosed(f.Close())) }()
	had, err := resume(f, artifact.GetSizeBytes())
	if err != nil {
		return err
	}
	n, err := c.DownloadFrom(ctx, id, artifact.GetArtifact(), had, f)
	if err != nil {
		return err
	}
	if err := whole(artifact, had+n); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	if err := errors.Join(f.Sync(), f.Close(), os.Rename(part, path)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.errOut, "%s: %s\n", path, human.Size(artifact.GetSizeBytes()))
	return err
}

// resume puts a file's place behind what it has, and empties one that has more
// than it can.
func resume(f *os.File, most int64) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if info.Size() > most {
		return 0, f.Truncate(0)
	}
	return f.Seek(0, io.SeekEnd)
}

// whole checks that as many bytes came as the build has kept.
func whole(artifact *builderv1.OutputResult, got int64) error {
	if want := artifact.GetSizeBytes(); got != want {
		return fault.New(fault.Internal, "", fmt.Sprintf("%s has %d bytes, and %d came", artifact.GetArtifact(), want, got), "fetch it again")
	}
	return nil
}

func ignoreClosed(err error) error {
	if errors.Is(err, fs.ErrClosed) {
		return nil
	}
	return err
}
