package migration_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/preflight"
	"github.com/coditect/platform/shared/migration/source"
	"github.com/coditect/platform/shared/tenant"
)

// A registration enters the tenants that have a schema, whatever its name; doing it
// again enters the new ones and leaves the others where they are.
func TestRegistrationEntersWhatIsThere(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	w.Legacy = citustest.EmptyDatabase(t)
	execSQL(t, w.Legacy, `DO $$ BEGIN
			PERFORM pg_advisory_xact_lock(4711);
			IF to_regrole('legacy_app') IS NULL THEN CREATE ROLE legacy_app LOGIN; END IF;
		END $$;
		CREATE TABLE public.customers_client (schema_name text, name text);
		INSERT INTO public.customers_client SELECT s, 'Name of ' || s FROM unnest(ARRAY['one', 'We"ird, Name', 'gone', 'later']) s;
		CREATE SCHEMA one CREATE TABLE note (id bigserial PRIMARY KEY, body text);
		CREATE SCHEMA "We""ird, Name" CREATE TABLE note (id bigserial PRIMARY KEY, body text)`)
	entered := func() (out []string) {
		t.Helper()
		rows, err := w.Control.Query(t.Context(), `SELECT home || ' ' || slug || ': ' || name FROM control.tenant WHERE source = 'legacy' ORDER BY slug COLLATE "C"`)
		require.NoError(t, err)
		out, err = pgx.CollectRows(rows, pgx.RowTo[string])
		require.NoError(t, err)
		return out
	}
	r := w.register(t, legacyDescription)
	require.Equal(t, 4, r.Tenants)
	require.Equal(t, []string{`blue legacy-We"ird, Name: Name of We"ird, Name`, `blue legacy-one: Name of one`}, entered())
	for _, s := range []string{"one", `We"ird, Name`} {
		id := tenant.ImportedID("legacy", s)
		require.NoError(t, w.Door.InTenant(t.Context(), id, func(tx *citus.Tx) error {
			_, err := tx.Exec(t.Context(), `INSERT INTO note (body) VALUES ($1)`, "for "+s)
			return err
		}), "the platform's role may write, and draw from the sequence")
	}

	_, err := w.Control.Exec(t.Context(), `UPDATE control.tenant SET home = 'green' WHERE id = $1`, tenant.ImportedID("legacy", "one"))
	require.NoError(t, err)
	execSQL(t, w.Legacy, `CREATE SCHEMA later CREATE TABLE note (id bigserial PRIMARY KEY, body text)`)
	w.register(t, legacyDescription)
	require.Equal(t, []string{`blue legacy-We"ird, Name: Name of We"ird, Name`, `blue legacy-later: Name of later`, `green legacy-one: Name of one`}, entered())
}

const oneSchema = `DO $$ BEGIN
		PERFORM pg_advisory_xact_lock(4711);
		IF to_regrole('legacy_app') IS NULL THEN CREATE ROLE legacy_app LOGIN; END IF;
		IF to_regrole('legacy_owner') IS NULL THEN CREATE ROLE legacy_owner; END IF;
	END $$;
	CREATE TABLE public.customers_client (schema_name text, name text);
	INSERT INTO public.customers_client SELECT s, 'Name of ' || s FROM unnest(ARRAY['one', 'two']) s;
	CREATE TABLE public.country (id serial PRIMARY KEY, name text, since timestamptz DEFAULT '2000-01-01Z', upper text GENERATED ALWAYS AS (upper(name)) STORED);
	INSERT INTO public.country (name) VALUES ('Norway'), ('Sweden');
	CREATE SCHEMA one CREATE TABLE note (id bigserial PRIMARY KEY, country_id int REFERENCES public.country (id), body text);
	CREATE SCHEMA two CREATE TABLE note (id bigserial PRIMARY KEY, country_id int REFERENCES public.country (id), body text);
	INSERT INTO one.note (country_id) VALUES (1);
	ALTER TABLE one.note OWNER TO legacy_owner; ALTER TABLE two.note OWNER TO legacy_owner; GRANT ALL ON SCHEMA one, two TO legacy_owner;`

