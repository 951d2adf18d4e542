package builds

import (
	"context"
	"time"

	"github.com/kilnbuild/kiln/pkg/human"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
)

const (
	// completeWithin is how long a person waits for the shell.
	completeWithin = 2 * time.Second
	// completeFrom is of how many builds the shell completes the ids.
	completeFrom = 100
)

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// ask asks the builder for what a completion needs. A builder that does not
// answer completes nothing.
func ask(conn *connect.Flags, cmd *cobra.Command, question func(context.Context, *client.Client) []string) ([]string, cobra.ShellCompDirective) {
	api, err := conn.Dial(client.WithPatience(0))
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer func() { _ = api.Close() }() // nothing is left to lose
	ctx, cancel := context.WithTimeout(cmd.Context(), completeWithin)
	defer cancel()
	return question(ctx, api), cobra.ShellCompDirectiveNoFileComp
}

func recentBuilds(ctx context.Context, api *client.Client) []*builderv1.BuildRecord {
	res, err := api.API().ListBuilds(ctx, &builderv1.ListBuildsRequest{PageSize: completeFrom})
	if err != nil {
		return nil
	}
	return res.GetBuilds()
}

// described are the ids of builds, each with what a person knows it by.
func described(builds []*builderv1.BuildRecord, now time.Time) []string {
	var all []string
	for _, b := range builds {
		all = append(all, cobra.CompletionWithDesc(b.GetId(), stateWord(b.GetState())+" "+b.GetProject()+" "+show.Ago(b.GetCreateTime(), now)))
	}
	return all
}

// completeBuilds completes any number of ids.
func completeBuilds(conn *connect.Flags) completion {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return ask(conn, cmd, func(ctx context.Context, api *client.Client) []string {
			return described(recentBuilds(ctx, api), time.Now())
		})
	}
}

// completeBuild completes one id.
func completeBuild(conn *connect.Flags) completion {
	several := completeBuilds(conn)
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return several(cmd, args, typed)
	}
}

// completeArtifact completes an id, and then the name of an artifact.
func completeArtifact(conn *connect.Flags) completion {
	build := completeBuild(conn)
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) != 1 {
			return build(cmd, args, typed)
		}
		return ask(conn, cmd, func(ctx context.Context, api *client.Client) []string {
			b, err := (&call{Client: api}).record(ctx, args[0])
			if err != nil {
				return nil
			}
			var names []string
			for _, a := range artifactsOf(b) {
				names = append(names, cobra.CompletionWithDesc(a.GetArtifact(), human.Size(a.GetSizeBytes())))
			}
			return names
		})
	}
}

// completeProject completes the projects of recent builds.
func completeProject(cmd *cobra.Command, conn *connect.Flags) {
	// An error is that the flag does not exist, which the first run of a test shows.
	_ = cmd.RegisterFlagCompletionFunc("project", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return ask(conn, cmd, func(ctx context.Context, api *client.Client) []string {
			seen := map[string]bool{}
			var names []string
			for _, b := range recentBuilds(ctx, api) {
				if !seen[b.GetProject()] {
					seen[b.GetProject()] = true
					names = append(names, b.GetProject())
				}
			}
			return names
		})
	})
}
