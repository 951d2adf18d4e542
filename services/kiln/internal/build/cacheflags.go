package build

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/go-csvvalue"
)

// parseCaches reads --cache-from or --cache-to: IMAGE[,IMAGE] for caches in a
// registry, or type=TYPE[,KEY=VALUE].
func parseCaches(flag string, flags []string) ([]client.CacheOptionsEntry, error) {
	var all []client.CacheOptionsEntry
	for _, text := range flags {
		if text == "" {
			continue
		}
		if !strings.Contains(text, "=") {
			refs, err := csvvalue.Fields(text, nil)
			if err != nil {
				return nil, fmt.Errorf("--%s %q: %w", flag, text, err)
			}
			for _, ref := range refs {
				all = append(all, client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": ref}})
			}
			continue
		}
		attrs, err := csvFlag(flag, text)
		if err != nil {
			return nil, err
		}
		entry := client.CacheOptionsEntry{Type: attrs["type"], Attrs: attrs}
		delete(attrs, "type")
		if entry.Type == "" {
			return nil, fmt.Errorf("--%s %q has no type; write it like type=registry,ref=IMAGE or type=local,src=DIRECTORY", flag, text)
		}
		if addCredentials(&entry) {
			all = append(all, entry)
		}
	}
	return all, nil
}

// addCredentials adds those of the environment to caches in GitHub's store and S3,
// as docker buildx does. It reports whether the cache can be used: one of GitHub's
// is left out where no workflow runs.
func addCredentials(entry *client.CacheOptionsEntry) bool {
	fromEnv := func(attr, variable string) {
		if value := os.Getenv(variable); value != "" {
			setDefault(entry.Attrs, attr, value)
		}
	}
	switch entry.Type {
	case "s3":
		if entry.Attrs["access_key_id"] == "" || entry.Attrs["secret_access_key"] == "" {
			fromEnv("access_key_id", "AWS_ACCESS_KEY_ID")
			fromEnv("secret_access_key", "AWS_SECRET_ACCESS_KEY")
			fromEnv("session_token", "AWS_SESSION_TOKEN")
		}
	case "gha":
		second, _ := strconv.ParseBool(os.Getenv("ACTIONS_CACHE_SERVICE_V2"))
		fromEnv("token", "ACTIONS_RUNTIME_TOKEN")
		if version, set := entry.Attrs["version"]; version == "2" || !set && second {
			fromEnv("url_v2", "ACTIONS_RESULTS_URL")
		}
		fromEnv("url", "ACTIONS_CACHE_URL")
		fromEnv("url", "ACTIONS_RESULTS_URL")
		return entry.Attrs["token"] != "" && entry.Attrs["url"]+entry.Attrs["url_v2"] != ""
	}
	return true
}
