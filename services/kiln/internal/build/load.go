package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"

	"github.com/moby/buildkit/session/filesync"
)

// dockerLoad streams an image into `docker load`, without a file in between. Name is
// the context of the docker command; empty: its own choice.
func dockerLoad(ctx context.Context, name string, stderr io.Writer) (filesync.FileOutputFunc, error) {
	docker, err := exec.LookPath("docker")
	if err != nil {
		return nil, errors.New("it needs the docker command, which is not in PATH; use --push, or --output type=docker,dest=FILE")
	}
	args := []string{"load"}
	if name != "" {
		args = []string{"--context", name, "load"}
	}
	return func(map[string]string) (io.WriteCloser, error) {
		cmd := exec.CommandContext(ctx, docker, args...)
		cmd.Stdout, cmd.Stderr = stderr, stderr
		stdin, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, fmt.Errorf("docker load: %w", err)
		}
		return &loading{WriteCloser: stdin, cmd: cmd}, nil
	}, nil
}

type loading struct {
	io.WriteCloser
	cmd *exec.Cmd
}

// Close ends the stream and waits for what docker says of it.
func (l *loading) Close() error {
	closed := l.WriteCloser.Close()
	if err := l.cmd.Wait(); err != nil {
		return fmt.Errorf("docker load: %w; check that the Docker Engine runs", err)
	}
	return closed
}
