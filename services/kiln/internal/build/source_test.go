package build

import (
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
)

func TestPrintSource_ShowsRangesWithoutAnEnd(t *testing.T) {
	var out strings.Builder
	info := &pb.SourceInfo{Filename: "build.hcl", Data: []byte("a\nb\nc\nd\n")}
	for _, source := range []*errdefs.Source{
		nil, {}, {Info: info}, {Info: info, Ranges: []*pb.Range{nil, {}, {End: &pb.Position{Line: 2}}}},
		{Info: info, Ranges: []*pb.Range{{Start: &pb.Position{Line: 3}}}},
	} {
		if err := printSource(&out, source); err != nil {
			t.Error(err)
		}
	}
	if text := out.String(); strings.Count(text, ">>>") != 1 || !strings.Contains(text, "   3 | >>> c\n") {
		t.Errorf("printed %q", text)
	}
}
