package build

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/buildkit/util/entitlements"
)

// stepFlags are what the flags ask for of all RUN steps.
type stepFlags struct {
	addHosts     []string
	network      string
	shmSize      string
	ulimits      []string
	resources    []string
	cgroupParent string
	allow        []string
}

// resourceKeys are the names of --resource and BuildKit's for them.
var resourceKeys = map[string]string{
	"memory": "memory", "memory-swap": "memswap", "cpu-shares": "cpushares", "cpu-period": "cpuperiod",
	"cpu-quota": "cpuquota", "cpuset-cpus": "cpusetcpus", "cpuset-mems": "cpusetmems",
}

// attrs are the attributes of the frontend, and the rights that they need.
func (s *stepFlags) attrs() (attrs map[string]string, rights []string, allowDelete bool, err error) {
	attrs = map[string]string{}
	rights, allowDelete, err = parseAllow(s.allow)
	if err != nil {
		return nil, nil, false, err
	}
	switch s.network {
	case "", "default":
	case "none":
		attrs["force-network-mode"] = s.network
	case "host":
		attrs["force-network-mode"] = s.network
		rights = append(rights, entitlements.EntitlementNetworkHost.String())
	default:
		return nil, nil, false, fmt.Errorf("--network is %q; use default, none or host: BuildKit has no networks of the Docker Engine", s.network)
	}
	for _, set := range []func(map[string]string) error{s.setHosts, s.setSizes, s.setResources} {
		if err := set(attrs); err != nil {
			return nil, nil, false, err
		}
	}
	if s.cgroupParent != "" {
		attrs["cgroup-parent"] = s.cgroupParent
	}
	return attrs, rights, allowDelete, nil
}

func parseAllow(flags []string) (rights []string, allowDelete bool, err error) {
	for _, right := range flags {
		switch right {
		case "":
		case localDelete:
			allowDelete = true
		default:
			if _, _, err := entitlements.Parse(right); err != nil {
				return nil, false, fmt.Errorf("--allow %q: %w; use network.host, security.insecure, device or %s", right, err, localDelete)
			}
			rights = append(rights, right)
		}
	}
	return rights, allowDelete, nil
}

func (s *stepFlags) setHosts(attrs map[string]string) error {
	var hosts []string
	for _, text := range s.addHosts {
		host, ips, ok := strings.Cut(text, "=")
		if !ok {
			host, ips, ok = strings.Cut(text, ":")
		}
		if !ok || host == "" || ips == "" {
			return fmt.Errorf("--add-host is %q; write it like HOST:IP", text)
		}
		if ips == "host-gateway" {
			return fmt.Errorf("--add-host %s: host-gateway is a name of the Docker Engine, and the builder has none; give the address of the host", text)
		}
		for ip := range strings.SplitSeq(ips, ",") {
			ip = strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]")
			if net.ParseIP(ip) == nil {
				return fmt.Errorf("--add-host %q: %q is not an IP address", text, ip)
			}
			hosts = append(hosts, host+"="+ip)
		}
	}
	if len(hosts) > 0 {
		attrs["add-hosts"] = strings.Join(hosts, ",")
	}
	return nil
}

func (s *stepFlags) setSizes(attrs map[string]string) error {
	if s.shmSize != "" {
		size, err := units.RAMInBytes(s.shmSize)
		if err != nil {
			return fmt.Errorf("--shm-size is %q; write it like 64m or 2g", s.shmSize)
		}
		if size > 0 {
			attrs["shm-size"] = strconv.FormatInt(size, 10)
		}
	}
	limits := map[string]string{}
	for _, text := range s.ulimits {
		limit, err := units.ParseUlimit(text)
		if err != nil {
			return fmt.Errorf("--ulimit %q: %w; write it like nofile=1024:2048", text, err)
		}
		limits[limit.Name] = limit.String()
	}
	if len(limits) > 0 {
		attrs["ulimit"] = strings.Join(slices.Sorted(maps.Values(limits)), ",")
	}
	return nil
}

func (s *stepFlags) setResources(attrs map[string]string) error {
	for _, text := range s.resources {
		key, value, ok := strings.Cut(text, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		attr, known := resourceKeys[key]
		if !ok || !known {
			return fmt.Errorf("--resource is %q; write it like memory=2g, with one of %s", text, strings.Join(slices.Sorted(maps.Keys(resourceKeys)), ", "))
		}
		number := value
		switch key {
		case "memory", "memory-swap":
			size, err := units.RAMInBytes(value)
			if value == "-1" {
				size, err = -1, nil
			}
			if err != nil {
				return fmt.Errorf("--resource %q: %q is not a size; write it like 512m or 2g", text, value)
			}
			number = strconv.FormatInt(size, 10)
		case "cpu-shares", "cpu-period", "cpu-quota":
			if _, err := strconv.ParseInt(value, 10, 64); err != nil {
				return fmt.Errorf("--resource %q: %q is not a whole number", text, value)
			}
		}
		attrs[attr] = number
	}
	return nil
}
