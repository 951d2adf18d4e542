package show

import (
	"io"

	"google.golang.org/protobuf/proto"
)

// LargestPage is the most that the lists of the contract give at once.
const LargestPage = 1000

// PageSize is the size of the next page of a list of which so many are there already, and
// limit are wanted: 0 is all.
func PageSize(limit, have int) int32 {
	if limit <= 0 {
		return LargestPage
	}
	return int32(min(LargestPage, limit-have)) //nolint:gosec // at most a page
}

// JSONLines writes messages of the contract, one a line.
func JSONLines[M proto.Message](w io.Writer, all []M) error {
	for _, m := range all {
		if err := JSON(w, m); err != nil {
			return err
		}
	}
	return nil
}
