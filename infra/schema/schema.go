// Package schema embeds the platform's SQL: numbered files in goose's format
// ("-- +goose Up" only: going back is done by a new file, never by undoing an old
// one under running functions).
//
//   - Control is applied once, to the green database: the directory, keys, runs
//     and moves.
//   - Home is applied to every database that tenants live in, green, blue and
//     foreign: the gate, the fence and what row-level security needs.
//   - Tenant is applied to every blue schema and once to green's shared schema:
//     the same text makes both.
//
// shared/schema applies them.
package schema

import "embed"

// Control, Home and Tenant hold the files of each part below a folder of the
// part's name.
var (
	//go:embed control/*.sql
	Control embed.FS
	//go:embed home/*.sql
	Home embed.FS
	//go:embed tenant/*.sql
	Tenant embed.FS
)
