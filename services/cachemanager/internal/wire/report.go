package wire

import (
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/attribution"
)

// Report is what a builder says of a build.
func Report(in *cachemanagerv1.ReportBuildRequest) attribution.Build {
	b := attribution.Build{
		ID: in.GetBuildId(), Project: in.GetProject(), Images: in.GetImages(), Workers: in.GetWorkerIds(), Ended: timeOf(in.GetEndTime()),
		Cached: in.GetCachedSteps(), Total: in.GetTotalSteps(),
	}
	for _, s := range in.GetSteps() {
		b.Steps = append(b.Steps, attribution.Step{
			Digest: s.GetDigest(), Name: s.GetName(), Cached: s.GetCached(), Start: timeOf(s.GetStartTime()), End: timeOf(s.GetEndTime()),
		})
	}
	return b
}