// While a tenant lives in green, its source's rows on green have one place.
func TestGreenSchemaIsKeptWhileInUse(t *testing.T) {
	w := newWorld(t, citustest.New(t))
	w.Legacy = citustest.EmptyDatabase(t)
	execSQL(t, w.Legacy, oneSchema)
	w.register(t, legacyDescription)
	apply := func() error {
		s, err := source.Parse([]byte(legacyDescription + "green_schema: elsewhere\n"))
		require.NoError(t, err)
		_, err = migration.Registration{Source: s, Blue: w.Legacy, Green: w.GreenAdmin}.Apply(t.Context())
		return err
	}
	one := tenant.ImportedID("legacy", "one")
	refused := func() {
		t.Helper()
		err := apply()
		require.Equal(t, "green_schema_in_use", fault.CodeOf(err), err)
		var there bool
		require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT to_regnamespace('elsewhere') IS NOT NULL`).Scan(&there))
		require.False(t, there, "nothing is changed")
	}
	_, err := w.Control.Exec(t.Context(), `UPDATE control.tenant SET home = 'green' WHERE id = $1`, one)
	require.NoError(t, err)
	refused()
	_, err = w.Control.Exec(t.Context(), `UPDATE control.tenant SET home = 'blue' WHERE id = $1`, one)
	require.NoError(t, err)
	_, err = w.Control.Exec(t.Context(), `WITH r AS (INSERT INTO control.run (id, source, state, max_pause_ms, created_by) VALUES ($1, 'legacy', 'paused', 1000, 'test') RETURNING id)
		INSERT INTO control.move (run_id, tenant_id, batch, state, epoch) SELECT id, $1, 1, 'planned', 1 FROM r`, one)
	require.NoError(t, err)
	refused()
	_, err = w.Control.Exec(t.Context(), `UPDATE control.move SET state = 'blue' WHERE tenant_id = $1`, one)
	require.NoError(t, err)
	require.NoError(t, apply())
}

// Shared rows that change after the registration stop a run until it is applied again,
// which does not take away what a tenant in green refers to.
func TestReferencesAreBroughtInStep(t *testing.T) {
	const description = legacyDescription + "public_tables: {country: reference}\n"
	eachServer(t, func(t *testing.T, w *world) {
		w.Legacy = citustest.EmptyDatabase(t)
		execSQL(t, w.Legacy, oneSchema)
		w.register(t, description)
		countries := func() (out string) {
			t.Helper()
			require.NoError(t, w.Control.QueryRow(t.Context(), `SELECT string_agg(upper, ' ' ORDER BY id) FROM legacy_public.country`).Scan(&out))
			return out
		}
		blockers := func() (out []string) {
			t.Helper()
			p, err := w.Mover.Check(t.Context(), migration.Plan{Source: "legacy", MaxPause: time.Minute})
			require.NoError(t, err)
			for _, f := range p.Findings {
				if f.Severity != preflight.Warning {
					out = append(out, f.Code+": "+f.Message)
				}
			}
			return out
		}
		require.Equal(t, "NORWAY SWEDEN", countries())
		require.Empty(t, blockers())

		execSQL(t, w.Legacy, `UPDATE public.country SET name = 'Norge' WHERE id = 1; INSERT INTO public.country (name) VALUES ('Finland')`)
		require.Equal(t, []string{"reference_differs: public table country has other rows on blue (3) than on green (2)"}, blockers())
		w.register(t, description)
		require.Equal(t, "NORGE SWEDEN FINLAND", countries())
		require.Empty(t, blockers())

		// A tenant that lives in green refers to a row that blue drops.
		one := tenant.ImportedID("legacy", "one")
		execSQL(t, w.GreenAdmin, `INSERT INTO legacy.note (tenant_id, id, country_id) VALUES ('`+one.String()+`', 1, 1);
			UPDATE control.tenant SET home = 'green', schema_name = 'legacy' WHERE id = '`+one.String()+`'`)
		execSQL(t, w.Legacy, `DELETE FROM one.note; DELETE FROM public.country WHERE id = 1`)
		s, err := source.Parse([]byte(description))
		require.NoError(t, err)
		_, err = migration.Registration{Source: s, Blue: w.Legacy, Green: w.GreenAdmin}.Apply(t.Context())
		require.Equal(t, "reference_in_use", fault.CodeOf(err), err)
		require.Equal(t, "NORGE SWEDEN FINLAND", countries(), "nothing is changed")
	})
}
