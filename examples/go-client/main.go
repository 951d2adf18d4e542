// Command go-client is what a service does that has Kiln build its images: it
// sends a directory, builds and pushes it, and prints the digest.
//
//	go run . -tag localhost:5000/web:1 ./web
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

func main() {
	builder := flag.String("builder", "127.0.0.1:50051", "address of the builder")
	project := flag.String("project", "example", "project of the build")
	tag := flag.String("tag", "", "reference to push to; none: the result stays in the build cache")
	id := flag.String("request-id", "", "name of the build: calling again with the same one is the same build")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: go-client [flags] DIRECTORY")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	c, err := client.Dial(*builder)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	err = publish(ctx, c, request{dir: flag.Arg(0), project: *project, tag: *tag, id: *id}, os.Stdout)
	if err := c.Close(); err != nil {
		slog.Error("closing the connection", "error", err)
	}
	if err != nil {
		slog.Error("no image", "error", err, "do", advice(err))
		os.Exit(1)
	}
}

type request struct{ dir, project, tag, id string }

// publish builds a directory and writes the digest of what it made. Steps go to
// the log.
func publish(ctx context.Context, c *client.Client, r request, out io.Writer) error {
	up, err := c.UploadDir(ctx, r.project, r.dir)
	if err != nil {
		return fmt.Errorf("sending %s: %w", r.dir, err)
	}
	slog.InfoContext(ctx, "sent", "files", up.GetFiles(), "bytes", up.GetSizeBytes())
	spec := &builderv1.BuildSpec{
		Project: r.project,
		Context: &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: up.GetDigest()}}},
		// When it is not the build that fails but what it runs on.
		Retry: &builderv1.RetryPolicy{MaxAttempts: 3},
	}
	if r.tag != "" {
		spec.Outputs = []*builderv1.Output{{Kind: &builderv1.Output_Registry{Registry: &builderv1.RegistryOutput{Tags: []string{r.tag}}}}}
	}
	var opts []client.BuildOption
	if r.id != "" {
		opts = append(opts, client.RequestID(r.id))
	}
	outcome, err := c.Build(ctx, spec, show, opts...)
	if err != nil {
		return err
	}
	for _, output := range outcome.GetOutputs() {
		if _, err := fmt.Fprintln(out, output.GetDigest()); err != nil {
			return err
		}
	}
	return nil
}

// show logs what a person wants to know while a build runs.
func show(event *builderv1.BuildEvent) error {
	switch kind := event.GetKind().(type) {
	case *builderv1.BuildEvent_Queued:
		slog.Info("waiting", "place", kind.Queued.GetPosition(), "reason", kind.Queued.GetReason())
	case *builderv1.BuildEvent_Step:
		if kind.Step.GetState() != builderv1.StepState_STEP_STATE_PROGRESS {
			slog.Info("step", "name", kind.Step.GetName(), "state", kind.Step.GetState())
		}
	case *builderv1.BuildEvent_Retry:
		slog.Warn("trying again", "attempt", kind.Retry.GetAttempt(), "after", kind.Retry.GetError().GetMessage())
	}
	return nil
}

// advice says who has to do something about an error.
func advice(err error) string {
	failed, ok := errors.AsType[*client.BuildError](err)
	if !ok { // of a call
		return client.Remedy(err)
	}
	switch failed.Class {
	case errorsv1.FailureClass_FAILURE_CLASS_USER:
		return "tell the author of the Dockerfile: " + failed.Remedy
	case errorsv1.FailureClass_FAILURE_CLASS_POLICY:
		return "ask the operator of the builder: " + failed.Remedy
	case errorsv1.FailureClass_FAILURE_CLASS_INFRASTRUCTURE:
		return "try again later: " + failed.Remedy
	default:
		return failed.Remedy
	}
}
