package up

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
	"github.com/kilnbuild/kiln/services/kiln/internal/stepnet"
)

const (
	// stepPool is how many network namespaces buildkitd keeps ready. More steps than
	// buildkitd's max-parallelism, 4, do not run at once; the others are for those
	// that are being started.
	stepPool = 8
	// cniResults is where the CNI library keeps what plugins have answered.
	cniResults = "/var/lib/cni/results"
)

// steps is the isolated network of steps.
type steps struct {
	network *stepnet.Network
	config  stepnet.Config
	plugins string
}

// bridgeName returns the name of a data directory's bridge.
func bridgeName(dataDir string) string {
	sum := sha256.Sum256([]byte(dataDir))
	return "kiln-" + hex.EncodeToString(sum[:4])
}

// setUpSteps makes the network of steps, if it is not the host's.
func (r *runner) setUpSteps(ctx context.Context) error {
	if err := r.opts.checkStepNetwork(); err != nil || r.opts.StepNetwork == StepsOnHost {
		return err
	}
	dirs := stepnet.PluginDirs
	if r.opts.CNIPlugins != "" {
		dirs = []string{r.opts.CNIPlugins}
	}
	plugins, err := stepnet.FindPlugins(dirs)
	if err != nil {
		return err
	}
	config, err := r.stepConfig()
	if err != nil {
		return err
	}
	conflist, err := config.CNI(r.paths.ipam(), stepnet.ForwardPlugin(plugins))
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.paths.cni(), conflist, 0o600); err != nil {
		return err
	}
	network, err := stepnet.Setup(ctx, config, slog.New(slog.NewTextHandler(lineWriter(r.say), nil)))
	if err != nil {
		return err
	}
	r.steps = &steps{network: network, config: config, plugins: plugins}
	return nil
}

func (r *runner) stepConfig() (stepnet.Config, error) {
	config := stepnet.Config{Bridge: bridgeName(r.paths.root)}
	var err error
	if config.Allow, err = stepnet.ParseAllowed(r.opts.AllowNetworks); err != nil {
		return config, err
	}
	if config.DNS, err = stepnet.ParseServers(r.opts.StepDNS); err != nil {
		return config, err
	}
	if r.opts.StepSubnet == "" {
		config.Subnet, err = stepnet.FreeSubnet(config.Bridge, config.Allow)
		return config, err
	}
	if config.Subnet, err = netip.ParsePrefix(r.opts.StepSubnet); err != nil {
		return config, fault.Invalid("--step-subnet", r.opts.StepSubnet, fmt.Sprintf("%q is not a network", r.opts.StepSubnet), "give it as 10.213.0.0/24")
	}
	config.Subnet = config.Subnet.Masked()
	return config, nil
}

// stepTasks returns what runs as long as buildkitd does.
func (r *runner) stepTasks() []lifecycle.Task {
	if r.steps == nil {
		return nil
	}
	return []lifecycle.Task{{Name: "network of steps", Run: r.steps.network.Run}}
}

// closeSteps removes the network of steps. No step may be running.
func (r *runner) closeSteps() error {
	if r.steps == nil {
		return nil
	}
	return r.steps.network.Close()
}

// stepsFile returns the part of buildkitd's configuration about the network of steps.
func (r *runner) stepsFile() *stepsFile {
	if r.steps == nil {
		return nil
	}
	return &stepsFile{
		CNIConfig: r.paths.cni(), CNIPlugins: r.steps.plugins, PoolSize: stepPool, Nameservers: r.steps.config.Nameservers(),
	}
}

// lineWriter passes each line that is written to it on to a function.
type lineWriter func(line string)

// Write implements io.Writer.
func (w lineWriter) Write(p []byte) (int, error) {
	w(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func (o Options) checkStepNetwork() error {
	switch o.StepNetwork {
	case StepsOnHost, StepsIsolated, "":
		return nil
	default:
		return fault.Invalid("--step-network", o.StepNetwork, fmt.Sprintf("%q is no network of steps", o.StepNetwork),
			"choose "+StepsIsolated+" or "+StepsOnHost)
	}
}
