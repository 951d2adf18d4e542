package state

import (
	"path/filepath"
	"strings"
	"testing"
)

// What each listing and each report asks goes by the few reports that are pending.
func TestPendingReportsAreIndexed(t *testing.T) {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "cache.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	for query, args := range map[string][]any{
		pendingReports(2): {"w1", "w2", 0, 10},
		unreadReports:     {0},
	} {
		rows, err := s.db.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
		if err != nil {
			t.Fatal(err)
		}
		var plan []string
		for rows.Next() {
			var id, parent, unused int
			var detail string
			if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, detail)
		}
		if err := rows.Close(); err != nil {
			t.Fatal(err)
		}
		text := strings.Join(plan, "\n")
		if !strings.Contains(text, "reports_pending") || strings.Contains(text, "SCAN report_workers") || strings.Contains(text, "SCAN w") {
			t.Errorf("%s:\n%s", query, text)
		}
	}
}
