-- What the registry held, for forecasts.

CREATE TABLE samples (
  time  INTEGER PRIMARY KEY,
  bytes INTEGER NOT NULL
) STRICT;
