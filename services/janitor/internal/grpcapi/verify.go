package grpcapi

import (
	"github.com/kilnbuild/kiln/pkg/fault"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
	"github.com/kilnbuild/kiln/services/janitor/internal/verify"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// VerifyRegistry implements the RPC.
func (s *Server) VerifyRegistry(req *janitorv1.VerifyRegistryRequest, stream janitorv1.JanitorService_VerifyRegistryServer) error {
	if s.Verified == nil {
		return fault.New(fault.Unimplemented, "UNIMPLEMENTED", "this version verifies with the registry's storage only", "run the janitor where the storage can be reached, and set registry.storage_root or registry.storage_config")
	}
	ask := verify.Ask{Repositories: policy.Globs(req.GetRepositories()...), SkipContent: req.GetSkipContent(), BytesASecond: req.GetMaxBytesPerSecond()}
	return verify.Run(stream.Context(), s.Verified, ask, func(e verify.Event) error {
		res := &janitorv1.VerifyRegistryResponse{}
		switch {
		case e.Defect != nil:
			res.Event = &janitorv1.VerifyRegistryResponse_Defect{Defect: wire.DefectProto(*e.Defect)}
		case e.Finished != nil:
			res.Event = &janitorv1.VerifyRegistryResponse_Finished{Finished: verifiedProto(*e.Finished)}
		default:
			res.Event = &janitorv1.VerifyRegistryResponse_Progress{Progress: verifiedProto(*e.Progress)}
		}
		return stream.Send(res)
	})
}

func verifiedProto(p verify.Progress) *janitorv1.VerifyProgress {
	return &janitorv1.VerifyProgress{
		Manifests: p.Manifests, TotalManifests: p.TotalManifests, Blobs: p.Blobs, TotalBlobs: p.TotalBlobs, SizeBytes: p.Bytes, Defects: p.Defects,
	}
}
