package gateway

import (
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	controlapi "github.com/moby/buildkit/api/services/control"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
)

// Each place in which BuildKit's API takes what policy and rules judge is read, the
// deprecated ones included.
func TestAsked_ReadsEveryFormOfARequest(t *testing.T) {
	type attrs = map[string]string
	registry := func(ref string) buildkit.Entry { return buildkit.Entry{Type: "registry", Attrs: attrs{"ref": ref}} }
	for name, test := range map[string]struct {
		req  proto.Message
		want buildkit.Asked
	}{
		"a solve": {
			&controlapi.SolveRequest{
				Entitlements: []string{"network.host"}, Frontend: "dockerfile.v0", FrontendAttrs: attrs{"a": "b"},
				Exporters: []*controlapi.Exporter{{Type: "image", Attrs: attrs{"name": "x"}}}, EnableSessionExporter: true,
				Cache: &controlapi.CacheOptions{
					Imports: []*controlapi.CacheOptionsEntry{{Type: "s3"}}, Exports: []*controlapi.CacheOptionsEntry{{Type: "gha"}},
				},
			},
			buildkit.Asked{
				Entitlements: []string{"network.host"}, Frontend: "dockerfile.v0", Attrs: attrs{"a": "b"}, Hidden: true,
				Exports:      []buildkit.Entry{{Type: "image", Attrs: attrs{"name": "x"}}},
				CacheImports: []buildkit.Entry{{Type: "s3"}}, CacheExports: []buildkit.Entry{{Type: "gha"}},
			},
		},
		"the deprecated forms of a solve": {
			&controlapi.SolveRequest{
				ExporterDeprecated: "image", ExporterAttrsDeprecated: attrs{"name": "x", "push": ""},
				Cache: &controlapi.CacheOptions{ImportRefsDeprecated: []string{"i"}, ExportRefDeprecated: "e"},
			},
			buildkit.Asked{
				Exports:      []buildkit.Entry{{Type: "image", Attrs: attrs{"name": "x", "push": ""}}},
				CacheImports: []buildkit.Entry{registry("i")}, CacheExports: []buildkit.Entry{registry("e")},
			},
		},
		"a solve of a frontend": {
			&gatewaypb.SolveRequest{Frontend: "gateway.v0", FrontendOpt: attrs{"source": "s"}, CacheImports: []*gatewaypb.CacheOptionsEntry{{Type: "s3"}}},
			buildkit.Asked{Frontend: "gateway.v0", Attrs: attrs{"source": "s"}, CacheImports: []buildkit.Entry{{Type: "s3"}}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			test.want.Project = "web"
			if diff := gocmp.Diff(test.want, asked(test.req, "web")); diff != "" {
				t.Error(diff)
			}
		})
	}
}
