-- The version of the policy that the schedule applies, until a later one is approved: at most one row.
-- What is in force when this table is made has been applied.
CREATE TABLE approved (
  one     INTEGER PRIMARY KEY CHECK (one = 1),
  version INTEGER NOT NULL
) STRICT;

INSERT INTO approved (one, version) SELECT 1, max(version) FROM policies HAVING max(version) IS NOT NULL;
