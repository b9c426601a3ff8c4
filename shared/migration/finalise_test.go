package migration_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/archive"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/schema"
	"github.com/coditect/platform/shared/tenant"
)

// dumps is a folder of dumps.
type dumps struct {
	*archive.Archive
	dir    string
	before func() // a dump is made
}

func newDumps(t *testing.T) *dumps {
	t.Helper()
	bin, err := localpg.Programs()
	require.NoError(t, err)
	d := &dumps{dir: filepath.Join(t.TempDir(), "archive")}
	u := url.URL{Scheme: "file", Path: d.dir}
	d.Archive, err = archive.Open(archive.Config{URL: u.String(), Programs: bin})
	require.NoError(t, err)
	return d
}

func (d *dumps) Save(ctx context.Context, dsn, schema, name string) (migration.Dump, error) {
	if d.before != nil {
		d.before()
	}
	s, err := d.Archive.Save(ctx, dsn, schema, name)
	return migration.Dump(s), err
}

func (d *dumps) names(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(d.dir)
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// finalising gives the world an archive.
func (w *world) finalising(t *testing.T, opts ...migration.Option) *dumps {
	t.Helper()
	d := newDumps(t)
	w.Mover = migration.New(w.Migrator, w.Queue, quick, append(opts, migration.WithArchive(d))...)
	return d
}

// digestsOf sums up a schema as a superuser.
func digestsOf(t *testing.T, dsn, schema string) (out map[string]migration.TableDigest) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	require.NoError(t, pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) (err error) {
		out, err = migration.SchemaDigests(t.Context(), tx, schema)
		return err
	}))
	return out
}

// structureOf lists everything a schema's tables are made of but its tenant's fence.
func structureOf(t *testing.T, dsn, schema string) (out []string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	rows, err := conn.Query(t.Context(), `SELECT x FROM (
			SELECT format('column %s %s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)) x
			FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
			WHERE c.relnamespace = $1::regnamespace AND c.relkind IN ('r', 'S', 'v')
			UNION ALL SELECT format('constraint %s %s', conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE connamespace = $1::regnamespace
			UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = $2
			UNION ALL SELECT format('sequence %s %s', sequencename, last_value) FROM pg_sequences WHERE schemaname = $2
			UNION ALL SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
				WHERE c.relnamespace = $1::regnamespace AND NOT tgisinternal AND tgname <> 'coditect_fence') y ORDER BY 1`, pgx.Identifier{schema}.Sanitize(), schema)
	require.NoError(t, err)
	out, err = pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return out
}

