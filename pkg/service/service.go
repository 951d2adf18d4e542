// Package service makes the command of a service: it reads the configuration,
// sets up telemetry, and runs the service until a signal ends it.
package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/config"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// flushTimeout bounds how long telemetry may take to go out at the end.
const flushTimeout = 5 * time.Second

// Spec describes a service whose configuration is the message M.
type Spec[M proto.Message] struct {
	// Name of the command and of the service in telemetry: "kiln-builder".
	Name string
	// Use is how a subcommand is called: "run". Empty: Name.
	Use string
	// Short is the help in one line.
	Short string
	// EnvPrefix begins its variables: "KILN_BUILDER".
	EnvPrefix string
	// Version of the service. Empty: that of the build.
	Version string
	// NewConfig makes a configuration that holds the defaults.
	NewConfig func() M
	// Complete, if set, fills what is still empty after the configuration was
	// read, so that --print-config shows it.
	Complete func(cfg M)
	// Run runs the service until ctx ends.
	Run func(ctx context.Context, cfg M, tel *telemetry.Telemetry) error
	// Example is shown in the help.
	Example string
}

// Command makes the command. Add subcommands to it as needed.
func Command[M proto.Message](spec Spec[M]) *cobra.Command {
	if spec.Version == "" {
		spec.Version = Version()
	}
	var (
		opts  = config.Options{EnvPrefix: spec.EnvPrefix, Environ: os.Environ()}
		print bool
	)
	cmd := &cobra.Command{
		Use:           cmp.Or(spec.Use, spec.Name),
		Short:         spec.Short,
		Long:          longHelp(spec.Short, spec.EnvPrefix),
		Example:       spec.Example,
		Version:       spec.Version,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := spec.NewConfig()
			if err := config.Load(cfg, opts); err != nil {
				return err
			}
			if spec.Complete != nil {
				spec.Complete(cfg)
			}
			if print {
				return config.Print(cmd.OutOrStdout(), cfg)
			}
			return run(cmd, spec, cfg)
		},
	}
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	cmd.Flags().StringVar(&opts.File, "config", "", "configuration `file` (YAML)")
	cmd.Flags().StringArrayVar(&opts.Set, "set", nil, "set one `path=value`, such as server.listen=127.0.0.1:50051; may be given several times")
	if spec.Use == "" {
		cmd.AddCommand(HealthCommand(spec))
	}
	cmd.Flags().BoolVar(&print, "print-config", false, "print the configuration in effect, secrets redacted, and end")
	return cmd
}

func longHelp(short, prefix string) string {
	return strings.ToUpper(short[:min(1, len(short))]) + short[min(1, len(short)):] + `.

Settings come from the file of --config, then from variables that begin with
` + prefix + `_ (` + prefix + `_SERVER_LISTEN sets server.listen), then from --set; later ones
win. Traces and metrics go where the standard OTEL_* variables say.`
}

// run sets up telemetry, runs the service, and flushes telemetry.
func run[M proto.Message](cmd *cobra.Command, spec Spec[M], cfg M) (err error) {
	ctx := cmd.Context()
	opts := telemetry.Options{Service: spec.Name, Version: spec.Version, LogWriter: cmd.ErrOrStderr()}
	if logged, ok := any(cfg).(interface{ GetLog() *configv1.LogConfig }); ok {
		opts.LogLevel, opts.LogFormat = logged.GetLog().GetLevel(), logged.GetLog().GetFormat()
	}
	tel, err := telemetry.Setup(ctx, opts)
	if err != nil {
		return err
	}
	defer func() {
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
		defer cancel()
		if lost := tel.Shutdown(flush); lost != nil {
			tel.Logger.Warn("telemetry was lost at the end", "error", lost)
		}
	}()
	ctx = lifecycle.WithReporter(ctx, tel.Panicked)
	return lifecycle.Protect(ctx, func(ctx context.Context) error { return spec.Run(ctx, cfg, tel) })
}

// Exit is the error of a command that ends with another code than 1.
type Exit struct {
	// Code is the exit code.
	Code int
	// Err is what is printed.
	Err error
}

// Error is that of Err.
func (e *Exit) Error() string { return e.Err.Error() }

// Unwrap is Err.
func (e *Exit) Unwrap() error { return e.Err }

// Main runs a command until it ends or SIGINT or SIGTERM ends it, and returns
// the exit code: 0, or 1 after a failure or that of an Exit. The failure is
// printed on one line. A second signal ends the process at once.
func Main(cmd *cobra.Command) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // From now on a signal has its usual effect.
	err := cmd.ExecuteContext(ctx)
	if err == nil || (ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return 0
	}
	_, _ = fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", cmd.Name(), oneLine(fault.Line(err)))
	if exit, ok := errors.AsType[*Exit](err); ok {
		return exit.Code
	}
	return 1
}

func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}

// version is set by the linker: -X github.com/kilnbuild/kiln/pkg/service.version=v1.2.3.
var version string

// Version is the version of this build: what the linker was told, else what the
// Go tool recorded of the main module.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
