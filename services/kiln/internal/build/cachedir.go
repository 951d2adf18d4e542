package build

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/buildkit/client"

	"github.com/kilnbuild/kiln/pkg/cachelease"
	"github.com/kilnbuild/kiln/pkg/telemetry"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/kiln/internal/connect"
)

// leaseCacheDir takes leases on the directory of --cache-dir, and has the build read
// from it what they hold. The leases end with release.
func (o *options) leaseCacheDir(ctx context.Context, opt *client.SolveOpt, tel *telemetry.Telemetry) (release func(), err error) {
	if o.cacheDir == "" {
		return func() {}, nil
	}
	from := client.CacheOptionsEntry{Type: "local", Attrs: map[string]string{"src": o.cacheDir, "tag": o.project}}
	cc, err := o.conn.For(connect.CacheManager, o.cacheManager).Connect()
	if err != nil {
		return nil, err
	}
	holder := cachelease.Holder{Name: "kiln build " + opt.Ref, Project: o.project}
	leases := cachelease.Acquire(ctx, cachemanagerv1.NewCacheManagerServiceClient(cc), holder, []cachelease.Want{
		{Directory: o.cacheDir, Tag: o.project}, {Directory: o.cacheDir, Tag: o.project, Export: true},
	}, tel.Logger)
	digest, leased := leases.Digest(0)
	if leased {
		from.Attrs["digest"] = digest
	}
	release = func() {
		leases.Release(ctx)
		_ = cc.Close() // nothing is left to lose
	}
	if !leased || digest != "" {
		entries := []client.CacheOptionsEntry{from}
		if err := o.plainPaths(entries, "src"); err != nil {
			release()
			return nil, err
		}
		opt.CacheImports = append(opt.CacheImports, entries...)
	}
	return release, nil
}

// plainPaths gives directories of type=local caches another path where theirs is not
// printable ASCII: BuildKit names the directory in a header, which holds nothing else.
func (o *options) plainPaths(entries []client.CacheOptionsEntry, attr string) error {
	for _, entry := range entries {
		path := entry.Attrs[attr]
		if entry.Type != "local" || path == "" || strings.IndexFunc(path, func(r rune) bool { return r < ' ' || r > '~' }) < 0 {
			continue
		}
		path, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		if attr == "dest" {
			if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // As BuildKit's client makes it.
				return err
			}
		}
		dir, err := o.scratchDir()
		if err != nil {
			return err
		}
		entry.Attrs[attr] = filepath.Join(dir, "cache")
		if err := os.Symlink(path, entry.Attrs[attr]); err != nil {
			return err
		}
	}
	return nil
}
