package service

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/config"
	"github.com/kilnbuild/kiln/pkg/fault"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
)

// healthTimeout bounds the question.
const healthTimeout = 4 * time.Second

// HealthCommand makes the command that asks a running service of the same configuration
// whether it is ready: for the health checks of containers whose images have no shell.
func HealthCommand[M proto.Message](spec Spec[M]) *cobra.Command {
	opts := config.Options{EnvPrefix: spec.EnvPrefix, Environ: os.Environ()}
	cmd := &cobra.Command{
		Use:           "health",
		Short:         "Ask the running service whether it is ready: 0 is yes, 1 no",
		Long:          `Asks the service of this configuration, on this host, whether it is ready (GET /readyz).`,
		Example:       "  " + spec.Name + " health --config /etc/kiln/" + strings.TrimPrefix(spec.Name, "kiln-") + ".yaml",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := spec.NewConfig()
			if err := config.Load(cfg, opts); err != nil {
				return err
			}
			served, ok := any(cfg).(interface{ GetServer() *configv1.ServerConfig })
			if !ok {
				return fault.New(fault.FailedPrecondition, "", "the configuration names no server", "ask the service itself")
			}
			return askReady(cmd, served.GetServer())
		},
	}
	cmd.Flags().StringVar(&opts.File, "config", "", "configuration `file` (YAML)")
	cmd.Flags().StringArrayVar(&opts.Set, "set", nil, "set one `path=value`, as for the service")
	return cmd
}

func askReady(cmd *cobra.Command, server *configv1.ServerConfig) error {
	host, port, err := net.SplitHostPort(server.GetHttpListen())
	if err != nil {
		return fault.Invalid("server.http_listen", server.GetHttpListen(), "is no address to ask", "set it to host:port")
	}
	scheme := "http"
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if server.GetTls() != nil {
			scheme = "https"
		}
	}
	req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, scheme+"://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return err
	}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, //nolint:gosec // It asks this host, and says nothing.
		MinVersion:         tls.VersionTLS12,
	}}
	res, err := (&http.Client{Transport: transport, Timeout: healthTimeout}).Do(req)
	if err != nil {
		return fault.Wrap(err, fault.Unavailable, "", "the service does not answer", "look at its log")
	}
	defer func() { _ = res.Body.Close() }() // It was only read.
	text, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fault.New(fault.Unavailable, "", fmt.Sprintf("the service is not ready: %s", strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", "; ")), "look at what it depends on")
	}
	_, err = cmd.OutOrStdout().Write(text)
	return err
}
