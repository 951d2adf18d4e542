package buildkit

import (
	"context"
	"fmt"
	"maps"
	"os"

	"github.com/moby/buildkit/client"

	"github.com/kilnbuild/kiln/pkg/cachelease"
	"github.com/kilnbuild/kiln/pkg/registrylease"
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
	if entry.Type != localCache {
		return out, nil
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

// lease takes leases on the directories of the job's type=local caches, which end with
// it. An import is then of the manifest that the lease holds: the index may name another
// one by the time BuildKit's client looks.
func (j *job) lease(ctx context.Context) {
	if j.daemon.opts.CacheManager == nil {
		return
	}
	var wants []cachelease.Want
	imports := map[int]int{} // place of the want by that of the import
	for i, from := range j.spec.Cache.Imports {
		if from.Type == localCache && from.Attributes["digest"] == "" {
			imports[i] = len(wants)
			wants = append(wants, cachelease.Want{Directory: from.Attributes["src"], Tag: from.Attributes["tag"]})
		}
	}
	for _, to := range j.spec.Cache.Exports {
		if to.Type == localCache {
			wants = append(wants, cachelease.Want{Directory: to.Attributes["dest"], Tag: to.Attributes["tag"], Export: true})
		}
	}
	if len(wants) == 0 {
		return
	}
	holder := cachelease.Holder{Name: "build " + j.build, Project: j.spec.Project}
	leases := cachelease.Acquire(ctx, j.daemon.opts.CacheManager, holder, wants, j.daemon.log.With("build", j.build))
	j.keep(closer(func() error { leases.Release(ctx); return nil }))
	var kept []client.CacheOptionsEntry
	for i, entry := range j.opt.CacheImports {
		want, local := imports[i]
		if local {
			digest, leased := leases.Digest(want)
			if leased && digest == "" {
				continue // nothing to import, and what comes meanwhile is not held
			}
			if leased {
				entry.Attrs["digest"] = digest
			}
		}
		kept = append(kept, entry)
	}
	j.opt.CacheImports = kept
}

// leaseRegistry takes leases on the job's caches in the registry, which end with it.
func (j *job) leaseRegistry(ctx context.Context) {
	if j.daemon.opts.Janitor == nil {
		return
	}
	var wants []registrylease.Want
	add := func(entries []build.CacheEntry, export bool) {
		for _, entry := range entries {
			if ref := entry.Attributes["ref"]; entry.Type == registryCache && ref != "" {
				wants = append(wants, registrylease.Want{Reference: ref, Export: export})
			}
		}
	}
	add(j.spec.Cache.Imports, false)
	add(j.spec.Cache.Exports, true)
	if len(wants) == 0 {
		return
	}
	missed := j.daemon.opts.NoLease
	if missed == nil {
		missed = func() {}
	}
	leases := registrylease.Acquire(ctx, j.daemon.opts.Janitor, j.build, wants, j.daemon.log.With("build", j.build), missed)
	j.keep(closer(func() error { leases.Release(ctx); return nil }))
}

// closer is a function that closes something.
type closer func() error

func (c closer) Close() error { return c() }

// localCache is BuildKit's name of a cache in a directory.
const localCache = "local"

// registryCache is BuildKit's name of a cache in a registry.
const registryCache = "registry"