func schemaThere(t *testing.T, dsn, schema string) (there bool) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	require.NoError(t, conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)`, schema).Scan(&there))
	return there
}

// restored restores a finalised tenant's dump, and compares it with what was dropped.
func restored(t *testing.T, d *dumps, f migration.Finalisation, into string) {
	t.Helper()
	sum := make([]byte, 32)
	_, err := fmt.Sscanf(f.SHA256, "%x", &sum)
	require.NoError(t, err)
	require.NoError(t, d.Restore(t.Context(), path.Base(f.Archive), archive.Saved{URL: f.Archive, Bytes: f.Bytes, SHA256: sum}, into))
	require.Equal(t, f.Tables, digestsOf(t, into, f.Schema))
}

func TestOwnTenantsAreFinalised(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		d := w.finalising(t)
		ids, run := inGreen(t, w, 3)
		was, structure := digestsOf(t, w.BlueAdmin, blueSchema(ids[2])), structureOf(t, w.BlueAdmin, blueSchema(ids[2]))
		_, err := addProject(t.Context(), w.Door, ids[2], "in green")
		require.NoError(t, err)

		_, err = w.Mover.Finalise(t.Context(), run.ID, ids[2], "ada", false)
		require.Equal(t, "observation_time", fault.As(err).Code)
		f, err := w.Mover.Finalise(t.Context(), run.ID, ids[2], "ada", true)
		require.NoError(t, err)
		require.Equal(t, migration.Finalised, f.State)
		require.NotNil(t, f.Dropped)
		require.EqualValues(t, 3, f.Tables["project"].Rows, "with what was written in green")
		delete(was, "project")
		for table, digest := range was {
			require.Equal(t, digest, f.Tables[table], table)
		}
		require.EqualValues(t, 3, f.Rows)
		again, err := w.Mover.Finalise(t.Context(), run.ID, ids[2], "ada", false)
		require.NoError(t, err)
		require.Equal(t, f, again)
		require.Len(t, d.names(t), 1)

		require.False(t, schemaThere(t, w.BlueAdmin, blueSchema(ids[2])))
		require.True(t, schemaThere(t, w.BlueAdmin, blueSchema(ids[1])), "another tenant's")
		require.Equal(t, migration.Counts{migration.Green: 2, migration.Finalised: 1}, inspect(t, w, run).Counts)
		require.EqualValues(t, 0+1+2, inspect(t, w, run).RowsMoved)
		require.Equal(t, 3, projects(t, w.Door, ids[2]), "the tenant lives on")
		_, err = schema.UpgradeBlue(t.Context(), w.Blue(t).Pool, 2, nil)
		require.NoError(t, err)

		into := citustest.BlueDatabase(t) // their columns' defaults call functions of a home
		restored(t, d, f, into)
		require.Equal(t, structure, structureOf(t, into, f.Schema))
		execSQL(t, into, `UPDATE `+f.Schema+`.project SET name = 'without a fence'`)

		// The others when their time is over, by the sweep.
		_, err = w.Control.Exec(t.Context(), `UPDATE control.move SET green_at = green_at - interval '31 days' WHERE state = 'green'`)
		require.NoError(t, err)
		s, err := w.Mover.Sweep(t.Context(), time.Hour)
		require.NoError(t, err)
		require.Equal(t, migration.Swept{Finalised: 2}, s)
		require.Equal(t, migration.Counts{migration.Finalised: 3}, inspect(t, w, run).Counts)
		var events []string
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT array_agg(actor || ' ' || event ORDER BY id) FROM control.move_event WHERE tenant_id = $1`, ids[2]).Scan(&events))
		require.Equal(t, []string{"mover green", "ada finalised", "ada schema dropped"}, events)
	})
}

func TestForeignTenantsAreFinalised(t *testing.T) {
	t.Parallel()
	eachServer(t, func(t *testing.T, w *world) {
		w.withLegacy(t)
		d := w.finalising(t)
		const name = "acme00003"
		id := tenant.ImportedID("legacy", name)
		run, _, err := w.Mover.Start(t.Context(), migration.Plan{Source: "legacy", Tenants: []tenant.ID{id}, Actor: "test"})
		require.NoError(t, err)
		w.drain(t)
		structure := structureOf(t, w.Legacy, name)
		f, err := w.Mover.Finalise(t.Context(), run.ID, id, "ada", true)
		require.NoError(t, err)
		require.False(t, schemaThere(t, w.Legacy, name))
		require.True(t, schemaThere(t, w.Legacy, "acme00004"))
		require.Positive(t, f.Rows)
		// Its keys refer to public tables, so it goes back to where they are.
		restored(t, d, f, w.Legacy)
		require.Equal(t, structure, structureOf(t, w.Legacy, name))
	})
}

// finalisePoints are where a finalisation can be cut short.
var finalisePoints = []string{"finalise claimed", "finalise gate taken", "dump written", "finalised", "tables dropped", "last tables dropped"}

func TestAFinalisationThatDies(t *testing.T) {
	t.Parallel()
	for _, point := range sample(2, finalisePoints) {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, citustest.New(t))
			d := w.finalising(t)
			ids, run := inGreen(t, w, 3)
			was := digestsOf(t, w.BlueAdmin, blueSchema(ids[2]))
			reached := 0
			dying := migration.New(w.Migrator, w.Queue, quick, migration.WithArchive(d), migration.WithCrashPoints(func(at string) {
				if at == strings.TrimPrefix(point, "last ") {
					reached++
					if at == point || !schemaThere(t, w.BlueAdmin, blueSchema(ids[2])) {
						panic(crashed{at})
					}
				}
			}))
			ctx, cancel := context.WithCancel(t.Context())
			require.Panics(t, func() { _, _ = dying.Finalise(ctx, run.ID, ids[2], "ada", true) })
			cancel()
			require.Positive(t, reached)

			// Whoever comes while it may still be at work is sent away; afterwards the sweep takes it up.
			_, err := w.Mover.Finalise(t.Context(), run.ID, ids[2], "bob", true)
			require.Equal(t, "finalise_busy", fault.As(err).Code)
			_, err = w.Control.Exec(t.Context(), `UPDATE control.archive SET lease_until = clock_timestamp()`)
			require.NoError(t, err)
			s, err := w.Mover.Sweep(t.Context(), time.Hour)
			require.NoError(t, err)
			require.Equal(t, 1, s.Finalised)
			all, err := migration.Archived(t.Context(), w.Control, ids[2], 10)
			require.NoError(t, err)
			require.Len(t, all, 1)
			require.Equal(t, was, all[0].Tables)
			require.NotNil(t, all[0].Dropped)
			require.False(t, schemaThere(t, w.BlueAdmin, blueSchema(ids[2])))
			require.Equal(t, []string{path.Base(all[0].Archive)}, d.names(t), "what an earlier attempt has left in the archive is gone")
			restored(t, d, all[0], citustest.BlueDatabase(t))
			require.Equal(t, 2, projects(t, w.Door, ids[2]))
		})
	}
}

