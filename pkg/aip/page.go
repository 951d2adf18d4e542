package aip

import (
	"encoding/base64"
	"encoding/json"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Token writes what a page token holds (AIP-158). Callers take it as it is.
func Token(place any) string {
	data, err := json.Marshal(place)
	if err != nil {
		return "" // not of what is put into one
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

// ReadToken reads a page token into place, which stays as it is for the first page. One
// that no service gave is an INVALID_ARGUMENT fault.
func ReadToken(text string, place any) error {
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

// Offset reads the token of a list that is counted from its beginning.
func Offset(text string) (int, error) {
	from := 0
	if err := ReadToken(text, &from); err != nil {
		return 0, err
	}
	return max(0, from), nil
}

// Page is a part of a list, and the token of the next one; empty on the last.
func Page[T any](all []T, from, size int) ([]T, string) {
	from = min(from, len(all))
	to := min(from+size, len(all))
	if to == len(all) {
		return all[from:to], ""
	}
	return all[from:to], Token(to)
}

// DefaultPageSize is the size of a page for who names none.
const DefaultPageSize = 50

// PageSize is the size of a page that was asked for.
func PageSize(asked int32) int {
	if asked == 0 {
		return DefaultPageSize
	}
	return int(asked)
}
