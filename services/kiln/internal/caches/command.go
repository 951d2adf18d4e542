// Package caches is `kiln cache`: what the build caches hold, what the policy has in
// mind, and its doing.
package caches

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

// Command is `kiln cache`.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cache",
		Short: "See what the build caches hold, plan and prune, pin, verify, and set the policy",
		Long: `Shows the caches of the buildkitd daemons, and the type=local directories, that a cache
manager keeps, and acts on them. By itself the cache manager keeps them to its policy: what was unused for 48
hours goes, then the least recently used until 100 GB are left, unless it was told
another one.

Where a cache is named with --cache, it is the name of a daemon or the path of a
directory, as configured; without it, all caches are meant.`,
		Args: cobra.NoArgs,
	}
	conn := &connect.Flags{To: connect.CacheManager}
	conn.Add(cmd.PersistentFlags())
	for _, sub := range []func(*connect.Flags) *cobra.Command{
		duCommand, lsCommand, planCommand, pruneCommand, runsCommand, pinCommand, unpinCommand, pinsCommand, policyCommand, verifyCommand,
	} {
		cmd.AddCommand(sub(conn))
	}
	return cmd
}

// call is one run of a command: the cache manager, and where to write.
type call struct {
	api    cachemanagerv1.CacheManagerServiceClient
	in     io.Reader
	out    io.Writer
	errOut io.Writer
	term   table.Terminal // of out
	now    time.Time
	args   string // flags of the connection, for commands that messages tell
}

// runE makes what cobra runs: with a client, and with errors that a person can read.
func runE(conn *connect.Flags, run func(ctx context.Context, c *call, args []string) error) func(*cobra.Command, []string) error {
	return conn.RunE(func(cmd *cobra.Command, cc *grpc.ClientConn, args []string) error {
		c := &call{
			api: cachemanagerv1.NewCacheManagerServiceClient(cc), in: cmd.InOrStdin(), out: cmd.OutOrStdout(), errOut: cmd.ErrOrStderr(),
			term: table.TerminalOf(cmd.OutOrStdout()), now: time.Now(), args: conn.Args(),
		}
		return run(cmd.Context(), c, args)
	})
}

// addCaches adds --cache to a command.
func addCaches(cmd *cobra.Command, names *[]string) {
	cmd.Flags().StringSliceVar(names, "cache", nil, "only these `caches`: names of daemons, or paths of directories (default: all)")
}

// refs are the caches of those names: what begins with "/" is a directory.
func refs(names []string) []*cachemanagerv1.CacheRef {
	var all []*cachemanagerv1.CacheRef
	for _, name := range names {
		if strings.HasPrefix(name, "/") {
			all = append(all, &cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Directory{Directory: name}})
		} else {
			all = append(all, &cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Daemon{Daemon: name}})
		}
	}
	return all
}

// place is the name of a cache.
func place(ref *cachemanagerv1.CacheRef) string {
	if ref.GetDirectory() != "" {
		return ref.GetDirectory()
	}
	return ref.GetDaemon()
}

// word is the name of a value of an enum as people write it: "exec_cache_mount".
func word(value interface{ String() string }, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(value.String(), prefix))
}

func typeWord(t cachemanagerv1.RecordType) string { return word(t, "RECORD_TYPE_") }
