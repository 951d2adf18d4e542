-- What builders say of builds that have ended, and what that tells of records.

CREATE TABLE reports (
  build    TEXT PRIMARY KEY,
  received INTEGER NOT NULL,
  ended    INTEGER NOT NULL,
  project  TEXT NOT NULL,
  cached   INTEGER NOT NULL, -- steps
  total    INTEGER NOT NULL, -- steps
  body     BLOB -- the ReportBuildRequest; NULL: it was learned from
) STRICT;

CREATE INDEX reports_by_end ON reports (ended);

CREATE TABLE report_workers (
  worker TEXT NOT NULL,
  build  TEXT NOT NULL REFERENCES reports (build) ON DELETE CASCADE,
  PRIMARY KEY (worker, build)
) STRICT, WITHOUT ROWID;

CREATE TABLE uses (
  cache  TEXT NOT NULL,
  record TEXT NOT NULL,
  body   BLOB NOT NULL, -- JSON
  PRIMARY KEY (cache, record)
) STRICT, WITHOUT ROWID;
