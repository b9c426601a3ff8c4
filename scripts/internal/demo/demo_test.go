package demo

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/scripts/internal/terminal"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/migration/source"
)

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close(context.Background()) }) // the server may be gone first
	return c
}

func TestImportLegacy(t *testing.T) {
	blue, err := localpg.Start(t.Context(), localpg.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, blue.Remove()) })
	require.NoError(t, importLegacy(t.Context(), blue))
	require.NoError(t, importLegacy(t.Context(), blue), "a second start imports nothing")

	old := connect(t, blue.DSN(LegacyDatabase, legacyApp))
	var schemas, labels int
	require.NoError(t, old.QueryRow(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'acme%'`).Scan(&schemas))
	require.Equal(t, 20, schemas)
	_, err = old.Exec(t.Context(), `INSERT INTO acme00003.work_label (name) VALUES ('mine')`)
	require.NoError(t, err, "the old application writes rows")
	require.NoError(t, old.QueryRow(t.Context(), `SELECT count(*) FROM acme00003.work_label`).Scan(&labels))
	require.Equal(t, 9, labels)
	// … and nothing else: it could switch the fence off.
	_, err = old.Exec(t.Context(), `ALTER TABLE acme00003.work_label DISABLE TRIGGER ALL`)
	require.ErrorContains(t, err, "must be owner")
	_, err = old.Exec(t.Context(), `CREATE TABLE acme00003.mine (id int)`)
	require.ErrorContains(t, err, "permission denied")
}

func TestLegacyFileIsValid(t *testing.T) {
	s, err := source.Parse(legacyFile)
	require.NoError(t, err)
	require.Equal(t, Source, s.Name)
	require.Equal(t, legacyApp, s.ApplicationRole)
}

func TestReportFileHasExactlyTheDocumentedKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	require.NoError(t, Report{PauseMS: Pause{P50: 1, P99: 2, Max: 3}}.WriteFile(path))
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	var got map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(b, &got))
	require.Equal(t, []string{
		"acknowledged_writes", "pause_ms", "requests", "requests_failed", "rows_moved", "rows_per_second", "seconds", "tenants_failed",
		"tenants_moved", "verified", "writes_duplicated", "writes_fenced", "writes_lost",
	}, slices.Sorted(maps.Keys(got)))
	require.JSONEq(t, `{"p50":1,"p99":2,"max":3}`, string(got["pause_ms"]))
}

func TestAnythingWrongMakesTheReportUnclean(t *testing.T) {
	clean := Report{TenantsMoved: 120, WritesFenced: 7, Verified: true}
	require.True(t, clean.Clean(), "writes refused by the fence are no fault")
	for name, spoil := range map[string]func(*Report){
		"failed tenant":  func(r *Report) { r.TenantsFailed = 1 },
		"failed request": func(r *Report) { r.RequestsFailed = 1 },
		"lost":           func(r *Report) { r.WritesLost = 1 },
		"duplicated":     func(r *Report) { r.WritesDuplicated = 1 },
		"different":      func(r *Report) { r.details.Different = 1 },
		"unverified":     func(r *Report) { r.Verified = false },
	} {
		r := clean
		spoil(&r)
		require.False(t, r.Clean(), name)
	}
	var out strings.Builder
	Report{details: details{Sentences: []string{"tenant x was not moved: drift"}}}.Print(terminal.NewPlain(&out))
	require.Contains(t, out.String(), "NO")
	require.Contains(t, out.String(), "drift")
}
