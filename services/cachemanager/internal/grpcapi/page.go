package grpcapi

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
)

// token writes what a page token holds.
func token(place any) string {
	data, err := json.Marshal(place)
	if err != nil {
		return "" // not of what is put into one here
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

// readToken reads a page token into place, which stays as it is for the first page.
func readToken(text string, place any) error {
	if text == "" {
		return nil
	}
	data, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(data, place)
	}
	if err != nil {
		return fault.Invalid("page_token", text, "is not one that this service gave", "send the next_page_token of the page before, or none for the first page")
	}
	return nil
}

// offsetOf reads the token of a list that is counted from its beginning.
func offsetOf(text string) (int, error) {
	from := 0
	if err := readToken(text, &from); err != nil {
		return 0, err
	}
	return max(0, from), nil
}

// page is a part of a list, and the token of the next one.
func page[T any](all []T, from, size int) ([]T, string) {
	from = min(from, len(all))
	to := min(from+size, len(all))
	if to == len(all) {
		return all[from:to], ""
	}
	return all[from:to], token(to)
}

// recordOrder reads an order (AIP-132) of records.
func recordOrder(text string) (func(a, b *cachemanagerv1.Record) int, error) {
	keys := map[string]func(a, b *cachemanagerv1.Record) int{
		"last_use_time": func(a, b *cachemanagerv1.Record) int { return lastActive(a).Compare(lastActive(b)) },
		"create_time": func(a, b *cachemanagerv1.Record) int {
			return a.GetCreateTime().AsTime().Compare(b.GetCreateTime().AsTime())
		},
		"size_bytes":  func(a, b *cachemanagerv1.Record) int { return cmp.Compare(a.GetSizeBytes(), b.GetSizeBytes()) },
		"usage_count": func(a, b *cachemanagerv1.Record) int { return cmp.Compare(a.GetUsageCount(), b.GetUsageCount()) },
	}
	var all []func(a, b *cachemanagerv1.Record) int
	for part := range strings.SplitSeq(cmp.Or(strings.TrimSpace(text), "last_use_time"), ",") {
		words := strings.Fields(part)
		desc := len(words) == 2 && words[1] == "desc"
		if len(words) != 1 && !desc || keys[words[0]] == nil {
			return nil, fault.Invalid("order_by", text, fmt.Sprintf("cannot be read at %q", strings.TrimSpace(part)),
				`name last_use_time, create_time, size_bytes or usage_count, each with " desc" or not, with commas between`)
		}
		key := keys[words[0]]
		if desc {
			ascending := key
			key = func(a, b *cachemanagerv1.Record) int { return ascending(b, a) }
		}
		all = append(all, key)
	}
	return func(a, b *cachemanagerv1.Record) int {
		for _, key := range all {
			if c := key(a, b); c != 0 {
				return c
			}
		}
		return 0
	}, nil
}

// unserved is the error for a field that this version does not take yet.
func unserved(field string) error {
	err := fault.New(fault.Unimplemented, "UNIMPLEMENTED", fmt.Sprintf("this version does not serve %s yet", field), "leave it out")
	err.Field = field
	return err
}

// lastActive is when a record was last used, or else made.
func lastActive(r *cachemanagerv1.Record) time.Time {
	if r.GetLastUseTime() == nil {
		return r.GetCreateTime().AsTime()
	}
	return r.GetLastUseTime().AsTime()
}
