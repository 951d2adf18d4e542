package stepnet

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// PluginDirs are the directories in which distributions install CNI plugins.
var PluginDirs = []string{"/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"}

// FindPlugins returns the first of the directories that has the CNI plugins that
// BuildKit runs for the steps.
func FindPlugins(dirs []string) (string, error) {
	for _, dir := range dirs {
		if hasPlugin(dir, "bridge") && hasPlugin(dir, "host-local") && hasPlugin(dir, "loopback") {
			return dir, nil
		}
	}
	return "", fault.New(fault.FailedPrecondition, "",
		fmt.Sprintf("the CNI plugins bridge, host-local and loopback, which connect the steps of builds, are not in %s", strings.Join(dirs, ", ")),
		"install the package containernetworking-plugins of your distribution, or run the steps in this host's network with --step-network host: "+
			"they then reach all that this host reaches")
}

func hasPlugin(dir, name string) bool {
	info, err := os.Stat(filepath.Join(dir, name))
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// ForwardPlugin reports whether the plugin that has the host's own firewall pass the
// steps' packets can run: hosts with Docker drop what they do not know.
func ForwardPlugin(dir string) bool {
	if !hasPlugin(dir, "firewall") {
		return false
	}
	// The plugin wants both.
	return hasProgram("iptables") && hasProgram("ip6tables")
}

func hasProgram(name string) bool {
	_, err := exec.LookPath(name)
	return err == nil || hasPlugin("/usr/sbin", name) || hasPlugin("/sbin", name)
}

type cniList struct {
	CNIVersion string      `json:"cniVersion"`
	Name       string      `json:"name"`
	Plugins    []cniPlugin `json:"plugins"`
}

type cniPlugin struct {
	Type             string   `json:"type"`
	Bridge           string   `json:"bridge,omitempty"`
	IsDefaultGateway bool     `json:"isDefaultGateway,omitempty"`
	IPAM             *cniIPAM `json:"ipam,omitempty"`
}

type cniIPAM struct {
	Type    string       `json:"type"`
	DataDir string       `json:"dataDir,omitempty"`
	Ranges  [][]cniRange `json:"ranges"`
}

type cniRange struct {
	Subnet string `json:"subnet"`
}

// CNI returns the configuration of CNI plugins for BuildKit, as a .conflist. ipamDir
// keeps which addresses are in use; forward adds the plugin of ForwardPlugin.
func (c Config) CNI(ipamDir string, forward bool) ([]byte, error) {
	list := cniList{CNIVersion: "1.0.0", Name: c.Bridge, Plugins: []cniPlugin{{
		Type: "bridge", Bridge: c.Bridge, IsDefaultGateway: true,
		IPAM: &cniIPAM{Type: "host-local", DataDir: ipamDir, Ranges: [][]cniRange{{{c.Subnet.String()}}}},
	}}}
	if forward {
		list.Plugins = append(list.Plugins, cniPlugin{Type: "firewall"})
	}
	text, err := json.MarshalIndent(list, "", "  ")
	return append(text, '\n'), err
}

// ReadCNI reads the bridge and the subnet from a .conflist.
func ReadCNI(path string) (bridge string, subnet netip.Prefix, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", subnet, fault.Wrap(err, fault.FailedPrecondition, "", "cannot read the CNI configuration "+path, "name the file that buildkitd's cniConfigPath names")
	}
	var list cniList
	if err := json.Unmarshal(text, &list); err != nil {
		return "", subnet, fault.Wrap(err, fault.InvalidArgument, "", path+" is not a CNI configuration list", "see deploy/buildkit/cni.conflist")
	}
	for _, plugin := range list.Plugins {
		if plugin.Bridge == "" || plugin.IPAM == nil || len(plugin.IPAM.Ranges) != 1 || len(plugin.IPAM.Ranges[0]) != 1 {
			continue
		}
		subnet, err := netip.ParsePrefix(plugin.IPAM.Ranges[0][0].Subnet)
		if err != nil {
			return "", subnet, fault.Wrap(err, fault.InvalidArgument, "", path+" has a subnet that is not one", "write it as 10.213.0.0/24")
		}
		return plugin.Bridge, subnet, nil
	}
	return "", subnet, fault.New(fault.InvalidArgument, "", path+" has no bridge plugin with one range of addresses", "see deploy/buildkit/cni.conflist")
}
