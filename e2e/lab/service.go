package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// Service is one of the three services, run as its binary.
type Service struct {
	*Process
	// Addr is the address of its gRPC server: "host:port", or "unix:///path".
	Addr string
	// HTTPAddr is the address of its HTTP server, host:port.
	HTTPAddr string
	// State is the directory of the builder's state. Empty for the others.
	State string

	lab     *Lab
	command Command
}

// Start starts a service again that has ended, with the same configuration,
// addresses and state but without a failpoint, and waits until it serves.
func (s *Service) Start(ctx context.Context) error { return s.start(ctx, s.command) }

// StartFailing does as Start, with a failpoint; see ServiceOptions. A service that
// comes to it before it serves is an error.
func (s *Service) StartFailing(ctx context.Context, failpoint string) error {
	c, err := withFailpoint(s.command, failpoint)
	if err != nil {
		return err
	}
	return s.start(ctx, c)
}

func (s *Service) start(ctx context.Context, c Command) error {
	p, err := s.lab.Run(c)
	if err != nil {
		return err
	}
	s.Process = p
	return WaitServing(ctx, p, s.Addr)
}

// withFailpoint is a command of the binary that has failpoints, with one set.
func withFailpoint(c Command, failpoint string) (Command, error) {
	path, err := Bin(filepath.Join("failpoints", filepath.Base(c.Path)))
	c.Path, c.Env = path, append(slices.Clone(c.Env), "KILN_FAILPOINT="+failpoint)
	return c, err
}

// ServiceOptions says how to run a service.
type ServiceOptions struct {
	// Env is added to the environment; see OTLPEnv.
	Env []string
	// ResolvConf is what it takes for /etc/resolv.conf; see Command.
	ResolvConf string
	// Unhealthy: come back as soon as the service answers, also NOT_SERVING.
	Unhealthy bool
	// Failpoint is where the service kills itself, "name" or "name:3" for the
	// third hit: see pkg/failpoint.
	Failpoint string
	// Clock moves the time that the service counts ages to: see pkg/clock.
	Clock time.Duration
}

// StartBuilder runs kiln-builder with a configuration and waits until it serves.
// Listen addresses and a state directory that are not set are chosen.
func (l *Lab) StartBuilder(ctx context.Context, cfg *configv1.BuilderConfig, opts ServiceOptions) (*Service, error) {
	cfg = proto.CloneOf(cfg)
	if cfg.GetStateDir() == "" {
		dir, err := l.subdir("builder-state")
		if err != nil {
			return nil, err
		}
		cfg.StateDir = dir
	}
	s, err := l.startService(ctx, "kiln-builder", cfg, opts, func(s *configv1.ServerConfig) *configv1.ServerConfig {
		cfg.Server = withDefaults(cfg.GetServer(), s)
		return cfg.GetServer()
	})
	if s != nil {
		s.State = cfg.GetStateDir()
	}
	return s, err
}

// StartCacheManager runs kiln-cachemanager as StartBuilder runs the builder.
func (l *Lab) StartCacheManager(ctx context.Context, cfg *configv1.CacheManagerConfig, opts ServiceOptions) (*Service, error) {
	cfg = proto.CloneOf(cfg)
	if cfg.GetStateDir() == "" {
		dir, err := l.subdir("cachemanager-state")
		if err != nil {
			return nil, err
		}
		cfg.StateDir = dir
	}
	return l.startService(ctx, "kiln-cachemanager", cfg, opts, func(s *configv1.ServerConfig) *configv1.ServerConfig {
		cfg.Server = withDefaults(cfg.GetServer(), s)
		return cfg.GetServer()
	})
}

// StartJanitor runs kiln-janitor as StartBuilder runs the builder. Unless it is told
// otherwise, no run starts by itself, and runs do not wait long.
func (l *Lab) StartJanitor(ctx context.Context, cfg *configv1.JanitorConfig, opts ServiceOptions) (*Service, error) {
	cfg = proto.CloneOf(cfg)
	if cfg.GetStateDir() == "" {
		dir, err := l.subdir("janitor-state")
		if err != nil {
			return nil, err
		}
		cfg.StateDir = dir
	}
	if cfg.GetSchedule() == nil {
		cfg.Schedule = &configv1.ScheduleConfig{Cron: "off"}
	}
	if cfg.GetSettle() == nil {
		cfg.Settle = durationpb.New(100 * time.Millisecond)
	}
	return l.startService(ctx, "kiln-janitor", cfg, opts, func(s *configv1.ServerConfig) *configv1.ServerConfig {
		cfg.Server = withDefaults(cfg.GetServer(), s)
		return cfg.GetServer()
	})
}

// withDefaults returns a copy of the configured server with the addresses that
// it does not set taken from free.
func withDefaults(server, free *configv1.ServerConfig) *configv1.ServerConfig {
	merged := proto.CloneOf(free)
	proto.Merge(merged, server)
	return merged
}

// startService runs a service until it answers, on other ports when another
// process was faster on the chosen ones.
func (l *Lab) startService(ctx context.Context, bin string, cfg proto.Message, opts ServiceOptions,
	listen func(free *configv1.ServerConfig) *configv1.ServerConfig,
) (*Service, error) {
	path, err := Bin(bin)
	if err != nil {
		return nil, err
	}
	dir, err := l.subdir(bin)
	if err != nil {
		return nil, err
	}
	original := proto.Clone(cfg)
	for try := 1; ; try++ {
		proto.Reset(cfg)
		proto.Merge(cfg, original)
		s, err := l.tryService(ctx, path, dir, cfg, opts, listen)
		if err == nil {
			return s, nil
		}
		if s == nil || try == 3 || !strings.Contains(s.Output(), "in use") {
			return nil, err
		}
	}
}

func (l *Lab) tryService(ctx context.Context, path, dir string, cfg proto.Message, opts ServiceOptions,
	listen func(free *configv1.ServerConfig) *configv1.ServerConfig,
) (*Service, error) {
	grpcAddr, err1 := FreeAddr()
	httpAddr, err2 := FreeAddr()
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	server := listen(&configv1.ServerConfig{Listen: grpcAddr, HttpListen: httpAddr})
	// JSON is YAML, and it is the form that needs no further library.
	data, err := protojson.MarshalOptions{UseProtoNames: true, Multiline: true}.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	command := Command{
		Name: filepath.Base(dir), Path: path, Args: []string{"--config", file},
		Env: append(OTLPEnv("", ""), opts.Env...), ResolvConf: opts.ResolvConf,
	}
	if opts.Clock != 0 {
		if command.Path, err = Bin(filepath.Join("failpoints", filepath.Base(path))); err != nil {
			return nil, err
		}
		command.Env = append(command.Env, "KILN_CLOCK="+opts.Clock.String())
	}
	run := command
	if opts.Failpoint != "" {
		if run, err = withFailpoint(command, opts.Failpoint); err != nil {
			return nil, err
		}
	}
	p, err := l.Run(run)
	if err != nil {
		return nil, err
	}
	s := &Service{Process: p, Addr: server.GetListen(), HTTPAddr: server.GetHttpListen(), lab: l, command: command}
	if server.GetTls() != nil { // its health is for callers with certificates
		return s, poll(ctx, p, "waiting for "+p.Name, func(ctx context.Context) error { return getOK(ctx, "http://"+s.HTTPAddr+"/readyz") })
	}
	return s, waitHealth(ctx, p, s.Addr, func(h grpc_health_v1.HealthCheckResponse_ServingStatus) bool {
		return opts.Unhealthy || h == grpc_health_v1.HealthCheckResponse_SERVING
	})
}
