package command

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/coditect/platform/shared/archive"
	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

// tenantArg reads an argument that names a tenant.
func tenantArg(arg string) (tenant.ID, error) {
	id, err := tenant.ParseID(arg)
	if err != nil {
		return id, usage("TENANT must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is %q", arg)
	}
	return id, nil
}

// patienceForDump is how long a dump of a large schema may take: as long as the function has.
const patienceForDump = 6 * time.Minute

func (p *program) migrateFinalise() *cobra.Command {
	var now bool
	c := &cobra.Command{
		Use: "finalise RUN TENANT", Short: "Archive and drop the blue schema of a tenant that lives in green", Args: args("RUN, the run's ID", "TENANT, the tenant's ID"),
		Long: "Archive and drop the blue schema of a tenant that lives in green: it cannot go back any more.\n\nThat happens on its own when the observation time is over; --now does not wait for it.\nWhat an interruption or a failure has cut short goes on by itself, or with the same command.",
		RunE: func(c *cobra.Command, args []string) error {
			api, id, err := p.ofRun(args[0])
			if err != nil {
				return err
			}
			who, err := tenantArg(args[1])
			if err != nil {
				return err
			}
			p.Console.Say("Archiving and dropping the blue schema of %s …", who)
			body, err := api.Patient(patienceForDump).Do(c.Context(), http.MethodPost, "/migrations/runs/"+id.String()+"/tenants/"+who.String()+"/finalise",
				url.Values{"now": {strconv.FormatBool(now)}}, nil)
			if err != nil {
				return err
			}
			var f migration.Finalisation
			if err := json.Unmarshal(body, &f); err != nil {
				return err
			}
			return p.print(body, func(w io.Writer) {
				fmt.Fprintf(w, "Tenant %s is %s: schema %s (%s, %s) is in %s\n", f.Tenant, f.State, f.Schema, count(f.Rows, "row"), size(f.Bytes), f.Archive)
			})
		},
	}
	c.Flags().BoolVar(&now, "now", false, "do not wait for the end of the observation time")
	return c
}

func (p *program) archive() *cobra.Command {
	c := &cobra.Command{Use: "archive", Short: "List and restore dumps of the schemas that tenants have left", Args: cobra.ArbitraryArgs, RunE: group}
	c.AddCommand(p.archiveList(), p.archiveRestore())
	return c
}

func (p *program) archiveList() *cobra.Command {
	var limit int
	c := &cobra.Command{
		Use: "list", Short: "List dumps, newest first", Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			if limit < 1 || limit > 10000 {
				return usage("--limit must be between 1 and 10000; it is %d", limit)
			}
			db, closer, err := p.control(c.Context())
			if err != nil {
				return err
			}
			defer closer()
			all, err := migration.Archived(c.Context(), db, tenant.ID{}, limit)
			if err != nil {
				return err
			}
			return p.print(map[string]any{"items": orNone(all)}, func(w io.Writer) {
				var rows [][]string
				for _, f := range all {
					rows = append(rows, []string{f.Tenant.String(), f.Source, f.Schema, progressOf(f), size(f.Bytes), f.Archive})
				}
				table(w, "There is no dump.", []string{"TENANT", "SOURCE", "SCHEMA", "STATE", "SIZE", "DUMP"}, rows)
			})
		},
	}
	c.Flags().IntVar(&limit, "limit", 100, "how many, 1 to 10000")
	return c
}

// progressOf is a finalisation in a few words.
func progressOf(f migration.Finalisation) string {
	switch {
	case f.Dropped != nil:
		return "dropped " + day(f.Dropped)
	case f.Error != "":
		return "failed: " + f.Error
	case f.Saved != nil:
		return "being dropped"
	}
	return "being dumped"
}

// restored is the result of `archive restore`.
type restored struct {
	Tenant tenant.ID `json:"tenant"`
	Schema string    `json:"schema"`
	Dump   string    `json:"dump"`
	Rows   int64     `json:"rows"`
	Tables int       `json:"tables"`
}

const programsVariable = "CODITECT_PG_PROGRAMS"

