package archive

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/coditect/platform/shared/fault"
)

// variables are those of libpq, by the keyword of a connection string: chapter "Environment
// Variables" of PostgreSQL's manual.
var variables = map[string]string{
	"host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "dbname": "PGDATABASE", "database": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD",
	"passfile": "PGPASSFILE", "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT", "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL",
	"sslsni": "PGSSLSNI", "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION", "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
	"channel_binding": "PGCHANNELBINDING", "gssencmode": "PGGSSENCMODE", "krbsrvname": "PGKRBSRVNAME", "connect_timeout": "PGCONNECT_TIMEOUT",
	"target_session_attrs": "PGTARGETSESSIONATTRS", "options": "PGOPTIONS", "client_encoding": "PGCLIENTENCODING",
}

// environment turns a connection string into the variables that PostgreSQL's programs read:
// their command lines can be read by every user of a machine. What only a Go program understands
// is left out.
func environment(dsn string) ([]string, error) {
	parse := keywords
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		parse = addressed
	}
	settings, err := parse(dsn)
	if err != nil {
		return nil, err
	}
	out := []string{"PGAPPNAME=coditect"}
	for key, value := range settings {
		if name, ok := variables[key]; ok && value != "" {
			out = append(out, name+"="+value)
		}
	}
	return out, nil
}

// databaseOf finds the database in an environment; pg_restore wants its name as an argument.
func databaseOf(env []string) string {
	name := ""
	for _, v := range env {
		if value, ok := strings.CutPrefix(v, "PGDATABASE="); ok {
			return value
		}
		if value, ok := strings.CutPrefix(v, "PGUSER="); ok {
			name = value // what libpq takes when no database is named
		}
	}
	return name
}

func errDSN(why string) error {
	return fault.New(fault.Internal, "bad_connection_string", "the connection string of the database cannot be read: %s", why)
}

// addressed reads postgres://user:password@host:port/database?key=value.
func addressed(dsn string) (map[string]string, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return nil, errDSN("it is not a URL") // url's own error holds the password
	}
	out := map[string]string{"host": u.Hostname(), "port": u.Port(), "dbname": strings.TrimPrefix(u.Path, "/"), "user": u.User.Username()}
	if strings.Contains(u.Host, ",") {
		return nil, errDSN("several hosts are not supported here")
	}
	out["password"], _ = u.User.Password()
	for key, values := range u.Query() {
		out[key] = values[0]
	}
	return out, nil
}

// keywords reads key=value key='value with \' blanks'.
func keywords(dsn string) (map[string]string, error) {
	out := map[string]string{}
	for s := strings.TrimSpace(dsn); s != ""; s = strings.TrimLeft(s, " \t\r\n") {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			return nil, errDSN(fmt.Sprintf("%d characters have no =", len(s)))
		}
		value, rest, err := keywordValue(strings.TrimLeft(rest, " \t\r\n"))
		if err != nil {
			return nil, err
		}
		out[strings.TrimSpace(key)], s = value, rest
	}
	return out, nil
}

// keywordValue takes one value from the beginning of s.
func keywordValue(s string) (value, rest string, err error) {
	quote := strings.HasPrefix(s, "'")
	if quote {
		s = s[1:]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case quote && c == '\'', !quote && strings.IndexByte(" \t\r\n", c) >= 0:
			return b.String(), s[i+1:], nil
		default:
			b.WriteByte(c)
		}
	}
	if quote {
		return "", "", errDSN("a quote has no end")
	}
	return b.String(), "", nil
}
