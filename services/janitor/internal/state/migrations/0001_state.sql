-- Times are Unix nanoseconds. Bodies are messages of kiln.janitor.v1, and JSON for leases.

CREATE TABLE policies (
  version INTEGER PRIMARY KEY,
  source  TEXT NOT NULL, -- "configuration" or "request"
  body    BLOB NOT NULL
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

-- When manifests were last used. The name is a digest, or a tag with ":" before it.
CREATE TABLE uses (
  repository TEXT NOT NULL,
  name       TEXT NOT NULL,
  pushed     INTEGER NOT NULL, -- 0: not known of
  pulled     INTEGER NOT NULL,
  PRIMARY KEY (repository, name)
) STRICT, WITHOUT ROWID;

-- For how long nobody listened to notifications: until a time, for so long.
CREATE TABLE away (
  until    INTEGER PRIMARY KEY,
  duration INTEGER NOT NULL
) STRICT;

-- One row: when the listener was last there, by the host's clock.
CREATE TABLE listener (
  one  INTEGER PRIMARY KEY CHECK (one = 1),
  beat INTEGER NOT NULL
) STRICT;

CREATE TABLE leases (
  id         TEXT PRIMARY KEY,
  request_id TEXT UNIQUE,
  expires    INTEGER NOT NULL,
  ttl        INTEGER NOT NULL,
  body       BLOB NOT NULL
) STRICT;

CREATE INDEX leases_by_end ON leases (expires);
