-- Each listing asks for the reports that were not learned from, which are few of a week's.
CREATE INDEX reports_pending ON reports (received) WHERE body IS NOT NULL;

-- For what goes with a report.
CREATE INDEX report_workers_by_build ON report_workers (build);
