package wire

import (
	"encoding/json"

	"google.golang.org/protobuf/types/known/timestamppb"

	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/lease"
)

// LeaseProto writes a lease.
func LeaseProto(l lease.Lease) *janitorv1.Lease {
	mode := janitorv1.LeaseMode_LEASE_MODE_IMPORT
	if l.Export {
		mode = janitorv1.LeaseMode_LEASE_MODE_EXPORT
	}
	return &janitorv1.Lease{
		Id: l.ID, References: l.References, Mode: mode, Holder: l.Holder,
		CreateTime: timestamppb.New(l.Created), ExpireTime: timestamppb.New(l.Expires),
	}
}

// EncodeLease writes a lease as it is stored.
func EncodeLease(l lease.Lease) ([]byte, error) { return json.Marshal(l) }

// DecodeLease reads what EncodeLease wrote.
func DecodeLease(body []byte) (l lease.Lease, err error) {
	err = json.Unmarshal(body, &l)
	return l, err
}
