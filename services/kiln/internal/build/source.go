package build

import (
	"io"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
)

// printSource prints the place of a failure. The ranges are those of the build's own
// frontend or graph; BuildKit's printer dereferences both ends of each.
func printSource(w io.Writer, source *errdefs.Source) error {
	if source == nil {
		return nil
	}
	var whole []*pb.Range
	for _, r := range source.Ranges {
		if r.GetStart() == nil {
			continue
		}
		if r.End == nil {
			r = &pb.Range{Start: r.Start, End: r.Start}
		}
		whole = append(whole, r)
	}
	return (&errdefs.Source{Info: source.Info, Ranges: whole}).Print(w)
}
