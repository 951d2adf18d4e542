package up

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kilnbuild/kiln/services/kiln/internal/profile"
)

// summary says what listens where, and what to try next.
func (r *runner) summary(parts []wait) string {
	http := map[string]string{
		"builder": r.addrs.builderHTTP, "cache manager": r.addrs.cacheManagerHTTP, "janitor": r.addrs.janitorHTTP,
		"registry": r.addrs.registry + "/v2/_catalog",
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nKiln is up.\n\n")
	for _, part := range parts {
		line := fmt.Sprintf("  %-14s %-24s", part.name, part.at)
		if at := http[part.name]; at != "" {
			if part.name != "registry" {
				at += "/metrics"
			}
			line += " http://" + at
		}
		fmt.Fprintln(&b, strings.TrimRight(line, " "))
	}
	fmt.Fprintf(&b, "  %-14s %s (logs in logs/)\n", "state", r.paths.root)
	fmt.Fprintf(&b, "  %-14s %s\n", "contexts from", cmp.Or(strings.Join(r.opts.AllowRoots, ", "), "uploads only; name directories of this host with --allow-root"))

	use := ""
	if name := r.profile().Name; name != profile.Local {
		use = " --profile " + name
	}
	fmt.Fprintf(&b, "  %-14s %s\n", "profile", r.profile().Name)
	fmt.Fprintf(&b, "\nTry:\n  kiln build%s --push -t %s/hello:dev %s\n", use, r.addrs.registryName(), toBuild())
	if token := r.publishedToken(r.profile().Name); token != "" {
		// buildctl and buildx have no way to show a token.
		fmt.Fprintf(&b, "  kiln builds ls%s\n  grpcurl -plaintext -H \"authorization: Bearer $(cat %s)\" %s list\n", use, token, r.addrs.builder)
		return b.String()
	}
	fmt.Fprintf(&b, "  buildctl --addr tcp://%s du\n  grpcurl -plaintext %s list\n", r.addrs.builder, r.addrs.builder)
	return b.String()
}

// toBuild returns the directory that the summary suggests to build: the example of a checkout,
// elsewhere the one that the user is in.
func toBuild() string {
	const example = "examples/hello"
	if _, err := os.Stat(filepath.Join(example, "Dockerfile")); err == nil {
		return example
	}
	return "."
}
