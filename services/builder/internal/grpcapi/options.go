package grpcapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// definition refuses what means something to a frontend only, when a graph stands
// in its place.
func definition(_ *build.Spec, in *builderv1.BuildSpec) error {
	if len(in.GetDefinition()) == 0 {
		return nil
	}
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"context", in.GetContext() != nil}, {"dockerfile", in.GetDockerfile() != nil}, {"target", in.GetTarget() != ""},
		{"build_args", len(in.GetBuildArgs()) > 0}, {"labels", len(in.GetLabels()) > 0}, {"platforms", len(in.GetPlatforms()) > 0},
		{"named_contexts", len(in.GetNamedContexts()) > 0}, {"no_cache", in.GetNoCache()}, {"no_cache_stages", len(in.GetNoCacheStages()) > 0},
		{"pull", in.GetPull()}, {"extra_hosts", len(in.GetExtraHosts()) > 0}, {"network", in.GetNetwork() != 0},
		{"shm_size_bytes", in.GetShmSizeBytes() != 0}, {"ulimits", len(in.GetUlimits()) > 0}, {"frontend", in.GetFrontend() != nil},
		{"cache.mode", in.GetCache().GetMode() == builderv1.CacheMode_CACHE_MODE_NONE},
	} {
		if f.set {
			return fault.Invalid("spec."+f.name, "", "is for a Dockerfile, and spec.definition stands in its place",
				"leave it out, and say it in the graph; or leave spec.definition out")
		}
	}
	return nil
}

// stages refuses names that BuildKit would read as several.
func stages(spec *build.Spec, _ *builderv1.BuildSpec) error {
	for i, name := range spec.NoCacheStages {
		if strings.ContainsAny(name, ", \t") {
			return fault.Invalid(fmt.Sprintf("spec.no_cache_stages[%d]", i), name, "is not the name of a stage", "name one stage in each item")
		}
	}
	return nil
}

