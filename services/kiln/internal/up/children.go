package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kilnbuild/kiln/services/kiln/internal/supervise"
)

// childGrace is how long a child may take to end once the services have.
const childGrace = 10 * time.Second

func (r *runner) newRegistry(environ []string) *supervise.Child {
	env := childEnv(environ, "registry", r.paths.tmp())
	if !exportsTraces(environ) {
		env = append(env, "OTEL_TRACES_EXPORTER=none") // It would try localhost unasked.
	}
	client := &http.Client{Timeout: 2 * time.Second}
	url := "http://" + r.addrs.registry + "/v2/"
	return supervise.New(supervise.Spec{
		Name: "registry", Path: r.bins.registry, Args: []string{"serve", r.paths.config("registry.yml")},
		Env: env, LogPath: r.paths.log("registry"),
		Ready: func(ctx context.Context) error { return get(ctx, client, url) },
		Grace: childGrace, Backoff: supervise.DefaultBackoff, Report: r.say,
	})
}

func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 4<<10)) // So that the connection is used again.
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

func (r *runner) newBuildkitd(environ []string) *supervise.Child {
	// An exporter that buildkitd does not know must not keep it from starting.
	env := append(childEnv(environ, "buildkitd", r.paths.tmp()), "OTEL_IGNORE_ERROR=true")
	env = append(env, stepLogs(environ)...)
	env = append(env, proxyEnv(environ, r.addrs)...)
	return supervise.New(supervise.Spec{
		Name: "buildkitd", Path: r.bins.buildkitd, Args: []string{"--config", r.paths.config("buildkitd.toml")},
		Env: env, LogPath: r.paths.log("buildkitd"),
		Prepare: func(ctx context.Context) error { return removeLeftovers(ctx, r.paths, r.bins.runc) },
		Ready:   func(ctx context.Context) error { return serving(ctx, "unix://"+r.paths.buildkitSocket()) },
		Grace:   childGrace, Backoff: supervise.DefaultBackoff, Report: r.say,
	})
}

// serving asks a gRPC server for its health, over a connection of its own: one
// that is kept would wait before it tries again.
func serving(ctx context.Context, target string) error {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	health, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if health.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("it is %s", health.GetStatus())
	}
	return nil
}

// childEnv is the environment of a child. Its service name in traces is its own,
// its temporary files are in the data directory, where what a crash leaves
// mounted is found again, and no variable meant for kiln itself reaches it.
func childEnv(environ []string, name, tmp string) []string {
	env := []string{"OTEL_SERVICE_NAME=" + name, "TMPDIR=" + tmp}
	path := systemPath
	for _, variable := range environ {
		key, value, _ := strings.Cut(variable, "=")
		switch {
		case key == "PATH":
			path = value + ":" + systemPath
		case key == "OTEL_SERVICE_NAME", key == "TMPDIR", key == "NOTIFY_SOCKET", strings.HasPrefix(key, "LISTEN_"):
		case strings.HasPrefix(key, "REGISTRY_"): // Would override the registry's configuration.
		default:
			env = append(env, variable)
		}
	}
	return append(env, "PATH="+path)
}

// stepLogs bounds what buildkitd keeps of each stream of a step to 32 MiB, at any
// speed. Its own bounds, 2 MiB and 200 KiB a second, cut the logs of compilers and
// test suites; none at all would let a loop that prints fill its memory, for it holds
// the logs of running builds there. The user's variables win.
func stepLogs(environ []string) []string {
	limits := []string{"BUILDKIT_STEP_LOG_MAX_SIZE=33554432", "BUILDKIT_STEP_LOG_MAX_SPEED=-1"}
	return slices.DeleteFunc(limits, func(limit string) bool {
		key, _, _ := strings.Cut(limit, "=")
		return slices.ContainsFunc(environ, func(variable string) bool { return strings.HasPrefix(variable, key+"=") })
	})
}

// exportsTraces says whether the environment asks for traces.
func exportsTraces(environ []string) bool {
	for _, variable := range environ {
		if strings.HasPrefix(variable, "OTEL_TRACES_EXPORTER=") || strings.HasPrefix(variable, "OTEL_EXPORTER_OTLP_") {
			return true
		}
	}
	return false
}
