package service_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/service"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

type runFunc = func(context.Context, *configv1.JanitorConfig, *telemetry.Telemetry) error

func command(run runFunc, args ...string) (cmd *cobra.Command, out, errOut *bytes.Buffer) {
	cmd = service.Command(service.Spec[*configv1.JanitorConfig]{
		Name: "kiln-test", Short: "keep a registry clean", EnvPrefix: "KILN_TEST", Version: "v1.2.3",
		NewConfig: func() *configv1.JanitorConfig {
			return &configv1.JanitorConfig{Server: &configv1.ServerConfig{Listen: "127.0.0.1:50053"}}
		},
		Complete: func(cfg *configv1.JanitorConfig) {
			if cfg.GetRegistry() == nil {
				cfg.Registry = &configv1.RegistryConfig{Address: "localhost:5000"}
			}
		},
		Run: run, Example: "  kiln-test --set server.listen=:1",
	})
	out, errOut = &bytes.Buffer{}, &bytes.Buffer{}
	cmd.SetOut(out)
	cmd.SetErr(errOut)
	cmd.SetArgs(args)
	return cmd, out, errOut
}

func TestMain_ExitCodes(t *testing.T) {
	for name, test := range map[string]struct {
		run    runFunc
		args   []string
		code   int
		stderr string // The whole of it; empty: not looked at.
	}{
		"success": {run: func(context.Context, *configv1.JanitorConfig, *telemetry.Telemetry) error { return nil }},
		"failure": {
			run: func(context.Context, *configv1.JanitorConfig, *telemetry.Telemetry) error {
				return fault.New(fault.Unavailable, "REGISTRY_UNAVAILABLE", "the registry\ndoes not answer", "start it")
			},
			code: 1, stderr: "kiln-test: the registry; does not answer (start it)\n",
		},
		"unknown flag":   {args: []string{"--nothing"}, code: 1, stderr: "kiln-test: unknown flag: --nothing\n"},
		"argument":       {args: []string{"extra"}, code: 1},
		"bad setting":    {args: []string{"--set", "server.lisen=x"}, code: 1, stderr: "kiln-test: --set server.lisen=x: there is no setting \"server.lisen\"\n"},
		"missing config": {args: []string{"--config", "/nothing.yaml"}, code: 1, stderr: "kiln-test: opening the configuration: open /nothing.yaml: no such file or directory\n"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, _, errOut := command(test.run, test.args...)
			if code := service.Main(cmd); code != test.code {
				t.Errorf("exit code %d, want %d; %s", code, test.code, errOut)
			}
			if test.stderr != "" && errOut.String() != test.stderr {
				t.Errorf("stderr %q, want %q", errOut, test.stderr)
			}
		})
	}
}

func TestPanicIsAFailure(t *testing.T) {
	cmd, _, errOut := command(func(context.Context, *configv1.JanitorConfig, *telemetry.Telemetry) error { panic("boom") })
	if code := service.Main(cmd); code != 1 || !strings.Contains(errOut.String(), "panic: boom") {
		t.Errorf("exit code %d, stderr %q", code, errOut)
	}
}

func TestConfigurationReachesTheService(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("keep_age: 24h\nlog: {level: debug, format: json}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KILN_TEST_REGISTRY_ADDRESS", "registry:5000")
	cmd, _, errOut := command(func(ctx context.Context, cfg *configv1.JanitorConfig, tel *telemetry.Telemetry) error {
		if cfg.GetKeepAge().AsDuration() != 24*time.Hour || cfg.GetRegistry().GetAddress() != "registry:5000" || cfg.GetServer().GetListen() != "127.0.0.1:1" {
			t.Errorf("configuration: %v", cfg)
		}
		tel.Logger.DebugContext(ctx, "hello")
		return nil
	}, "--config", path, "--set", "server.listen=127.0.0.1:1")
	if code := service.Main(cmd); code != 0 {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	if !strings.Contains(errOut.String(), `"level":"DEBUG","msg":"hello","service":"kiln-test"`) {
		t.Errorf("log: %s", errOut)
	}
}

func TestPrintConfigAndVersion(t *testing.T) {
	never := func(context.Context, *configv1.JanitorConfig, *telemetry.Telemetry) error {
		return errors.New("it ran")
	}
	cmd, out, errOut := command(never, "--print-config", "--set", "keep_age=1h")
	if code := service.Main(cmd); code != 0 {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	for _, want := range []string{"listen: 127.0.0.1:50053", "keep_age: 1h", "address: localhost:5000"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("--print-config lacks %q:\n%s", want, out)
		}
	}
	cmd, out, _ = command(never, "--version")
	if code := service.Main(cmd); code != 0 || out.String() != "kiln-test v1.2.3\n" {
		t.Errorf("--version: %d %q", code, out)
	}
	cmd, out, _ = command(never, "--help")
	if code := service.Main(cmd); code != 0 || !strings.Contains(out.String(), "Keep a registry clean.") || !strings.Contains(out.String(), "KILN_TEST_SERVER_LISTEN") {
		t.Errorf("--help: %d %s", code, out)
	}
}

func TestSignalsEndTheService(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd, _, errOut := command(func(ctx context.Context, _ *configv1.JanitorConfig, _ *telemetry.Telemetry) error {
				if err := syscall.Kill(os.Getpid(), sig); err != nil {
					return err
				}
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(10 * time.Second):
					return errors.New("the signal did not end the context")
				}
			})
			if code := service.Main(cmd); code != 0 {
				t.Errorf("exit code %d: %s", code, errOut)
			}
		})
	}
}
