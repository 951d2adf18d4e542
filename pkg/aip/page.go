package aip

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// DefaultPageSize is the size of a page for a caller that names none.
const DefaultPageSize = 50

// PageSize returns the size of a page that was asked for.
func PageSize(asked int32) int {
	if asked <= 0 {
		return DefaultPageSize
	}
	return int(asked)
}

// MaxPageBytes bounds the items of a page. gRPC clients refuse messages of more than
// 4 MiB unless they are told otherwise; the rest is for what frames the items.
const MaxPageBytes = 3 << 20

// Room is what is left of a page: a number of items, and bytes.
type Room struct {
	items, bytes int
	taken        bool
}

// NewRoom returns the room of a page of the size that was asked for. Bytes that the
// answer holds beside its items are reserved.
func NewRoom(asked int32, beside ...proto.Message) *Room {
	r := &Room{items: PageSize(asked), bytes: MaxPageBytes}
	r.bytes -= sizeOf(beside)
	return r
}

// Take takes room for one item, which is in the answer as these messages, and reports
// false when the page is full: that item begins the next page. The first item always
// has room, so that a list goes on; whoever makes items bounds the size of each.
func (r *Room) Take(item ...proto.Message) bool {
	bytes := sizeOf(item)
	if r.items == 0 || r.taken && bytes > r.bytes {
		return false
	}
	r.items, r.bytes, r.taken = r.items-1, r.bytes-bytes, true
	return true
}

func sizeOf(messages []proto.Message) (bytes int) {
	const frame = 6 // a tag and a length
	for _, m := range messages {
		bytes += proto.Size(m) + frame
	}
	return bytes
}

// Page returns the items of a list from an offset on that have room, and the offset of
// the next page; 0 on the last one.
func Page[T any, M proto.Message](room *Room, all []T, from int, message func(T) M) (page []M, next int) {
	from = min(max(0, from), len(all))
	for n, one := range all[from:] {
		m := message(one)
		if !room.Take(m) {
			return page, from + n
		}
		page = append(page, m)
	}
	return page, 0
}

// After returns the offset of the first item of a list that comes after the last one of the
// page before, by the order that the list is in. The last one itself need not be there any
// more: so a list that changes between two pages repeats and skips no item that stayed.
func After[T, K any](all []T, last K, compare func(item T, last K) int) int {
	at, found := slices.BinarySearchFunc(all, last, compare)
	if found {
		at++
	}
	return at
}

// NotOfTheList returns the fault for a page token that is not of the list.
func NotOfTheList() error {
	return fault.Invalid("page_token", "", "is not a token of this list",
		"send next_page_token of the page before, as the same caller and with the same filter and order; or none, for the first page")
}
