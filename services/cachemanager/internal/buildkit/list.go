package buildkit

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"
)

// idStarts are the characters that BuildKit's record ids are made of (base 36).
const idStarts = "0123456789abcdefghijklmnopqrstuvwxyz"

// list asks for the whole cache. The answer is one message; when it is larger
// than a message may be, with some 50,000 records, it is asked for in parts.
func (d *Daemon) list(ctx context.Context) ([]*client.UsageInfo, error) {
	all, err := d.client.DiskUsage(ctx)
	if err == nil || grpcerrors.Code(err) != codes.ResourceExhausted {
		return all, err
	}
	all = nil
	for _, filter := range shards() {
		part, err := d.client.DiskUsage(ctx, client.WithFilter([]string{filter}))
		if err != nil {
			return nil, err
		}
		all = append(all, part...)
	}
	return all, nil
}

// shards are filters each of which lets a part of all records pass: one for each
// start of an id, and one for all others.
func shards() []string {
	filters := make([]string, 0, len(idStarts)+1)
	for _, start := range idStarts {
		filters = append(filters, fmt.Sprintf("id~=%q", "^"+string(start)))
	}
	return append(filters, fmt.Sprintf("id~=%q", "^[^"+idStarts+"]"))
}
