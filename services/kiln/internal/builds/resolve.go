package builds

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/pkg/fault"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

const (
	// recent is among how many builds a shortened id is looked for.
	recent = 1000
	// maxShown is how many builds an error names.
	maxShown = 4
)

// record returns the build that an id or the beginning of one names.
func (c *call) record(ctx context.Context, id string) (*builderv1.BuildRecord, error) {
	res, err := c.API().GetBuild(ctx, &builderv1.GetBuildRequest{BuildId: id})
	if err == nil {
		return res.GetBuild(), nil
	}
	if status.Code(err) != codes.NotFound {
		return nil, err
	}
	list, err := c.API().ListBuilds(ctx, &builderv1.ListBuildsRequest{PageSize: recent})
	if err != nil {
		return nil, err
	}
	return match(list.GetBuilds(), id)
}

// match returns the only build whose id begins so.
func match(builds []*builderv1.BuildRecord, prefix string) (*builderv1.BuildRecord, error) {
	var fits []*builderv1.BuildRecord
	var names []string
	for _, b := range builds {
		if strings.HasPrefix(b.GetId(), prefix) {
			fits = append(fits, b)
			names = append(names, b.GetId())
		}
	}
	switch {
	case len(fits) == 1:
		return fits[0], nil
	case len(fits) == 0:
		return nil, fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no build %q, or its record is gone", prefix), "`kiln builds ls` lists those that there are")
	}
	more := ""
	if len(names) > maxShown {
		names, more = names[:maxShown], fmt.Sprintf(" and %d more", len(fits)-maxShown)
	}
	return nil, fault.New(fault.InvalidArgument, "", fmt.Sprintf("%q may be %s%s", prefix, strings.Join(names, ", "), more), "give more of the ID")
}
