package wire

import (
	"google.golang.org/protobuf/types/known/timestamppb"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/local"
)

// LeaseProto writes a lease on a tag of a directory.
func LeaseProto(directory string, l local.Lease) *cachemanagerv1.Lease {
	out := &cachemanagerv1.Lease{
		Id: l.ID, Directory: directory, Tag: l.Tag, Mode: cachemanagerv1.LeaseMode_LEASE_MODE_IMPORT, Holder: l.Holder,
		CreateTime: timestamppb.New(l.Created), ExpireTime: timestamppb.New(l.Expires), Digest: l.Digest.String(),
	}
	if l.Mode == local.Export {
		out.Mode = cachemanagerv1.LeaseMode_LEASE_MODE_EXPORT
	}
	return out
}

const kindPrefix = "DEFECT_KIND_"

// DefectProto writes what is wrong in a directory.
func DefectProto(ref cache.Ref, d cache.Defect) *cachemanagerv1.Defect {
	return &cachemanagerv1.Defect{
		Directory: ref.Directory, Kind: cachemanagerv1.DefectKind(cachemanagerv1.DefectKind_value[kindPrefix+string(d.Kind)]),
		Digest: d.Digest, Tags: d.Tags, Message: d.Message, Remedy: d.Remedy, SizeBytes: d.Bytes,
	}
}