// A finalisation sleeps at each point until another one has finished, and the schema was restored
// where it was. Then it wakes up, and changes nothing.
func TestAFinalisationThatWakesUp(t *testing.T) {
	t.Parallel()
	for _, point := range sample(2, finalisePoints[:len(finalisePoints)-1]) {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t, citustest.New(t))
			d := w.finalising(t)
			ids, run := inGreen(t, w, 3)
			asleep, awake := make(chan struct{}), make(chan struct{})
			slept := false
			sleeper := migration.New(w.Migrator, w.Queue, quick, migration.WithArchive(d), migration.WithCrashPoints(func(at string) {
				if at == point && !slept {
					slept = true
					close(asleep)
					<-awake
				}
			}))
			woke := make(chan error)
			go func() { _, err := sleeper.Finalise(t.Context(), run.ID, ids[2], "ada", true); woke <- err }()
			<-asleep
			_, err := w.Control.Exec(t.Context(), `UPDATE control.archive SET lease_until = clock_timestamp()`)
			require.NoError(t, err)
			f, err := w.Mover.Finalise(t.Context(), run.ID, ids[2], "bob", true)
			require.NoError(t, err)
			require.NotNil(t, f.Dropped)
			restored(t, d, f, w.BlueAdmin)
			execSQL(t, w.BlueAdmin, `DO $$ DECLARE t regclass; BEGIN
				ALTER SCHEMA `+f.Schema+` OWNER TO coditect_owner;
				FOR t IN SELECT oid FROM pg_class WHERE relnamespace = '`+f.Schema+`'::regnamespace AND relkind = 'r' LOOP EXECUTE format('ALTER TABLE %s OWNER TO coditect_owner', t); END LOOP;
			END $$`)
			close(awake)
			require.NoError(t, <-woke)
			require.Equal(t, f.Tables, digestsOf(t, w.BlueAdmin, f.Schema), "what was restored is not dropped again")
			now, err := w.Mover.Finalise(t.Context(), run.ID, ids[2], "bob", true)
			require.NoError(t, err)
			require.Equal(t, f, now)
			require.Equal(t, []string{path.Base(f.Archive)}, d.names(t))
		})
	}
}

