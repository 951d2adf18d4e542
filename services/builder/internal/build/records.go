package build

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// Records remembers builds in memory, and forgets the oldest ended ones when
// there are more than its limit.
type Records struct {
	limit int

	mu   sync.RWMutex
	next uint64
	byID map[string]*Record
	all  []*Record // by sequence, oldest first
}

// NewRecords returns an empty memory for limit builds, and always for all that
// have not ended.
func NewRecords(limit int) *Records {
	return &Records{limit: limit, byID: make(map[string]*Record)}
}

// Add remembers a new build. It reports false when its id is known already.
func (r *Records) Add(rec Record) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.byID[rec.ID]; ok {
		return false
	}
	r.next++
	rec.sequence = r.next
	r.byID[rec.ID] = &rec
	r.all = append(r.all, &rec)
	r.forget()
	return true
}

// forget drops the oldest ended builds beyond the limit.
func (r *Records) forget() {
	excess := len(r.all) - r.limit
	if excess <= 0 {
		return
	}
	r.all = slices.DeleteFunc(r.all, func(rec *Record) bool {
		if excess <= 0 || !rec.State.Final() {
			return false
		}
		excess--
		delete(r.byID, rec.ID)
		return true
	})
}

// Update changes a record, under the lock. It does nothing when the record is
// gone. change must not keep the pointer.
func (r *Records) Update(id string, change func(*Record)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rec, ok := r.byID[id]; ok {
		change(rec)
	}
}

// Get returns a copy of a record, or a NOT_FOUND fault.
func (r *Records) Get(id string) (Record, error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	rec, ok := r.byID[id]
	if !ok {
		return Record{}, fault.New(fault.NotFound, "NOT_FOUND",
			fmt.Sprintf("build %q is not known", id),
			"check the id with ListBuilds; records of old builds are dropped, and all of them when the builder restarts")
	}
	return *rec, nil
}

// List returns copies of at most size records, newest first, and the token of
// the next page, empty on the last one.
func (r *Records) List(size int, token string) ([]Record, string, error) {
	before, err := parseToken(token)
	if err != nil {
		return nil, "", err
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	end := len(r.all)
	if before > 0 {
		end, _ = slices.BinarySearchFunc(r.all, before, func(rec *Record, seq uint64) int {
			return int(rec.sequence) - int(seq) //nolint:gosec // sequences count builds of one process
		})
	}
	start := max(0, end-size)
	page := make([]Record, 0, end-start)
	for i := end - 1; i >= start; i-- {
		page = append(page, *r.all[i])
	}
	if start == 0 {
		return page, "", nil
	}
	return page, formatToken(r.all[start].sequence), nil
}

// Running counts the builds that a daemon is running.
func (r *Records) Running(daemon string) int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := 0
	for _, rec := range r.all {
		if rec.Daemon == daemon && rec.State == Running {
			n++
		}
	}
	return n
}

const tokenPrefix = "before:"

// formatToken makes a page token; it is opaque to callers (AIP-158).
func formatToken(before uint64) string {
	return base64.RawURLEncoding.EncodeToString([]byte(tokenPrefix + strconv.FormatUint(before, 10)))
}

func parseToken(token string) (uint64, error) {
	if token == "" {
		return 0, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(token)
	number, ok := strings.CutPrefix(string(raw), tokenPrefix)
	if err == nil && ok {
		var before uint64
		if before, err = strconv.ParseUint(number, 10, 63); err == nil && before > 0 {
			return before, nil
		}
	}
	return 0, fault.Invalid("page_token", token, "is not a token of this list",
		"pass next_page_token of the page before unchanged, or leave it out")
}
