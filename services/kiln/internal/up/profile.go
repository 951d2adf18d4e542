package up

import (
	"fmt"

	"github.com/kilnbuild/kiln/services/kiln/internal/profile"
)

// profile returns the profile by which commands find this stack.
func (r *runner) profile() *profile.Profile {
	usual, _ := DefaultDataDir() // Empty when there is none: then this is another one.
	name := profile.NameFor(r.paths.root, usual)
	service := func(address, http string) profile.Service {
		return profile.Service{Address: address, HTTPAddress: http, TokenFile: r.publishedToken(name)}
	}
	return &profile.Profile{
		Name:         name,
		Builder:      service(r.addrs.builder, r.addrs.builderHTTP),
		CacheManager: service(r.addrs.cacheManager, r.addrs.cacheManagerHTTP),
		Janitor:      service(r.addrs.janitor, r.addrs.janitorHTTP),
		Registry:     profile.Registry{Address: r.addrs.registryName()},
		Daemon: profile.Daemon{
			Address: "unix://" + r.paths.buildkitSocket(), ConfigFile: r.paths.config("buildkitd.toml"), Root: r.paths.buildkit(),
		},
		DataDir: r.paths.root,
		Process: profile.Self(),
	}
}

// publishProfile writes the profile. A stack without one serves all the same.
func (r *runner) publishProfile() {
	p := r.profile()
	err := r.publishToken(p.Builder.TokenFile)
	if err == nil {
		err = p.Publish()
	}
	if err != nil {
		r.say(fmt.Sprintf("commands need --builder, --cache-manager and --janitor: cannot write the profile: %v", err))
	}
}
