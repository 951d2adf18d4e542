-- Times are Unix nanoseconds. Bodies are messages of kiln.cachemanager.v1.

CREATE TABLE policies (
  version INTEGER PRIMARY KEY,
  source  TEXT NOT NULL, -- "configuration" or "request"
  body    BLOB NOT NULL
) STRICT;

CREATE TABLE pins (
  id          TEXT PRIMARY KEY,
  request_id  TEXT UNIQUE,
  fingerprint TEXT NOT NULL,
  created     INTEGER NOT NULL,
  expires     INTEGER, -- NULL: when it is removed
  body        BLOB NOT NULL
) STRICT;

CREATE TABLE runs (
  id         TEXT PRIMARY KEY,
  request_id TEXT UNIQUE,
  started    INTEGER NOT NULL,
  ended      INTEGER, -- NULL: not yet
  body       BLOB NOT NULL
) STRICT;

CREATE INDEX runs_by_start ON runs (started, id);

CREATE TABLE verdicts (
  run      TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  sequence INTEGER NOT NULL,
  body     BLOB NOT NULL,
  PRIMARY KEY (run, sequence)
) STRICT, WITHOUT ROWID;

CREATE TABLE samples (
  cache   TEXT NOT NULL,
  time    INTEGER NOT NULL,
  bytes   INTEGER NOT NULL,
  records INTEGER NOT NULL,
  PRIMARY KEY (cache, time)
) STRICT, WITHOUT ROWID;
