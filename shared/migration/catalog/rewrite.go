package catalog

import (
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Rewrite returns sql, as PostgreSQL itself prints expressions and definitions with
// an empty search_path, with the schema of every qualified name replaced by what
// schema returns for it; the empty string leaves a name as it is. Names inside
// 'x'::regclass and its kin are rewritten too, other literals are not.
//
// It reads tokens instead of replacing text, because a tenant's schema may be named
// like a word that occurs in its data.
func Rewrite(sql string, schema func(schema, name string) string) string {
	var out strings.Builder
	for i := 0; i < len(sql); {
		switch c := sql[i]; {
		case c == '\'':
			end := literalEnd(sql, i)
			lit := sql[i:end]
			if regCast.MatchString(sql[end:]) {
				inner := strings.ReplaceAll(lit[1:len(lit)-1], "''", "'")
				lit = "'" + strings.ReplaceAll(Rewrite(inner, schema), "'", "''") + "'"
			}
			out.WriteString(lit)
			i = end
		case (c == 'E' || c == 'e') && i+1 < len(sql) && sql[i+1] == '\'':
			end := escapeEnd(sql, i+1)
			out.WriteString(sql[i:end])
			i = end
		case isIdentStart(c):
			end := rewriteName(&out, sql, i, schema)
			i = end
		case c >= '0' && c <= '9':
			// "1.5" and "1e5" are no names.
			end := i
			for end < len(sql) && (isIdentPart(sql[end]) || sql[end] == '.') {
				end++
			}
			out.WriteString(sql[i:end])
			i = end
		default:
			out.WriteByte(c)
			i++
		}
	}
	return out.String()
}

// ToSelf returns sql with the schema's own name replaced by Self.
func ToSelf(sql, schema string) string {
	return Rewrite(sql, func(s, _ string) string {
		if s == schema {
			return Self
		}
		return ""
	})
}

// FromSelf returns sql with Self replaced by a schema's name.
func FromSelf(sql, schema string) string {
	return Rewrite(sql, func(s, _ string) string {
		if s == Self {
			return schema
		}
		return ""
	})
}

// Quote returns a name as PostgreSQL would have to read it.
func Quote(parts ...string) string { return pgx.Identifier(parts).Sanitize() }

var regCast = regexp.MustCompile(`^::reg(class|type|proc|procedure|oper|operator|collation|config|dictionary)\b`)

// rewriteName copies the name that starts at i, which may have several parts, and
// returns where it ends.
func rewriteName(out *strings.Builder, sql string, i int, schema func(schema, name string) string) int {
	end := identEnd(sql, i)
	// OPERATOR(schema.+) is the one place where a dot is followed by no name.
	operator := strings.HasSuffix(sql[:i], "OPERATOR(")
	if end >= len(sql)-1 || sql[end] != '.' || !isIdentStart(sql[end+1]) && !operator {
		out.WriteString(sql[i:end])
		return end
	}
	next := end + 1
	if !operator {
		next = identEnd(sql, next)
	}
	if to := schema(Unquote(sql[i:end]), Unquote(sql[end+1:next])); to == Self {
		out.WriteString(Self)
	} else if to != "" {
		out.WriteString(Quote(to))
	} else {
		out.WriteString(sql[i:end])
	}
	// What follows belongs to this name; none of it is a schema.
	for next < len(sql)-1 && sql[next] == '.' && isIdentStart(sql[next+1]) {
		next = identEnd(sql, next+1)
	}
	out.WriteString(sql[end:next])
	return next
}

// Unquote returns the name that a printed identifier stands for.
func Unquote(ident string) string {
	if len(ident) > 1 && ident[0] == '"' {
		return strings.ReplaceAll(ident[1:len(ident)-1], `""`, `"`)
	}
	return ident
}

func identEnd(sql string, i int) int {
	if sql[i] != '"' {
		for i < len(sql) && isIdentPart(sql[i]) {
			i++
		}
		return i
	}
	for i++; i < len(sql); i++ {
		if sql[i] != '"' {
			continue
		}
		if i+1 < len(sql) && sql[i+1] == '"' {
			i++
			continue
		}
		return i + 1
	}
	return len(sql)
}

func literalEnd(sql string, i int) int {
	for i++; i < len(sql); i++ {
		if sql[i] != '\'' {
			continue
		}
		if i+1 < len(sql) && sql[i+1] == '\'' {
			i++
			continue
		}
		return i + 1
	}
	return len(sql)
}

func escapeEnd(sql string, i int) int {
	for i++; i < len(sql); i++ {
		switch {
		case sql[i] == '\\':
			i++
		case sql[i] == '\'' && i+1 < len(sql) && sql[i+1] == '\'':
			i++
		case sql[i] == '\'':
			return i + 1
		}
	}
	return len(sql)
}

func isIdentStart(c byte) bool {
	return c == '"' || c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

func isIdentPart(c byte) bool {
	return c != '"' && isIdentStart(c) || c >= '0' && c <= '9' || c == '$'
}
