// Package debug is `kiln debug`, which finds what is wrong with a stack and says what mends
// it, and `kiln workers`, which says what builds.
package debug

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/service"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/show"
	"github.com/kilnbuild/kiln/services/kiln/internal/table"
)

// options say where the parts are.
type options struct {
	conn                  connect.Flags // of the builder
	cacheManager, janitor string
	profile               string // what the parts were found by
	daemon, daemonConfig  string
	daemonRoot            string
	registry, registryCA  string
	cacheDir, group       string
	certsDir, dataDir     string
	metrics               []string
	project, build        string
	fix                   bool
	bundle                string
	ownStack              bool // buildkitd is of a running kiln up, and its socket of this user
	format                string
}

// Command is `kiln debug`.
func Command() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "debug",
		Short: "Find what is wrong with the daemon, the caches, the registry and the services",
		Long: `Looks at all that a build needs: buildkitd's socket, group and version, the directory of
caches, the registry and how buildkitd is told to speak to it, Kiln's services, certificates,
clocks, disk, cgroups, overlayfs, runc and emulators; and at the last build of a project, to say
why it did not use the cache. The parts are those of the profile in use: of the running kiln up,
unless --profile or flags say otherwise. For each finding it says what it saw and the command that mends it.

With --fix it mends what is safe: owners and modes of the socket and of the directory of caches.
With --bundle it writes an archive for whoever helps, with logs and configurations and without
secrets: look at it before you send it. Ends with 1 when something fails.`,
		Example: `  kiln debug
  sudo kiln debug --fix
  kiln debug --project web
  kiln debug --build 4f3c1a2e
  kiln debug --bundle=support.tar.gz
  kiln debug --format json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SilenceUsage = true
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	o.conn.Add(flags)
	connect.AddAddress(flags, connect.CacheManager, &o.cacheManager)
	connect.AddAddress(flags, connect.Janitor, &o.janitor)
	flags.StringVar(&o.daemon, "daemon", "", "`address` of buildkitd (default: the profile's, else the builder's, else unix:///run/buildkit/buildkitd.sock)")
	flags.StringVar(&o.daemonConfig, "daemon-config", "", "buildkitd's configuration `file` (default: the profile's)")
	flags.StringVar(&o.daemonRoot, "daemon-root", "", "`directory` of buildkitd's state (default: the profile's)")
	flags.StringVar(&o.registry, "registry", "", "`host:port` of the registry (default: the profile's)")
	flags.StringVar(&o.registryCA, "registry-ca", "", "`file` with the authorities of its certificate (default: the profile's)")
	connect.FromEnv(flags, &o.cacheDir, "cache-dir", "KILN_CACHE_DIR", "`directory` of type=local caches (or KILN_CACHE_DIR; default: the profile's, else /var/cache/buildkit-cache)")
	flags.StringVar(&o.group, "group", "buildkit", "`group` that may use buildkitd and the caches")
	connect.FromEnv(flags, &o.certsDir, "certs-dir", "KILN_CERTS_DIR", "`directory` of certificates (or KILN_CERTS_DIR; default: the profile's, else /etc/kiln/certs)")
	flags.StringVar(&o.dataDir, "data-dir", "", "`directory` of kiln up, for the logs in the bundle (default: the profile's)")
	flags.StringSliceVar(&o.metrics, "metrics", nil, "`addresses` of the services' HTTP, for the bundle (default: the profile's)")
	flags.StringVar(&o.project, "project", "", "look at the last build of this `project`")
	flags.StringVar(&o.build, "build", "", "look at this build: the beginning of its `ID`")
	flags.BoolVar(&o.fix, "fix", false, "mend what is safe")
	flags.StringVar(&o.bundle, "bundle", "", "write an archive for whoever helps to this `file`")
	flags.Lookup("bundle").NoOptDefVal = "auto"
	show.AddFormat(cmd, &o.format, "text or json")
	return cmd
}

func (o *options) checks() []check {
	return []check{
		{"socket", o.socketCheck}, {"group", o.groupCheck}, {"daemon", o.daemonCheck}, {"cache-dir", o.cacheDirCheck},
		{"registry", o.registryCheck}, {"registry-protocol", o.insecureCheck}, {"services", o.serviceChecks}, {"certificates", o.certificateCheck},
		{"clock", o.clockCheck}, {"disk", o.diskCheck}, {"cgroup", o.cgroupCheck}, {"overlay", o.overlayCheck}, {"runc", o.runcCheck},
		{"emulators", o.emulatorCheck}, {"cache-use", o.cacheUseCheck},
	}
}

func (o *options) run(ctx context.Context, stdout, stderr io.Writer) error {
	if err := o.resolve(); err != nil {
		return err
	}
	if o.daemon == "" {
		o.daemon = o.daemonOfBuilder(ctx)
	}
	term := table.TerminalOf(stderr)
	report := Report{Time: time.Now(), Version: service.Version(), Profile: o.profile}
	report.Host, _ = os.Hostname() // empty will do
	report.Findings = look(ctx, o.checks(), func(check string) {
		if term.Width > 0 {
			_, _ = fmt.Fprintf(stderr, "\r\033[Klooking at %s …", check)
		}
	})
	if term.Width > 0 {
		_, _ = fmt.Fprint(stderr, "\r\033[K")
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if o.fix {
		mend(report.Findings)
	}
	if err := o.print(stdout, report); err != nil {
		return err
	}
	if o.bundle != "" {
		if o.bundle == "auto" {
			o.bundle = bundleName(report.Time)
		}
		if err := o.writeBundle(ctx, o.bundle, report); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(stderr, "wrote "+o.bundle+"; look at it before you send it")
	}
	for _, f := range report.Findings {
		if f.State == Fail && !f.Fixed {
			return fault.New(fault.FailedPrecondition, "", "something is wrong", "do as the findings say")
		}
	}
	return nil
}

// daemonOfBuilder is where the builder's daemon is, if it can be told.
func (o *options) daemonOfBuilder(ctx context.Context) string {
	const usual = "unix:///run/buildkit/buildkitd.sock"
	conn, err := o.conn.Connect()
	if err != nil {
		return usual
	}
	defer func() { _ = conn.Close() }() // nothing is left to lose
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	res, err := builderv1.NewBuilderServiceClient(conn).ListDaemons(ctx, &builderv1.ListDaemonsRequest{})
	if err != nil || len(res.GetDaemons()) == 0 {
		return usual
	}
	return res.GetDaemons()[0].GetAddress()
}

var styles = map[State]table.Style{OK: table.Green, Unknown: table.Faint, Warn: table.Yellow, Fail: table.Red}

func (o *options) print(out io.Writer, report Report) error {
	if o.format == "json" {
		text, err := json.Marshal(report)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(out, string(text))
		return err
	}
	term := table.TerminalOf(out)
	var b strings.Builder
	for _, f := range report.Findings {
		state, style := string(f.State), styles[f.State]
		if f.Fixed {
			state, style = "fixed", table.Green
		}
		fmt.Fprintf(&b, "%s  %s  %s\n", term.Paint(style, fmt.Sprintf("%-7s", state)), term.Paint(table.Bold, fmt.Sprintf("%-17s", f.Check)), f.Message)
		if f.State == OK && f.Remedy == "" {
			continue
		}
		const indent = "                            "
		for _, e := range f.Evidence {
			fmt.Fprintf(&b, "%ssaw: %s\n", indent, strings.ReplaceAll(strings.TrimSpace(e), "\n", " "))
		}
		if f.Remedy != "" && !f.Fixed {
			fmt.Fprintf(&b, "%sdo:  %s\n", indent, f.Remedy)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// get reads a page.
func get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DialContext: (&net.Dialer{Timeout: 3 * time.Second}).DialContext, DisableKeepAlives: true}
	res, err := (&http.Client{Transport: transport, Timeout: 10 * time.Second}).Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }() // It was only read.
	return io.ReadAll(io.LimitReader(res.Body, maxPart))
}
