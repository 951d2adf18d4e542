package grpcapi

import (
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kilnbuild/kiln/pkg/aip"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/quarantine"
)

// What callers may choose lists by. Enums are by the names of their values.
var (
	runSchema = aip.Schema{
		Things: "runs", Example: `trigger = SCHEDULE AND state = FAILED`,
		Fields: []aip.Of{
			enum("state", "RUN_STATE_", janitorv1.RunState(0).Descriptor()), enum("trigger", "RUN_TRIGGER_", janitorv1.RunTrigger(0).Descriptor()),
			{Field: "dry_run", Kind: aip.Flag}, {Field: "start_time", Kind: aip.Time},
		},
	}
	quarantineSchema = aip.Schema{
		Things: "entries", Example: `repository = "cache/web" AND kind = MANIFEST`,
		Fields: []aip.Of{
			{Field: "run_id"}, enum("kind", "ITEM_KIND_", janitorv1.ItemKind(0).Descriptor()), {Field: "digest"}, {Field: "repository"}, {Field: "tag"},
			{Field: "quarantine_time", Kind: aip.Time},
		},
	}
)

// enum is a field whose values are those of an enum of the contract.
func enum(field aip.Field, prefix string, of protoreflect.EnumDescriptor) aip.Of {
	out := aip.Of{Field: field, Kind: aip.Enum, Prefix: prefix, Values: map[string]any{}}
	for i := 1; i < of.Values().Len(); i++ { // without UNSPECIFIED
		name := strings.TrimPrefix(string(of.Values().Get(i).Name()), prefix)
		out.Values[name] = name
		out.Names = append(out.Names, name)
	}
	return out
}

func runFields(r *janitorv1.Run) func(aip.Field) []any {
	return func(field aip.Field) []any {
		switch field {
		case "state":
			return []any{strings.TrimPrefix(r.GetState().String(), "RUN_STATE_")}
		case "trigger":
			return []any{strings.TrimPrefix(r.GetTrigger().String(), "RUN_TRIGGER_")}
		case "dry_run":
			return []any{r.GetDryRun()}
		default:
			return []any{r.GetStartTime().AsTime()}
		}
	}
}

func quarantineFields(e quarantine.Entry) func(aip.Field) []any {
	return func(field aip.Field) (all []any) {
		switch field {
		case "run_id":
			return []any{e.Run}
		case "kind":
			return []any{strings.ToUpper(string(e.Kind))}
		case "digest":
			return []any{e.Digest}
		case "repository":
			return []any{e.Repository}
		case "quarantine_time":
			return []any{e.At}
		}
		for _, tag := range e.Tags {
			all = append(all, tag)
		}
		return all
	}
}
