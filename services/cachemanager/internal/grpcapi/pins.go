package grpcapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/fault"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/wire"
)

// Pin implements the RPC.
func (s *Server) Pin(ctx context.Context, req *cachemanagerv1.PinRequest) (*cachemanagerv1.PinResponse, error) {
	now := s.opts.Now()
	p := policy.Pin{ID: s.opts.NewID(), Reason: req.GetReason(), Created: now, CreatedBy: caller(ctx)}
	if ttl := req.GetTtl(); ttl != nil {
		p.Expires = now.Add(ttl.AsDuration())
	}
	var err error
	if ref := req.GetRecord(); ref != nil {
		p.Cache, p.Record = wire.Ref(ref.GetCache()), ref.GetId()
		err = s.mustExist(ctx, p.Cache, p.Record)
	} else {
		p.Match, err = wire.Match("match", req.GetMatch())
	}
	if err != nil {
		return nil, err
	}
	if p, err = s.opts.State.AddPin(ctx, p, req.GetRequestId()); err != nil {
		return nil, err
	}
	return &cachemanagerv1.PinResponse{Pin: wire.PinProto(p)}, nil
}

func (s *Server) mustExist(ctx context.Context, ref cache.Ref, id string) error {
	listings, _, err := s.opts.Engine.List(ctx, []cache.Ref{ref})
	if err != nil {
		return err
	}
	for _, l := range listings {
		for _, r := range l.Records {
			if r.ID == id {
				return nil
			}
		}
	}
	missing := fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("cache %q has no record %q", ref, id), "ListRecords shows those that it has")
	missing.Field, missing.Value = "record.id", id
	return missing
}

// Unpin implements the RPC.
func (s *Server) Unpin(ctx context.Context, req *cachemanagerv1.UnpinRequest) (*cachemanagerv1.UnpinResponse, error) {
	p, err := s.opts.State.RemovePin(ctx, req.GetPinId())
	if err != nil {
		return nil, err
	}
	return &cachemanagerv1.UnpinResponse{Pin: wire.PinProto(p)}, nil
}

// ListPins implements the RPC.
func (s *Server) ListPins(ctx context.Context, req *cachemanagerv1.ListPinsRequest) (*cachemanagerv1.ListPinsResponse, error) {
	filter, err := pinSchema.Filter(req.GetFilter())
	if err != nil {
		return nil, err
	}
	list, err := s.opts.Pages.Query(ctx, req)
	if err != nil {
		return nil, err
	}
	var last *pinPlace
	if err := list.Read(&last); err != nil {
		return nil, err
	}
	pins, err := s.opts.State.Pins(ctx, s.opts.Now())
	if err != nil {
		return nil, err
	}
	pins = slices.DeleteFunc(pins, func(p policy.Pin) bool { return !aip.Fits(filter, pinFields(wire.PinProto(p))) })
	slices.SortFunc(pins, func(a, b policy.Pin) int { return pinPlaceOf(a).compare(pinPlaceOf(b)) })
	from, next := 0, 0
	if last != nil {
		from = aip.After(pins, *last, func(p policy.Pin, last pinPlace) int { return pinPlaceOf(p).compare(last) })
	}
	counted, err := s.counted(ctx)
	if err != nil {
		return nil, err
	}
	res := &cachemanagerv1.ListPinsResponse{}
	if res.Pins, next = aip.Page(aip.NewRoom(req.GetPageSize()), pins, from, counted); next > 0 {
		res.NextPageToken = list.Token(pinPlaceOf(pins[next-1]))
	}
	return res, nil
}

// counted returns what writes a pin with the number of records that it keeps now.
func (s *Server) counted(ctx context.Context) (func(policy.Pin) *cachemanagerv1.Pin, error) {
	listings, missed, err := s.opts.Engine.List(ctx, nil)
	if err != nil && len(missed) == 0 {
		return nil, err
	}
	away := make([]cache.Ref, 0, len(missed))
	for _, m := range missed {
		away = append(away, m.Cache)
	}
	now := s.opts.Now()
	return func(p policy.Pin) *cachemanagerv1.Pin {
		out := wire.PinProto(p)
		if held, known := p.Holds(listings, away, now); known {
			out.HeldRecords = &held
		}
		return out
	}, nil
}

// pinPlace is where a pin stands in the list, the newest first. A page token has that of
// the last one of the page before.
type pinPlace struct {
	Created int64
	ID      string
}

func pinPlaceOf(p policy.Pin) pinPlace { return pinPlace{p.Created.UnixNano(), p.ID} }

func (p pinPlace) compare(o pinPlace) int {
	return cmp.Or(cmp.Compare(o.Created, p.Created), cmp.Compare(p.ID, o.ID))
}
