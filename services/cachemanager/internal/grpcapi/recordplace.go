package grpcapi

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
)

// recordPlace is where a record stands in a list, whatever the order. A page token has that
// of the last one of the page before.
type recordPlace struct {
	Bytes, Uses int64
	Made, Used  *time.Time
	Cache       uint64 // of a digest of its name, which may be long
	ID          string
}

func recordPlaceOf(r *cachemanagerv1.Record) recordPlace {
	sum := sha256.Sum256([]byte(r.GetCache().GetDaemon() + "\x00" + r.GetCache().GetDirectory()))
	return recordPlace{
		Bytes: r.GetSizeBytes(), Uses: r.GetUsageCount(), Made: timeOf(r.GetCreateTime()), Used: timeOf(r.GetLastUseTime()),
		Cache: binary.BigEndian.Uint64(sum[:]), ID: r.GetId(),
	}
}

// record returns a record that stands there, as far as orders tell.
func (p recordPlace) record() *cachemanagerv1.Record {
	r := &cachemanagerv1.Record{Id: p.ID, SizeBytes: p.Bytes, UsageCount: p.Uses}
	if p.Made != nil {
		r.CreateTime = timestamppb.New(*p.Made)
	}
	if p.Used != nil {
		r.LastUseTime = timestamppb.New(*p.Used)
	}
	return r
}

// compare orders records that an order leaves equal: by cache, then by id.
func (p recordPlace) compare(o recordPlace) int {
	return cmp.Or(cmp.Compare(p.Cache, o.Cache), cmp.Compare(p.ID, o.ID))
}

func timeOf(t *timestamppb.Timestamp) *time.Time {
	if t == nil {
		return nil
	}
	at := t.AsTime()
	return &at
}
