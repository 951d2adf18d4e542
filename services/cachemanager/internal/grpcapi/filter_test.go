package grpcapi

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/pkg/aip"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
)

var now = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func record() *cachemanagerv1.Record {
	return &cachemanagerv1.Record{
		Cache: &cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Daemon{Daemon: "a"}}, Id: "r1", Type: cachemanagerv1.RecordType_RECORD_TYPE_EXEC_CACHE_MOUNT,
		Description: "cached mount /root/.m2", SizeBytes: 1000, InUse: true, CreateTime: timestamppb.New(now.Add(-72 * time.Hour)),
		LastUseTime: timestamppb.New(now.Add(-50 * time.Hour)), UsageCount: 3, Projects: []string{"shop", "web"},
	}
}

func fits(t *testing.T, schema aip.Schema, text string, fields func(aip.Field) []any) bool {
	t.Helper()
	f, err := schema.Filter(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return aip.Fits(f, fields)
}

func TestRecordFilter(t *testing.T) {
	for text, want := range map[string]bool{
		`type = EXEC_CACHE_MOUNT AND age > "48h"`: true,
		`type = regular`:                                         false,
		`age > "51h"`:                                            false,
		`daemon = a AND -directory:"/"`:                          true,
		`projects = "web" AND size_bytes >= 1000`:                true,
		`projects = "other" OR usage_count > 3`:                  false,
		`in_use = true AND shared = false AND mutable != true`:   true,
		`description:"cached mount"`:                             true,
		`last_use_time < "2026-03-03T00:00:00Z" AND id = r1`:     true,
		`create_time > "2026-03-03T00:00:00Z" OR images:"local"`: false,
	} {
		if got := fits(t, recordSchema, text, recordFields(record(), now)); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
	never := record()
	never.LastUseTime = nil
	if fits(t, recordSchema, `last_use_time < "2027-01-01T00:00:00Z"`, recordFields(never, now)) || !fits(t, recordSchema, `age > "71h"`, recordFields(never, now)) {
		t.Error("a record that was never used has no last use, and is as old as it is")
	}
}

// Every field that may be named is one that can be read.
func TestAllFieldsAreRead(t *testing.T) {
	pin := &cachemanagerv1.Pin{Target: &cachemanagerv1.Pin_Match{Match: &cachemanagerv1.Match{Daemons: []string{"a"}}}, CreatedBy: "me", CreateTime: timestamppb.New(now)}
	run := &cachemanagerv1.Run{
		State: cachemanagerv1.RunState_RUN_STATE_PARTIAL, Trigger: cachemanagerv1.RunTrigger_RUN_TRIGGER_FREE_DISK, StartTime: timestamppb.New(now),
		Caches: []*cachemanagerv1.CacheRun{{Cache: record().GetCache()}},
	}
	for _, c := range []struct {
		schema aip.Schema
		fields func(aip.Field) []any
	}{{recordSchema, recordFields(record(), now)}, {pinSchema, pinFields(pin)}, {runSchema, runFields(run)}} {
		for _, of := range c.schema.Fields {
			for _, v := range c.fields(of.Field) {
				_, isText := v.(string)
				if want := of.Kind == aip.Text || of.Kind == aip.Enum; isText != want {
					t.Errorf("%s of %s is %T", of.Field, c.schema.Things, v)
				}
			}
		}
	}
	if !fits(t, runSchema, `state = PARTIAL AND trigger = FREE_DISK AND daemon = a AND dry_run = false`, runFields(run)) || fits(t, runSchema, "state = FAILED", runFields(run)) {
		t.Error("runs")
	}
	if !fits(t, pinSchema, `daemon = a AND created_by = me AND -expire_time > "2020-01-01T00:00:00Z"`, pinFields(pin)) {
		t.Error("pins")
	}
}

func TestSorter(t *testing.T) {
	small, never := record(), record()
	small.SizeBytes, never.LastUseTime = 1, nil
	for text, want := range map[string]int{"size_bytes": -1, "size_bytes desc": 1, "usage_count": 0, "usage_count, size_bytes": -1} {
		less, err := sorter(text)
		if err != nil || less(small, record()) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
	if less, err := sorter(""); err != nil || less(never, record()) >= 0 {
		t.Error("by default the longest unused comes first", err)
	}
	if _, err := sorter("age"); err == nil {
		t.Error("an order by age")
	}
}

// The place in a token finds the record again in each order, also among others that are
// equal in it, and what comes after it when it is gone.
func TestRecordPlace_FindsTheNextRecordInEachOrder(t *testing.T) {
	for _, order := range []string{"", "size_bytes", "size_bytes desc, last_use_time", "usage_count", "create_time desc"} {
		less, err := sorter(order)
		if err != nil {
			t.Fatal(err)
		}
		compare := func(a *cachemanagerv1.Record, b recordPlace) int {
			return cmp.Or(less(a, b.record()), recordPlaceOf(a).compare(b))
		}
		var all []*cachemanagerv1.Record
		for i := range 60 {
			r := record()
			r.Id, r.SizeBytes, r.UsageCount = fmt.Sprint("r", i%20), int64(i%4), int64(i%5)
			r.Cache = &cachemanagerv1.CacheRef{Kind: &cachemanagerv1.CacheRef_Daemon{Daemon: fmt.Sprint("d", i/20)}}
			r.CreateTime = timestamppb.New(now.Add(time.Duration(i%7) * time.Nanosecond))
			if r.LastUseTime = timestamppb.New(now.Add(time.Duration(i%3) * time.Hour)); i%6 == 0 {
				r.LastUseTime = nil
			}
			all = append(all, r)
		}
		slices.SortFunc(all, func(a, b *cachemanagerv1.Record) int { return compare(a, recordPlaceOf(b)) })
		for i, r := range all {
			text, err := json.Marshal(recordPlaceOf(r))
			var place recordPlace
			if err = errors.Join(err, json.Unmarshal(text, &place)); err != nil {
				t.Fatal(err)
			}
			if at := aip.After(all, place, compare); at != i+1 {
				t.Errorf("by %q, after record %d comes %d", order, i, at)
			}
			without := slices.Delete(slices.Clone(all), i, i+1)
			if at := aip.After(without, place, compare); at != i {
				t.Errorf("by %q, after record %d, which is gone, comes %d", order, i, at)
			}
		}
	}
}
