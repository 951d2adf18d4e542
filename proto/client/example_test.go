package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/kilnbuild/kiln/proto/client"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	errorsv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/errors/v1"
)

// A directory is uploaded, built and pushed.
func Example() {
	ctx := context.Background()
	c, err := client.Dial("127.0.0.1:50051")
	if err != nil {
		slog.Error("the options are wrong", "error", err)
		return
	}
	defer c.Close() //nolint:errcheck // the calls have told their errors

	up, err := c.UploadDir(ctx, "web", "./web")
	if err != nil {
		slog.Error("the context was not uploaded", "error", err, "remedy", client.Remedy(err))
		return
	}
	outcome, err := c.Build(ctx, &builderv1.BuildSpec{
		Project: "web",
		Context: &builderv1.Context{Kind: &builderv1.Context_Uploaded{Uploaded: &builderv1.UploadedContext{Digest: up.GetDigest()}}},
		Outputs: []*builderv1.Output{{Kind: &builderv1.Output_Registry{Registry: &builderv1.RegistryOutput{
			Tags: []string{"localhost:5000/web:1.2"},
		}}}},
	}, nil)
	if err != nil {
		slog.Error("no image", "error", err)
		return
	}
	fmt.Println(outcome.GetOutputs()[0].GetDigest())
}

// Events are shown as they come; the watch outlives a broken connection.
func ExampleClient_Watch() {
	var c *client.Client // from Dial
	outcome, err := c.Watch(context.Background(), "the build's id", 0, func(event *builderv1.BuildEvent) error {
		if log := event.GetLog(); log != nil {
			_, err := os.Stderr.Write(log.GetData())
			return err
		}
		return nil
	})
	fmt.Println(outcome.GetState(), err)
}

// A service that may crash names its build by an id of its own, so that it finds
// the same build when it comes back.
func ExampleClient_Start() {
	var c *client.Client // from Dial
	rec, err := c.Start(context.Background(), &builderv1.BuildSpec{}, client.RequestID("deploy-4711"))
	fmt.Println(rec.GetId(), rec.GetState(), err)
}

// What failed, whose business it is, and whether to try again.
func ExampleBuildError() {
	decide := func(err error) string {
		failed, ok := errors.AsType[*client.BuildError](err)
		switch {
		case err == nil:
			return "built"
		case !ok:
			return "the call failed: " + client.Reason(err)
		case failed.Class == errorsv1.FailureClass_FAILURE_CLASS_INFRASTRUCTURE:
			return "try again later"
		default:
			return fmt.Sprintf("tell the author: %s (%s)", failed.Message, failed.Reason)
		}
	}
	fmt.Println(decide(&client.BuildError{
		Reason: "STEP_FAILED", Class: errorsv1.FailureClass_FAILURE_CLASS_USER, Message: `process "make" did not complete`,
	}))
	fmt.Println(decide(&client.BuildError{
		Reason: "REGISTRY_UNAVAILABLE", Class: errorsv1.FailureClass_FAILURE_CLASS_INFRASTRUCTURE,
	}))
	// Output:
	// tell the author: process "make" did not complete (STEP_FAILED)
	// try again later
}
