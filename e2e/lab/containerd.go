package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// StartContainerd runs a containerd of the lab's own, and returns the path of its socket.
func (l *Lab) StartContainerd(ctx context.Context) (socket string, err error) {
	dir, err := l.subdir("containerd")
	if err != nil {
		return "", err
	}
	socket = filepath.Join(dir, "c.sock")
	config := filepath.Join(dir, "config.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\n  address = %q\n[ttrpc]\n  address = %q\n",
		filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, socket+".ttrpc")
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("lab: %w", err)
	}
	l.OnClose("containerd state", func(ctx context.Context) error { return Clean(ctx, dir) })
	p, err := l.Run(Command{Name: "containerd", Path: "/usr/bin/env", Args: []string{"containerd", "--config", config}, Env: OTLPEnv("", "")})
	if err != nil {
		return "", err
	}
	for until := time.Now().Add(startTimeout); time.Now().Before(until); {
		if _, err := os.Stat(socket); err == nil {
			return socket, nil
		}
		select {
		case <-p.Done():
			return "", fmt.Errorf("lab: containerd ended: %w\n%s", p.exitError(), p.Tail(20))
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return "", fmt.Errorf("lab: containerd does not listen\n%s", p.Tail(20))
}
