package buildkit

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/pkg/filters"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/gc"
)

// Rules makes rules of BuildKit's that can be simulated: those that are given or,
// without any, those by which the daemon itself collects. A filter that cannot be read
// is an INVALID_ARGUMENT fault.
func (d *Daemon) Rules(ctx context.Context, specs []gc.Spec) ([]gc.Rule, error) {
	if len(specs) == 0 {
		workers, err := d.client.ListWorkers(ctx)
		if err != nil {
			return nil, d.explain(ctx, err, "say by which rules it collects")
		}
		if len(workers) > 0 { // of which BuildKit uses the first
			for _, rule := range workers[0].GCPolicy {
				specs = append(specs, gc.Spec{
					All: rule.All, Filters: rule.Filter, KeepDuration: rule.KeepDuration,
					ReservedBytes: rule.ReservedSpace, MaxUsedBytes: rule.MaxUsedSpace, MinFreeBytes: rule.MinFreeSpace,
				})
			}
		}
	}
	rules := make([]gc.Rule, len(specs))
	for i, spec := range specs {
		filter, err := filters.ParseAll(spec.Filters...)
		if err != nil {
			return nil, fault.Invalid(fmt.Sprintf("daemon_rules.rules[%d].filters", i), strings.Join(spec.Filters, " "), err.Error(),
				`write it like "type==source.local", with commas for "and"`)
		}
		rules[i] = gc.Rule{Spec: spec, Matches: func(r cache.Record) bool { return filter.Match(adapt(r)) }}
	}
	return rules, nil
}

// adapt gives a filter the fields of a record that BuildKit gives it in a prune, where
// parents and use are never filled in (cache/manager.go, pruneOnce and adaptUsageInfo).
func adapt(r cache.Record) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		switch path[0] {
		case "id":
			return r.ID, r.ID != ""
		case "description":
			return r.Description, r.Description != ""
		case "mutable":
			return "", r.Mutable
		case "immutable":
			return "", !r.Mutable
		case "type":
			return string(r.Type), true
		case "shared":
			return "", r.Shared
		case "private":
			return "", !r.Shared
		}
		return "", false
	})
}
