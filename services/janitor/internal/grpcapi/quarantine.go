package grpcapi

import (
	"context"

	"github.com/kilnbuild/kiln/pkg/aip"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
	"github.com/kilnbuild/kiln/services/janitor/internal/wire"
)

// filtered are the entries of the quarantine that a filter matches, the newest first.
func (s *Server) filtered(ctx context.Context, text string) (all []quarantine.Entry, _ error) {
	filter, err := quarantineSchema.Filter(text)
	if err != nil {
		return nil, err
	}
	entries, err := s.Engine.Quarantine(ctx)
	for _, e := range entries {
		if aip.Fits(filter, quarantineFields(e)) {
			all = append(all, e)
		}
	}
	return all, err
}

// ListQuarantine implements the RPC.
func (s *Server) ListQuarantine(ctx context.Context, req *janitorv1.ListQuarantineRequest) (*janitorv1.ListQuarantineResponse, error) {
	list, err := s.Pages.Query(ctx, req)
	if err != nil {
		return nil, err
	}
	var last *quarantine.Entry
	if err := list.Read(&last); err != nil {
		return nil, err
	}
	all, err := s.filtered(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	res := &janitorv1.ListQuarantineResponse{Total: wire.EntriesProto(all)}
	from, next := 0, 0
	if last != nil {
		from = aip.After(all, *last, quarantine.Entry.Compare)
	}
	if res.Entries, next = aip.Page(aip.NewRoom(req.GetPageSize(), res), all, from, wire.EntryProto); next > 0 {
		res.NextPageToken = list.Token(quarantine.Entry{ID: all[next-1].ID, At: all[next-1].At})
	}
	return res, nil
}

// Restore implements the RPC.
func (s *Server) Restore(ctx context.Context, req *janitorv1.RestoreRequest) (*janitorv1.RestoreResponse, error) {
	var entries []quarantine.Entry
	var err error
	switch what := req.GetWhat().(type) {
	case *janitorv1.RestoreRequest_Entries:
		entries, err = s.Engine.QuarantineOf(ctx, what.Entries.GetIds())
	case *janitorv1.RestoreRequest_RunId:
		entries, err = s.Engine.QuarantineOfRun(ctx, what.RunId)
	case *janitorv1.RestoreRequest_Filter:
		entries, err = s.filtered(ctx, what.Filter)
	}
	if err != nil {
		return nil, err
	}
	result, err := s.Engine.Restore(ctx, entries, req.GetValidateOnly())
	if err != nil {
		return nil, err
	}
	return &janitorv1.RestoreResponse{
		Restored: wire.EntriesProto(result.Restored), Present: wire.EntriesProto(result.Present), References: s.references(result.Restored),
	}, nil
}

// maxReferences bounds the references that an answer names.
const maxReferences = 1000

func (s *Server) references(entries []quarantine.Entry) (all []string) {
	for _, e := range entries {
		for _, name := range e.References() {
			all = append(all, s.Address+"/"+name)
		}
	}
	return sorted(all)[:min(len(all), maxReferences)]
}

// Purge implements the RPC.
func (s *Server) Purge(ctx context.Context, req *janitorv1.PurgeRequest) (*janitorv1.PurgeResponse, error) {
	filter := req.GetFilter()
	if filter == "*" {
		filter = ""
	}
	entries, err := s.filtered(ctx, filter)
	if err != nil {
		return nil, err
	}
	res := &janitorv1.PurgeResponse{Purged: wire.EntriesProto(entries)}
	if req.GetForce() {
		return res, s.Engine.Purge(ctx, entries)
	}
	const sample = 100
	for _, e := range entries[:min(len(entries), sample)] {
		res.Sample = append(res.Sample, wire.EntryProto(e))
	}
	return res, nil
}
