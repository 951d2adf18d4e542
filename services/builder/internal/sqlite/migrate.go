package sqlite

import "embed"

// migrations are the steps of the schema; see sqlitedb.Migrate.
//
//go:embed migrations/*.sql
var migrations embed.FS
