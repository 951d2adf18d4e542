package builds

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/secrets"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
)

func cancelCommand(conn *connect.Flags) *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID...",
		Short: "Cancel builds",
		Long: `Cancels builds that wait or run: their solves stop in the daemon. A build that has
ended stays as it is, which is no error.`,
		Example: `  kiln builds cancel 4f3c1a2e
  kiln builds ls --state queued --format json | jq -r .id | xargs kiln builds cancel`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("cancel needs the ID of a build; `kiln builds ls` shows the IDs")
			}
			return nil
		},
		ValidArgsFunction: completeBuilds(conn),
		RunE: runE(conn, func(ctx context.Context, c *call, args []string) error {
			var errs []error
			for _, id := range args {
				errs = append(errs, c.conn.Explain(c.cancel(ctx, id)))
			}
			return errors.Join(errs...)
		}),
	}
}

func (c *call) cancel(ctx context.Context, id string) error {
	b, err := c.record(ctx, id)
	if err != nil {
		return err
	}
	text := "build %s had ended already: %s\n"
	if !ended(b) {
		res, err := c.API().CancelBuild(ctx, &builderv1.CancelBuildRequest{BuildId: b.GetId()})
		if err != nil {
			return err
		}
		b, text = res.GetBuild(), "build %s is %s\n"
	}
	_, err = fmt.Fprintf(c.out, text, b.GetId(), stateWord(b.GetState()))
	return err
}

type retryOptions struct {
	watchOptions
	secrets []string
	ssh     []string
	detach  bool
}

func retryCommand(conn *connect.Flags) *cobra.Command {
	o := &retryOptions{}
	cmd := &cobra.Command{
		Use:   "retry ID",
		Short: "Build the same again",
		Long: `Starts a new build from the request of one that has ended, and watches it. Only builds
of kiln build --detach and of the Build API can be retried: kiln build, buildctl and
docker buildx keep the request to themselves. Run their command again. Secrets and SSH
keys are not kept: give those of the first build again.

` + exitHelp,
		Example: `  kiln builds retry 4f3c1a2e
  kiln builds retry 4f3c1a2e --secret id=npmrc,src=$HOME/.npmrc --detach`,
		Args:              oneID,
		ValidArgsFunction: completeBuild(conn),
		RunE:              runE(conn, func(ctx context.Context, c *call, args []string) error { return c.retry(ctx, args[0], o) }),
	}
	cmd.Flags().StringArrayVar(&o.secrets, "secret", nil, "secret, id=ID,src=FILE or id=ID,env=VARIABLE (repeatable)")
	cmd.Flags().StringArrayVar(&o.ssh, "ssh", nil, "SSH keys, ID=KEY[,KEY] (repeatable)")
	cmd.Flags().BoolVar(&o.detach, "detach", false, "print the new build's ID, and do not wait for it")
	addWatchFlags(cmd, &o.watchOptions)
	return cmd
}

func (c *call) retry(ctx context.Context, id string, o *retryOptions) error {
	req := &builderv1.RetryBuildRequest{}
	var err error
	if req.Secrets, err = secrets.Read(o.secrets); err != nil {
		return err
	}
	if req.SshKeys, err = secrets.ReadSSH(o.ssh); err != nil {
		return err
	}
	b, err := c.record(ctx, id)
	if err != nil {
		return err
	}
	req.BuildId = b.GetId()
	again, err := c.Retry(ctx, req)
	switch {
	case err != nil:
		return err
	case !o.detach:
		return c.watch(ctx, again.GetId(), &o.watchOptions)
	case o.format == "json":
		return show.JSON(c.out, again)
	default:
		return PrintStarted(c.out, c.errOut, again.GetId())
	}
}