// What makes a finalisation fail leaves everything as it was; once it is mended, it works.
func TestASchemaThatMustNotBeDropped(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ code, spoil, mend string }{
		"blue_changed":    {"blue_changed", `ALTER TABLE SCHEMA.project DISABLE TRIGGER coditect_fence; INSERT INTO SCHEMA.project (tenant_id, id, name, created_at, updated_at) SELECT tenant_id, gen_random_uuid(), 'late', now(), now() FROM SCHEMA.project LIMIT 1; ALTER TABLE SCHEMA.project ENABLE ALWAYS TRIGGER coditect_fence`, ""},
		"blue_not_fenced": {"blue_not_fenced", `UPDATE coditect.gate SET closed = false WHERE schema_name = 'SCHEMA'`, `UPDATE coditect.gate SET closed = true WHERE schema_name = 'SCHEMA'`},
		"a fence is down": {"blue_not_fenced", `ALTER TABLE SCHEMA.comment DISABLE TRIGGER coditect_fence`, `ALTER TABLE SCHEMA.comment ENABLE ALWAYS TRIGGER coditect_fence`},
		"schema_in_use":   {"schema_in_use", `CREATE VIEW public.everybodys AS SELECT name FROM SCHEMA.project`, `DROP VIEW public.everybodys`},
		"schema_not_ours": {"schema_not_ours", `ALTER TABLE SCHEMA.task OWNER TO postgres`, `ALTER TABLE SCHEMA.task OWNER TO coditect_owner`},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, citustest.New(t))
			d := w.finalising(t)
			ids, run := inGreen(t, w, 4)
			name := blueSchema(ids[3])
			execSQL(t, w.BlueAdmin, `SET coditect.mover = 'on'; `+strings.ReplaceAll(c.spoil, "SCHEMA", name))
			was := digestsOf(t, w.BlueAdmin, name)
			_, err := w.Mover.Finalise(t.Context(), run.ID, ids[3], "ada", true)
			require.Error(t, err)
			require.NotNil(t, fault.As(err), "%v", err)
			require.Equal(t, c.code, fault.As(err).Code, "%v", err)
			require.Equal(t, was, digestsOf(t, w.BlueAdmin, name))
			require.Empty(t, d.names(t))
			require.Equal(t, migration.Counts{migration.Green: 4}, inspect(t, w, run).Counts)
			s, err := w.Mover.Sweep(t.Context(), time.Hour)
			require.NoError(t, err)
			require.Zero(t, s.Finalised, "not at once again")
			if c.mend == "" {
				return
			}
			execSQL(t, w.BlueAdmin, `SET coditect.mover = 'on'; `+strings.ReplaceAll(c.mend, "SCHEMA", name))
			_, err = w.Mover.Finalise(t.Context(), run.ID, ids[3], "ada", true)
			require.NoError(t, err)
			require.False(t, schemaThere(t, w.BlueAdmin, name))
		})
	}
}

// Somebody begins to use the schema while it is being dumped, or when a part of it is dropped:
// what they have made is not dropped, and the rest is when it is gone.
func TestASchemaThatComesIntoUse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	ids, run := inGreen(t, w, 2)
	name, once := blueSchema(ids[1]), false
	w.finalising(t, migration.WithCrashPoints(func(at string) {
		if at == "finalised" && !once {
			once = true
			execSQL(t, w.BlueAdmin, `SET coditect.mover = 'on'; CREATE VIEW public.everybodys AS SELECT name FROM `+name+`.project`)
		}
	}))
	_, err := w.Mover.Finalise(t.Context(), run.ID, ids[1], "ada", true)
	require.NotNil(t, fault.As(err), "%v", err)
	require.Equal(t, "schema_in_use", fault.As(err).Code)
	require.True(t, schemaThere(t, w.BlueAdmin, name))
	execSQL(t, w.BlueAdmin, `SELECT FROM public.everybodys; DROP VIEW public.everybodys; UPDATE coditect.gate SET epoch = epoch`)
	_, err = w.Control.Exec(t.Context(), `UPDATE control.archive SET retry_at = NULL`)
	require.NoError(t, err)
	s, err := w.Mover.Sweep(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Equal(t, 1, s.Finalised)
	require.False(t, schemaThere(t, w.BlueAdmin, name))
}

func TestOnlyGreenTenantsAreFinalised(t *testing.T) {
	t.Parallel()
	w := newWorld(t, citustest.New(t))
	ids := blueTenants(t, w, 2)
	run := start(t, w, ids, 10)
	_, err := w.Mover.Finalise(t.Context(), run.ID, ids[0], "ada", true)
	require.Equal(t, "no_archive", fault.As(err).Code)
	w.finalising(t)
	_, err = w.Mover.Finalise(t.Context(), run.ID, ids[0], "ada", true)
	require.Equal(t, "not_green", fault.As(err).Code)
	_, err = w.Mover.Finalise(t.Context(), run.ID, tenant.NewID(), "ada", true)
	require.Equal(t, "move_not_found", fault.As(err).Code)
	w.drain(t)
	_, err = w.Control.Exec(t.Context(), `UPDATE control.tenant SET status = 'deleting', delete_after = now() WHERE id = $1`, ids[0])
	require.NoError(t, err)
	_, err = w.Mover.Finalise(t.Context(), run.ID, ids[0], "ada", true)
	require.Equal(t, "tenant_deleted", fault.As(err).Code)
	require.True(t, schemaThere(t, w.BlueAdmin, blueSchema(ids[0])))
}
