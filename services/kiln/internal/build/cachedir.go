package build

import (
	"context"

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
	if !leased || digest != "" {
		opt.CacheImports = append(opt.CacheImports, from)
	}
	return func() {
		leases.Release(ctx)
		_ = cc.Close() // nothing is left to lose
	}, nil
}
