package grpcapi

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/aip"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
)

// What callers may choose and order lists by. Enums are by the names of their values.
var (
	recordSchema = aip.Schema{
		Things: "records", Example: `type = EXEC_CACHE_MOUNT AND age > "48h" AND size_bytes > 1000000`,
		Fields: []aip.Of{
			{Field: "daemon"}, {Field: "directory"}, {Field: "id"}, {Field: "description"}, {Field: "projects"}, {Field: "images"},
			enum("type", "RECORD_TYPE_", cachemanagerv1.RecordType(0).Descriptor()),
			{Field: "size_bytes", Kind: aip.Number, Sorts: true}, {Field: "usage_count", Kind: aip.Number, Sorts: true},
			{Field: "mutable", Kind: aip.Flag}, {Field: "in_use", Kind: aip.Flag}, {Field: "shared", Kind: aip.Flag},
			{Field: "create_time", Kind: aip.Time, Sorts: true}, {Field: "last_use_time", Kind: aip.Time, Sorts: true}, {Field: "age", Kind: aip.Span},
		},
	}
	runSchema = aip.Schema{
		Things: "runs", Example: `trigger = SCHEDULE AND state = FAILED`,
		Fields: []aip.Of{
			enum("state", "RUN_STATE_", cachemanagerv1.RunState(0).Descriptor()), enum("trigger", "RUN_TRIGGER_", cachemanagerv1.RunTrigger(0).Descriptor()),
			{Field: "dry_run", Kind: aip.Flag}, {Field: "start_time", Kind: aip.Time}, {Field: "daemon"}, {Field: "directory"},
		},
	}
	pinSchema = aip.Schema{
		Things: "pins", Example: `created_by = "ci" AND create_time > "2026-11-01T00:00:00Z"`,
		Fields: []aip.Of{
			{Field: "daemon"}, {Field: "directory"}, {Field: "created_by"},
			{Field: "create_time", Kind: aip.Time}, {Field: "expire_time", Kind: aip.Time},
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

func recordFields(r *cachemanagerv1.Record, now time.Time) func(aip.Field) []any {
	return func(field aip.Field) []any {
		switch field {
		case "age":
			return []any{now.Sub(lastActive(r))}
		case "daemon":
			return text(r.GetCache().GetDaemon())
		case "directory":
			return text(r.GetCache().GetDirectory())
		case "type":
			return []any{strings.TrimPrefix(r.GetType().String(), "RECORD_TYPE_")}
		}
		return fieldOf(r.ProtoReflect(), field)
	}
}

func runFields(r *cachemanagerv1.Run) func(aip.Field) []any {
	return func(field aip.Field) (all []any) {
		switch field {
		case "state":
			return []any{strings.TrimPrefix(r.GetState().String(), "RUN_STATE_")}
		case "trigger":
			return []any{strings.TrimPrefix(r.GetTrigger().String(), "RUN_TRIGGER_")}
		case "daemon", "directory":
			for _, c := range r.GetCaches() {
				all = append(all, placeOf(c.GetCache(), field)...)
			}
			return all
		}
		return fieldOf(r.ProtoReflect(), field)
	}
}

func pinFields(p *cachemanagerv1.Pin) func(aip.Field) []any {
	return func(field aip.Field) (all []any) {
		if field != "daemon" && field != "directory" {
			return fieldOf(p.ProtoReflect(), field)
		}
		names := p.GetMatch().GetDaemons()
		if field == "directory" {
			names = p.GetMatch().GetDirectories()
		}
		for _, name := range names {
			all = append(all, name)
		}
		return append(all, placeOf(p.GetRecord().GetCache(), field)...)
	}
}

func placeOf(ref *cachemanagerv1.CacheRef, field aip.Field) []any {
	if field == "directory" {
		return text(ref.GetDirectory())
	}
	return text(ref.GetDaemon())
}

func text(value string) []any {
	if value == "" {
		return nil
	}
	return []any{value}
}

// fieldOf is the values of a field of a message that has the same name.
func fieldOf(m protoreflect.Message, field aip.Field) (all []any) {
	of := m.Descriptor().Fields().ByName(protoreflect.Name(field))
	switch {
	case of.IsList():
		for i := range m.Get(of).List().Len() {
			all = append(all, m.Get(of).List().Get(i).Interface())
		}
		return all
	case of.Message() == nil:
		return []any{m.Get(of).Interface()}
	case !m.Has(of):
		return nil
	}
	if t, ok := m.Get(of).Message().Interface().(*timestamppb.Timestamp); ok {
		return []any{t.AsTime()}
	}
	return nil
}

// sorter compares records by an order, by default the longest unused first.
func sorter(text string) (func(a, b *cachemanagerv1.Record) int, error) {
	order, err := recordSchema.Order(text)
	if err != nil {
		return nil, err
	}
	if len(order) == 0 {
		order = []aip.Order{{Field: "last_use_time"}}
	}
	return func(a, b *cachemanagerv1.Record) int {
		for _, key := range order {
			c := aip.CompareValues(sortKey(a, key.Field), sortKey(b, key.Field))
			if key.Desc {
				c = -c
			}
			if c != 0 {
				return c
			}
		}
		return 0
	}, nil
}

func sortKey(r *cachemanagerv1.Record, field aip.Field) any {
	if field == "last_use_time" { // or when it was made
		return lastActive(r)
	}
	return slices.Concat(fieldOf(r.ProtoReflect(), field), []any{nil})[0]
}

// lastActive is when a record was last used, or else made.
func lastActive(r *cachemanagerv1.Record) time.Time {
	if r.GetLastUseTime() == nil {
		return r.GetCreateTime().AsTime()
	}
	return r.GetLastUseTime().AsTime()
}
