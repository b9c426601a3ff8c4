package migration_test

import (
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
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
