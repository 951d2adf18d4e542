package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"go.yaml.in/yaml/v3"

	"github.com/kilnbuild/kiln/e2e/lab/labtest"
)

// The dashboards that are shipped are what Grafana's own schema says, without a field that it
// does not know, and ask the data source that is provisioned; the provisioning finds them where
// docker-compose.yml mounts them.
func TestS9_DashboardsAreGrafanas(t *testing.T) {
	cog.NewRuntime().RegisterPanelcfgVariant(timeseries.VariantConfig())
	cog.NewRuntime().RegisterDataqueryVariant(prometheus.VariantConfig())

	sources := map[string]string{} // types by uid
	var provisioned struct {
		Datasources []struct{ Type, UID, URL string }
		Providers   []struct {
			Type    string
			Options struct{ Path string }
		}
	}
	const dir = "../deploy/observability/grafana/"
	for _, file := range []string{"datasources", "dashboards"} {
		if err := yaml.Unmarshal(labtest.Must(os.ReadFile(dir+"provisioning/"+file+"/kiln.yml"))(t), &provisioned); err != nil {
			t.Fatal(err)
		}
	}
	stack := string(labtest.Must(os.ReadFile("../docker-compose.yml"))(t))
	for _, source := range provisioned.Datasources {
		sources[source.UID] = source.Type
		host, _, _ := strings.Cut(strings.TrimPrefix(source.URL, "http://"), ":")
		if !strings.Contains(stack, "\n  "+host+":\n") {
			t.Errorf("data source %s is at %s, which docker-compose.yml has not", source.UID, source.URL)
		}
	}
	if len(provisioned.Providers) != 1 || !strings.Contains(stack, "grafana/dashboards:"+provisioned.Providers[0].Options.Path+":ro") {
		t.Errorf("dashboards are looked for in %+v, which docker-compose.yml does not mount", provisioned.Providers)
	}
	uids, panels := map[string]bool{}, 0
	for _, file := range labtest.Must(filepath.Glob(dir + "dashboards/*.json"))(t) {
		raw := labtest.Must(os.ReadFile(file))(t)
		// The SDK wraps an empty list of errors as one, and then leaves out the panel. Of the newer
		// form of dashboards no file can be provisioned.
		if err := new(dashboard.Dashboard).UnmarshalJSONStrict(raw); err != nil && err.Error() != "" { //nolint:staticcheck // see above
			t.Errorf("%s: %v", file, err)
		}
		var board dashboard.Dashboard //nolint:staticcheck // see above
		if err := json.Unmarshal(raw, &board); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if err := board.Validate(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if board.Uid == nil || board.Title == nil || uids[*board.Uid] {
			t.Fatalf("%s: it has no title, or no uid of its own", file)
		}
		uids[*board.Uid] = true
		for _, p := range board.Panels {
			if p.Panel == nil || len(p.Panel.Targets) == 0 {
				continue // a row
			}
			panels++
			if s := p.Panel.Datasource; s == nil || s.Uid == nil || s.Type == nil || sources[*s.Uid] != *s.Type {
				t.Errorf("%s, %s: data source %+v is not provisioned", *board.Title, *p.Panel.Title, s)
			}
			for _, target := range p.Panel.Targets {
				if _, is := target.(*prometheus.Dataquery); !is {
					t.Errorf("%s, %s: %T is no query of Prometheus", *board.Title, *p.Panel.Title, target)
				}
			}
		}
	}
	if len(uids) != 3 || panels < 25 {
		t.Errorf("%d dashboards, %d panels", len(uids), panels)
	}
}
