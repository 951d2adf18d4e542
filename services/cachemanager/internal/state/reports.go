package state

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/pkg/runlog"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/attribution"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/cache"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/usage"
)

const (
	// reportsFor is how long a build counts for the hit ratio, and is kept.
	reportsFor = usage.HitWindow + time.Hour
	// unreadFor is how long a report waits for a listing of its daemon.
	unreadFor = 24 * time.Hour
	// reportsAtOnce is how many reports one listing is told.
	reportsAtOnce = 300
)

// unreadReports gives up what no listing has asked for.
const unreadReports = "UPDATE reports SET body = NULL WHERE body IS NOT NULL AND received < ?"

// AddReport keeps what a build was. One that is kept already stays as it is.
func (s *Store) AddReport(ctx context.Context, b attribution.Build, now time.Time) error {
	body, err := json.Marshal(b)
	if err != nil {
		return explain(err)
	}
	return s.change(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT OR IGNORE INTO reports (build, received, ended, project, cached, total, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
			b.ID, now.UnixNano(), b.Ended.UnixNano(), b.Project, b.Cached, b.Total, body)
		for _, worker := range b.Workers {
			if err == nil {
				_, err = tx.ExecContext(ctx, "INSERT OR IGNORE INTO report_workers (worker, build) VALUES (?, ?)", worker, b.ID)
			}
		}
		if err == nil {
			_, err = tx.ExecContext(ctx, "DELETE FROM reports WHERE ended < ?", now.Add(-reportsFor).UnixNano())
		}
		if err == nil {
			_, err = tx.ExecContext(ctx, unreadReports, now.Add(-unreadFor).UnixNano())
		}
		return err
	})
}

// Reported implements attribution.Store.
func (s *Store) Reported(ctx context.Context, workers []string, before time.Time) ([]attribution.Build, error) {
	args := make([]any, 0, len(workers)+2)
	for _, w := range workers {
		args = append(args, w)
	}
	args = append(args, before.UnixNano(), reportsAtOnce)
	all, err := runlog.Read(ctx, s.db, decodeReport, pendingReports(len(workers)), args...)
	return all, explain(err)
}

// pendingReports asks for what was not learned from of so many workers. It goes by the
// reports that are pending, and not by all that a worker ever had.
func pendingReports(workers int) string {
	return "SELECT body FROM reports WHERE body IS NOT NULL AND EXISTS (SELECT 1 FROM report_workers w WHERE w.build = reports.build AND w.worker IN (?" +
		strings.Repeat(", ?", workers-1) + ")) AND received < ? ORDER BY received LIMIT ?"
}

func decodeReport(body []byte) (b attribution.Build, err error) {
	err = json.Unmarshal(body, &b)
	return b, err
}

// Uses implements attribution.Store.
func (s *Store) Uses(ctx context.Context, ref cache.Ref) (_ attribution.Uses, err error) {
	rows, err := s.db.QueryContext(ctx, "SELECT record, body FROM uses WHERE cache = ?", ref.String())
	if err != nil {
		return nil, explain(err)
	}
	defer func() { err = errors.Join(err, explain(rows.Close())) }()
	all := attribution.Uses{}
	for rows.Next() {
		var id string
		var body []byte
		if err := rows.Scan(&id, &body); err != nil {
			return nil, explain(err)
		}
		var use attribution.Use
		if err := json.Unmarshal(body, &use); err != nil {
			return nil, explain(err)
		}
		all[id] = use
	}
	return all, explain(rows.Err())
}

// Learned implements attribution.Store.
func (s *Store) Learned(ctx context.Context, ref cache.Ref, known attribution.Uses, gone, builds []string) error {
	return s.change(ctx, func(tx *sql.Tx) error {
		for _, id := range gone {
			if _, err := tx.ExecContext(ctx, "DELETE FROM uses WHERE cache = ? AND record = ?", ref.String(), id); err != nil {
				return err
			}
		}
		for id, use := range known {
			body, err := json.Marshal(use)
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO uses (cache, record, body) VALUES (?, ?, ?)", ref.String(), id, body); err != nil {
				return err
			}
		}
		for _, id := range builds {
			if _, err := tx.ExecContext(ctx, "UPDATE reports SET body = NULL WHERE build = ?", id); err != nil {
				return err
			}
		}
		return nil
	})
}

// Hits returns what the builds of each project, that ended after a time, found in caches.
func (s *Store) Hits(ctx context.Context, after time.Time) (_ map[string]usage.Hits, err error) {
	rows, err := s.db.QueryContext(ctx, "SELECT project, sum(cached), sum(total) FROM reports WHERE ended > ? GROUP BY project", after.UnixNano())
	if err != nil {
		return nil, explain(err)
	}
	defer func() { err = errors.Join(err, explain(rows.Close())) }()
	all := map[string]usage.Hits{}
	for rows.Next() {
		var project string
		var hits usage.Hits
		if err := rows.Scan(&project, &hits.Cached, &hits.Total); err != nil {
			return nil, explain(err)
		}
		all[project] = hits
	}
	return all, explain(rows.Err())
}
