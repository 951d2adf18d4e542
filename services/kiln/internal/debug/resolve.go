package debug

import (
	"os"
	"strings"
	"syscall"

	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
	"github.com/kilnbuild/kiln/services/kiln/internal/profile"
)

// resolve fills in from the profile what no flag names.
func (o *options) resolve() error {
	p, err := o.conn.InUse()
	if err != nil {
		return err
	}
	o.profile = p.Name
	usual := profile.Defaults()
	fill := func(field *string, values ...string) {
		for _, value := range values {
			if *field == "" {
				*field = value
			}
		}
	}
	fill(&o.cacheManager, p.CacheManager.Address)
	fill(&o.janitor, p.Janitor.Address)
	fill(&o.daemon, p.Daemon.Address)
	fill(&o.daemonConfig, p.Daemon.ConfigFile, usual.Daemon.ConfigFile)
	fill(&o.daemonRoot, p.Daemon.Root)
	fill(&o.registry, p.Registry.Address)
	o.ownStack = p.IsRunning() && o.daemon == p.Daemon.Address && ownSocket(o.daemon)
	fill(&o.registryCA, p.Registry.CAFile)
	fill(&o.cacheDir, p.CacheDir, usual.CacheDir)
	fill(&o.certsDir, p.CertsDir, usual.CertsDir)
	fill(&o.dataDir, p.DataDir, usual.DataDir)
	if len(o.metrics) == 0 {
		for _, s := range []profile.Service{p.Builder, p.CacheManager, p.Janitor} {
			if s.HTTPAddress != "" {
				o.metrics = append(o.metrics, s.HTTPAddress)
			}
		}
	}
	return o.conn.Resolve()
}

// ownSocket reports whether an address is a socket that this user owns.
func ownSocket(address string) bool {
	path, local := strings.CutPrefix(address, "unix://")
	info, err := os.Stat(path)
	if !local || err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(st.Uid) == os.Geteuid()
}

// parts are the services that the profile or flags name.
func (o *options) parts() []part {
	all := []part{{"builder", "kiln-builder", &o.conn}}
	if o.cacheManager != "" {
		all = append(all, part{"cache manager", "kiln-cachemanager", o.conn.For(connect.CacheManager, o.cacheManager)})
	}
	if o.janitor != "" {
		all = append(all, part{"janitor", "kiln-janitor", o.conn.For(connect.Janitor, o.janitor)})
	}
	return all
}

// part is one of Kiln's services.
type part struct {
	name, unit string
	conn       *connect.Flags
}
