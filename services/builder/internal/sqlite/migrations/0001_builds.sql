-- Builds, their requests, events and tags.

CREATE TABLE builds (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of coming, never used twice
    id          TEXT    NOT NULL UNIQUE,
    request_id  TEXT,                              -- NULL: none, as in all that follow
    -- Fields that queries name. Times are nanoseconds since 1970.
    project     TEXT,
    state       INTEGER NOT NULL,
    origin      INTEGER NOT NULL,
    create_time INTEGER,
    end_time    INTEGER,
    caller      TEXT,
    daemon      TEXT,
    tags        TEXT    NOT NULL,                  -- as in the table of tags, to see a change
    ended       INTEGER NOT NULL,                  -- 1: state is final
    -- What there is.
    last_event  INTEGER NOT NULL DEFAULT 0,
    bytes       INTEGER NOT NULL,                  -- of the record, the request and the events
    record      BLOB    NOT NULL                   -- a build.Record, as JSON
) STRICT;

CREATE UNIQUE INDEX builds_by_request_id ON builds (project, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX builds_by_project ON builds (project);
CREATE INDEX builds_unended ON builds (seq) WHERE ended = 0;
-- An ended build does not change: its bytes can be in the index that sums them.
CREATE INDEX builds_ended ON builds (end_time, seq, bytes) WHERE ended = 1;

CREATE TABLE tags (
    tag   TEXT    NOT NULL,
    build INTEGER NOT NULL REFERENCES builds (seq) ON DELETE CASCADE,
    PRIMARY KEY (build, tag)
) STRICT, WITHOUT ROWID;

CREATE INDEX tags_by_tag ON tags (tag);

CREATE TABLE requests (
    build INTEGER PRIMARY KEY REFERENCES builds (seq) ON DELETE CASCADE,
    zstd  INTEGER NOT NULL,                        -- 1: request is compressed
    request BLOB  NOT NULL
) STRICT;

-- The frames of one commit, or of a part of a large one. The table has row ids, for
-- SQLite reads a whole row to compare the key of one that has none.
CREATE TABLE events (
    build  INTEGER NOT NULL REFERENCES builds (seq) ON DELETE CASCADE,
    first  INTEGER NOT NULL,                       -- sequence number of the first frame
    frames BLOB    NOT NULL,                       -- each with its length before it, as a uvarint
    UNIQUE (build, first)
) STRICT;
