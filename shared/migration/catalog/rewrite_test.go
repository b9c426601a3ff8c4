package catalog

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRewriteTouchesNamesOnly(t *testing.T) {
	for _, c := range []struct{ schema, sql, self string }{
		{"acme", "nextval('acme.task_id_seq'::regclass)", "nextval('§.task_id_seq'::regclass)"},
		{"acme", "'acme.task_id_seq'::text", "'acme.task_id_seq'::text"},
		{"acme", "((name)::text ~ 'acme.x'::text) AND acme.f(1.5, acme)", "((name)::text ~ 'acme.x'::text) AND §.f(1.5, acme)"},
		{"acme", `'todo'::acme."Mood"[]`, `'todo'::§."Mood"[]`},
		{`we"ird Name`, `nextval('"we""ird Name"."Order_id_seq"'::regclass)`, `nextval('§."Order_id_seq"'::regclass)`},
		{"it's", `nextval('"it''s".q'::regclass)`, `nextval('§.q'::regclass)`},
		{"a", `E'\'a.b' || other.a.b || a.c`, `E'\'a.b' || other.a.b || §.c`},
		{"acme", "x OPERATOR(acme.~) y", "x OPERATOR(§.~) y"},
	} {
		require.Equal(t, c.self, ToSelf(c.sql, c.schema))
	}
	require.Equal(t, `nextval('"we""ird Name"."Order_id_seq"'::regclass)`, FromSelf(`nextval('§."Order_id_seq"'::regclass)`, `we"ird Name`))
	require.Equal(t, `'a'::"it's".mood`, FromSelf(`'a'::§.mood`, "it's"))
}