func (p *program) archiveRestore() *cobra.Command {
	var into string
	var prepare bool
	c := &cobra.Command{
		Use: "restore TENANT", Short: "Make a tenant's archived schema in a database, and compare it with what was archived", Args: args("TENANT, the tenant's ID"),
		Long: "Make a tenant's archived schema in a database, in one transaction, and compare every table with what was archived.\n\n" +
			"The tables belong to the role of --into, which must see past row-level security to compare them, and they can be written.\n" +
			"The tenant's home does not change. A password is better in PGPASSWORD, because others on this machine can read command lines.\n" +
			"pg_restore is looked for in " + programsVariable + ", else in PATH.",
		RunE: func(c *cobra.Command, args []string) error {
			who, err := tenantArg(args[0])
			if err != nil {
				return err
			}
			if _, err := pgx.ParseConfig(into); into == "" || err != nil {
				return usage("--into must be the connection string of a database, such as postgres://admin@host:5432/rescue")
			}
			r, err := p.restore(c.Context(), who, into, prepare)
			if err != nil {
				return err
			}
			return p.print(r, func(w io.Writer) {
				fmt.Fprintf(w, "Schema %s of tenant %s is restored: %s with %s, the same as were archived\n", r.Schema, r.Tenant, count(r.Tables, "table"), count(r.Rows, "row"))
			})
		},
	}
	c.Flags().StringVar(&into, "into", "", "connection string of the database that gets the schema (required)")
	c.Flags().BoolVar(&prepare, "prepare", false, "make the platform's functions there first, which the tables of the platform's own tenants need")
	return c
}

func (p *program) restore(ctx context.Context, who tenant.ID, into string, prepare bool) (restored, error) {
	db, closer, err := p.control(ctx)
	if err != nil {
		return restored{}, err
	}
	defer closer()
	all, err := migration.Archived(ctx, db, who, 100)
	if err != nil {
		return restored{}, err
	}
	for _, f := range all {
		if f.Saved != nil {
			return p.restoreDump(ctx, f, into, prepare)
		}
	}
	return restored{}, &outcome{exitFailed, fmt.Sprintf("tenant %s has no dump in the archive", who)}
}

func (p *program) restoreDump(ctx context.Context, f migration.Finalisation, into string, prepare bool) (restored, error) {
	out := restored{Tenant: f.Tenant, Schema: f.Schema, Dump: f.Archive, Rows: f.Rows, Tables: len(f.Tables)}
	if prepare {
		if _, err := schema.ApplyHome(ctx, schema.Database{DSN: into, Name: citus.BlueDatabase, Kind: tenant.Blue}); err != nil {
			return out, err
		}
	}
	conn, err := pgx.Connect(ctx, into)
	if err != nil {
		return out, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := readyFor(ctx, conn, f); err != nil {
		return out, err
	}
	sum, err := hex.DecodeString(f.SHA256)
	if err != nil {
		return out, err
	}
	dumps, name, err := archive.OpenDump(archive.Config{Programs: p.Getenv(programsVariable)}, f.Archive)
	if err != nil {
		return out, err
	}
	p.Console.Say("Restoring %s …", f.Archive)
	if err := dumps.Restore(ctx, name, archive.Saved{URL: f.Archive, Bytes: f.Bytes, SHA256: sum}, into); err != nil {
		return out, err
	}
	var now map[string]migration.TableDigest
	if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) (err error) { now, err = migration.SchemaDigests(ctx, tx, f.Schema); return err }); err != nil {
		return out, err
	}
	for name, want := range f.Tables {
		if now[name] != want {
			return out, &outcome{exitFailed, fmt.Sprintf("table %s was restored with %s that are not those that were archived (%s)", name, count(now[name].Rows, "row"), count(want.Rows, "row"))}
		}
	}
	return out, nil
}

// readyFor refuses a database that has the schema, or lacks what its tables need.
func readyFor(ctx context.Context, conn *pgx.Conn, f migration.Finalisation) error {
	var there, functions, sees bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1), to_regprocedure('coditect.current_tenant()') IS NOT NULL,
		(SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user)`, f.Schema).Scan(&there, &functions, &sees)
	switch own := f.Source == "platform"; {
	case err != nil:
		return err
	case there:
		return &outcome{exitFailed, fmt.Sprintf("the database has a schema %s already", f.Schema)}
	case own && !functions:
		return &outcome{exitFailed, "the database lacks the platform's functions, which the tenant's tables need; --prepare makes them"}
	case own && !sees:
		return &outcome{exitFailed, "the role of --into must be a superuser or have BYPASSRLS: row-level security hides the tenant's rows from all others"}
	}
	return nil
}
