package archive

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/fault"
)

func TestConnectionStringsBecomeVariables(t *testing.T) {
	for dsn, want := range map[string][]string{
		"postgres://ada:p%40ss%2Fw@db:5433/shop?sslmode=verify-full&sslrootcert=/ca.pem&pool_max_conns=4": {
			"PGUSER=ada", "PGPASSWORD=p@ss/w", "PGHOST=db", "PGPORT=5433", "PGDATABASE=shop", "PGSSLMODE=verify-full", "PGSSLROOTCERT=/ca.pem"},
		"postgresql:///shop?host=/cloudsql/p:r:i&user=ada":                          {"PGHOST=/cloudsql/p:r:i", "PGDATABASE=shop", "PGUSER=ada"},
		`host = db user=ada password='it\'s \\ secret' dbname=shop sslmode=require`: {"PGHOST=db", "PGUSER=ada", `PGPASSWORD=it's \ secret`, "PGDATABASE=shop", "PGSSLMODE=require"},
		"postgres://ada@[::1]:5432/shop":                                            {"PGHOST=::1", "PGPORT=5432", "PGUSER=ada", "PGDATABASE=shop"},
	} {
		got, err := environment(dsn)
		require.NoError(t, err, dsn)
		require.ElementsMatch(t, append(want, "PGAPPNAME=coditect"), got, dsn)
	}
	for _, dsn := range []string{"postgres://ada:se%ret@db/x", "password='secret", "secret", "postgres://a,b/secret"} {
		_, err := environment(dsn)
		require.Equal(t, "bad_connection_string", fault.As(err).Code, dsn)
		require.NotContains(t, err.Error(), "ret", dsn)
	}
	require.Equal(t, "ada", databaseOf([]string{"PGUSER=ada"}))
}
