package caches

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/human"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

// CleanCommand is `kiln clean-cache`.
func CleanCommand() *cobra.Command {
	var caches []string
	var format string
	req := &cachemanagerv1.CleanCacheRequest{}
	conn := &connect.Flags{To: connect.CacheManager}
	cmd := &cobra.Command{
		Use:   "clean-cache",
		Short: "Repair the type=local cache directories, or empty caches",
		Long: `Repairs the type=local directories that the cache manager keeps: blobs that are corrupt
are taken out, caches lose what they miss, and what is good stays. With --all it empties
caches instead: the directories or, with --cache, also daemons. What is in use, leased or
pinned stays all the same.

Without --force nothing is changed: it only says what it would do. With --format json
each line is an event, a kiln.cachemanager.v1.CleanCacheResponse.`,
		Example: `  kiln clean-cache
  kiln clean-cache --force
  kiln clean-cache --all --cache local --force`,
		Args: cobra.NoArgs,
		RunE: runE(conn, func(ctx context.Context, c *call, _ []string) error {
			req.Caches = refs(caches)
			return c.clean(ctx, req, format)
		}),
	}
	conn.Add(cmd.Flags())
	cmd.Flags().StringSliceVar(&caches, "cache", nil, "only these `caches`: paths of directories, or with --all also names of daemons (default: all directories)")
	cmd.Flags().BoolVar(&req.All, "all", false, "empty the caches, in place of repairing them")
	cmd.Flags().BoolVarP(&req.Force, "force", "f", false, "really do it")
	show.AddFormat(cmd, &format, "text, or json: one event a line")
	return cmd
}

func (c *call) clean(ctx context.Context, req *cachemanagerv1.CleanCacheRequest, format string) error {
	stream, err := c.api.CleanCache(ctx, req)
	if err != nil {
		return err
	}
	repaired := 0
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if event.GetRepaired() != nil {
			repaired++
		}
		if format == "json" {
			err = show.JSON(c.out, event)
		} else {
			err = c.tellClean(event, req, repaired)
		}
		if err != nil {
			return err
		}
		if run := event.GetFinished(); run != nil {
			if err := c.failedRun(run); err != nil {
				return err
			}
		}
	}
}

func (c *call) tellClean(event *cachemanagerv1.CleanCacheResponse, req *cachemanagerv1.CleanCacheRequest, repaired int) error {
	switch e := event.GetEvent().(type) {
	case *cachemanagerv1.CleanCacheResponse_Repaired:
		did := "would repair "
		if req.GetForce() {
			did = "repaired "
		}
		return c.tellDefect(did, e.Repaired)
	case *cachemanagerv1.CleanCacheResponse_Removed:
		_, err := fmt.Fprintf(c.out, "%s %s  %s  %s\n", c.term.Paint(table.Red, "remove"), place(e.Removed.GetRecord().GetCache()),
			e.Removed.GetRecord().GetId(), human.Size(e.Removed.GetFreesBytes()))
		return err
	case *cachemanagerv1.CleanCacheResponse_Finished:
		text := summary(e.Finished)
		if !req.GetAll() {
			text = fmt.Sprintf("%d defects repaired (run %s)", repaired, e.Finished.GetId())
			if !req.GetForce() {
				text = fmt.Sprintf("%d defects would be repaired; --force really does", repaired)
			}
		}
		_, err := fmt.Fprintln(c.out, text)
		return err
	}
	return nil
}
