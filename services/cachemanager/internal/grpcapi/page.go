package grpcapi

import (
	"encoding/base64"
	"encoding/json"
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

// lastActive is when a record was last used, or else made.
func lastActive(r *cachemanagerv1.Record) time.Time {
	if r.GetLastUseTime() == nil {
		return r.GetCreateTime().AsTime()
	}
	return r.GetLastUseTime().AsTime()
}
