package buildkit

import (
	"fmt"
	"maps"
	"os"

	"github.com/moby/buildkit/client"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// addCache says where cached steps come from and go to.
func (j *job) addCache() error {
	for i, from := range j.spec.Cache.Imports {
		entry, err := j.cacheEntry(fmt.Sprintf("spec.cache.imports[%d]", i), from, "src", j.daemon.opts.Roots.Open)
		if err != nil {
			return err
		}
		j.opt.CacheImports = append(j.opt.CacheImports, entry)
	}
	for i, to := range j.spec.Cache.Exports {
		entry, err := j.cacheEntry(fmt.Sprintf("spec.cache.exports[%d]", i), to, "dest", j.daemon.opts.Roots.Create)
		if err != nil {
			return err
		}
		j.opt.CacheExports = append(j.opt.CacheExports, entry)
	}
	return nil
}

// cacheEntry copies an entry, for BuildKit's client writes to it. Where it names a
// directory, the client is given that which was opened below an allowed root, so
// that a path that changes afterwards leads nowhere else.
func (j *job) cacheEntry(field string, entry build.CacheEntry, directory string, open func(string) (*os.Root, error)) (client.CacheOptionsEntry, error) {
	out := client.CacheOptionsEntry{Type: entry.Type, Attrs: maps.Clone(entry.Attributes)}
	if out.Attrs == nil {
		out.Attrs = make(map[string]string)
	}
	if entry.Type != "local" {
		return out, j.checkEndpoints(field, entry)
	}
	path := fmt.Sprintf("%s.attributes[%q]", field, directory)
	root, err := open(entry.Attributes[directory])
	if err != nil {
		return out, inField(path, err)
	}
	j.keep(root)
	dir, err := root.Open(".")
	if err != nil {
		return out, err
	}
	j.keep(dir)
	out.Attrs[directory] = fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	return out, nil
}

// checkEndpoints holds the caches in object stores to the guard: the daemon sends
// what it is told to where it is told.
func (j *job) checkEndpoints(field string, entry build.CacheEntry) error {
	for _, name := range []string{"endpoint_url", "account_url", "url", "url_v2"} {
		if address := entry.Attributes[name]; address != "" {
			if err := j.daemon.opts.Guard.CheckURL(address); err != nil {
				return inField(fmt.Sprintf("%s.attributes[%q]", field, name), err)
			}
		}
	}
	return nil
}