// hostName is a name as /etc/hosts takes it.
var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*$`)

func hosts(spec *build.Spec, in *builderv1.BuildSpec) error {
	for _, name := range slices.Sorted(maps.Keys(in.GetExtraHosts())) {
		field, address := fmt.Sprintf("spec.extra_hosts[%q]", name), in.GetExtraHosts()[name]
		if !hostName.MatchString(name) {
			return fault.Invalid(field, name, "is not a host name", `write it like "db.internal"`)
		}
		ip, err := netip.ParseAddr(address)
		if err != nil || ip.Zone() != "" {
			return fault.Invalid(field, address, "is not an IP address", `write it like "10.1.2.3" or "fd00::1"`)
		}
		if spec.ExtraHosts == nil {
			spec.ExtraHosts = make(map[string]string)
		}
		spec.ExtraHosts[strings.ToLower(name)] = ip.String()
	}
	return nil
}

var networks = map[builderv1.NetworkMode]string{
	builderv1.NetworkMode_NETWORK_MODE_SANDBOX: "sandbox",
	builderv1.NetworkMode_NETWORK_MODE_NONE:    "none",
	builderv1.NetworkMode_NETWORK_MODE_HOST:    "host",
}

var entitlements = map[builderv1.Entitlement]string{
	builderv1.Entitlement_ENTITLEMENT_NETWORK_HOST:      "network.host",
	builderv1.Entitlement_ENTITLEMENT_SECURITY_INSECURE: "security.insecure",
	builderv1.Entitlement_ENTITLEMENT_DEVICE:            "device",
}

// network translates the network and the rights, of which it may need one.
func network(spec *build.Spec, in *builderv1.BuildSpec) error {
	for _, right := range in.GetEntitlements() {
		spec.Entitlements = append(spec.Entitlements, entitlements[right])
	}
	spec.Network = networks[in.GetNetwork()]
	if spec.Network == "host" && !slices.Contains(spec.Entitlements, "network.host") {
		return fault.Invalid("spec.network", in.GetNetwork().String(), "needs an entitlement that the request does not name",
			"add ENTITLEMENT_NETWORK_HOST to spec.entitlements")
	}
	return nil
}

// limitNames are the resources of setrlimit(2), as BuildKit names them.
var limitNames = []string{
	"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice",
	"nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

func ulimits(spec *build.Spec, in *builderv1.BuildSpec) error {
	for i, limit := range in.GetUlimits() {
		field := fmt.Sprintf("spec.ulimits[%d]", i)
		name, soft, hard := limit.GetName(), limit.GetSoft(), limit.GetHard()
		if !slices.Contains(limitNames, name) {
			return fault.Invalid(field+".name", name, "is not the name of a limit", "use one of "+strings.Join(limitNames, ", "))
		}
		if slices.ContainsFunc(spec.Ulimits, func(u build.Ulimit) bool { return u.Name == name }) {
			return fault.Invalid(field+".name", name, "is named twice", "name each limit once")
		}
		if hard != -1 && (soft == -1 || soft > hard) {
			return fault.Invalid(field+".soft", fmt.Sprint(soft), fmt.Sprintf("is above the hard limit, %d", hard), "raise the hard limit, or lower the soft one; -1 is no limit")
		}
		spec.Ulimits = append(spec.Ulimits, build.Ulimit{Name: name, Soft: soft, Hard: hard})
	}
	return nil
}

// Attributes of BuildKit's frontends that other fields set, by name and by how
// their names begin.
var (
	attributesOfFields = map[string]string{
		"context": "spec.context", "contextkey": "spec.context", "contextsubdir": "spec.context",
		"filename": "spec.dockerfile", "dockerfilekey": "spec.dockerfile", "cmdline": "spec.frontend",
		"target": "spec.target", "platform": "spec.platforms", "no-cache": "spec.no_cache", "image-resolve-mode": "spec.pull",
		"add-hosts": "spec.extra_hosts", "force-network-mode": "spec.network", "shm-size": "spec.shm_size_bytes", "ulimit": "spec.ulimits",
		"cache-from": "spec.cache", "cache-imports": "spec.cache",
	}
	prefixesOfFields = map[string]string{
		"build-arg:": "spec.build_args", "label:": "spec.labels", "context:": "spec.named_contexts", "input-metadata:": "spec.named_contexts",
		"sharedkey:": "spec.context", "local-sessionid:": "spec.context", "attest:": "spec.attestations",
	}
)

func frontend(spec *build.Spec, in *builderv1.BuildSpec) error {
	wanted := in.GetFrontend()
	spec.Frontend = build.Frontend{Name: wanted.GetName(), Attributes: wanted.GetAttributes()}
	for _, name := range slices.Sorted(maps.Keys(wanted.GetAttributes())) {
		other := attributesOfFields[name]
		for prefix, field := range prefixesOfFields {
			if strings.HasPrefix(name, prefix) {
				other = field
			}
		}
		if other != "" {
			return fault.Invalid(fmt.Sprintf("spec.frontend.attributes[%q]", name), "", "is what "+other+" is for", "set "+other+" instead")
		}
	}
	source, named := wanted.GetAttributes()["source"]
	const field = `spec.frontend.attributes["source"]`
	switch {
	case wanted.GetName() == "gateway.v0" && source == "":
		return fault.Invalid(field, "", "is missing", `name the frontend's image, for example "docker/dockerfile:1"`)
	case wanted.GetName() == "gateway.v0":
		_, err := imageOf(field, source)
		return err
	case named:
		return fault.Invalid(field, source, "is for the frontend gateway.v0", `set spec.frontend.name to "gateway.v0", or leave it out`)
	}
	return nil
}

// sourcePolicy makes sure that it is JSON; what it says is BuildKit's to read.
func sourcePolicy(spec *build.Spec, in *builderv1.BuildSpec) error {
	if in.GetSourcePolicyJson() == "" {
		return nil
	}
	spec.SourcePolicy = []byte(in.GetSourcePolicyJson())
	var object map[string]any
	if err := json.Unmarshal(spec.SourcePolicy, &object); err != nil {
		return fault.Invalid("spec.source_policy_json", "", "is not a JSON object: "+err.Error(),
			`write it like {"rules": [{"action": "DENY", "selector": {"identifier": "docker-image://docker.io/*"}}]}`)
	}
	return nil
}
