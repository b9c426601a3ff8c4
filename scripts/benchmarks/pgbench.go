package main

import (
	"context"
	"fmt"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/tenant"
)

// enterPlain and enterCitus are what entering a tenant takes in the database, as the
// door does it.
const (
	enterPlain = `SELECT epoch, set_config('statement_timeout', '5000ms', true), set_config('app.tenant_id', tenant_id::text, true),
 set_config('search_path', quote_ident(schema_name), true) FROM coditect.gate WHERE tenant_id = :a1 AND NOT closed AND NOT suspended;`
	enterCitus = `SELECT epoch, set_config('statement_timeout', '5000ms', true) FROM coditect.enter(:a1);`
)

// pgbench runs an operation's statement prepared, one script for each row to work on,
// chosen at random, and returns transactions per second.
func (d *door) pgbench(ctx context.Context, home tenant.Home, op operation, sql string, targets []target, transaction bool) (rate float64, calls int64, err error) {
	dir, err := os.MkdirTemp("", "pgbench")
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	// The bare statement is alone: no tenant is set, so its role is one that row-level security does not hold.
	role := "coditect_migrator"
	if transaction {
		role = "coditect_app"
	}
	dsn := d.platform.greenDSN(role)
	if home == tenant.Blue {
		dsn = d.platform.blueDSN(role)
	}
	enter := enterPlain
	if home == tenant.Green && d.servers.Workers > 0 {
		enter = enterCitus
	}
	args := []string{"-n", "-M", "prepared", "-c", strconv.Itoa(d.clients), "-j", "2", "-P", "1", "-T", strconv.Itoa(d.seconds + 1)}
	for i, t := range targets {
		text, variables := pgbenchStatement(sql, op, t, i)
		if transaction {
			begin := "BEGIN;"
			if op.reads {
				begin = "BEGIN READ ONLY;"
			}
			text = "\\startpipeline\n" + begin + "\n" + strings.ReplaceAll(strings.ReplaceAll(enter, "\n", " "), ":a1", fmt.Sprintf(":a1_%d", i)) + "\n" + text + "\nCOMMIT;\n\\endpipeline\n"
		}
		path := filepath.Join(dir, strconv.Itoa(i)+".sql")
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			return 0, 0, err
		}
		args = append(args, "-f", path)
		args = append(args, variables...)
	}
	path, err := serverProgram("pgbench")
	if err != nil {
		return 0, 0, err
	}
	cmd := osexec.CommandContext(ctx, path, append(args, dsn)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, 0, fmt.Errorf("pgbench: %w: %.1500s", err, out)
	}
	return rateOf(string(out))
}

var (
	parameter = regexp.MustCompile(`\$(\d+)`)
	relation  = regexp.MustCompile(`\b(FROM|INTO|UPDATE) task\b`)
	progress  = regexp.MustCompile(`progress: ([0-9.]+) s, ([0-9.]+) tps`)
	processed = regexp.MustCompile(`number of transactions actually processed: (\d+)`)
	aborted   = regexp.MustCompile(`(?i)client \d+ (script \d+ )?aborted|error:`)
)

// pgbenchStatement writes a statement in pgbench's words: its parameters as
// variables, whose values are given on the command line.
func pgbenchStatement(sql string, op operation, t target, i int) (text string, variables []string) {
	args := op.args(t)
	text = parameter.ReplaceAllStringFunc(strings.Join(strings.Fields(sql), " "), func(p string) string {
		n, _ := strconv.Atoi(p[1:]) // digits, by the expression
		if args[n-1] == nil {
			return "NULL"
		}
		if op.name == "insert" && n == 2 {
			return "gen_random_uuid()" // pgbench has no way to make one
		}
		return fmt.Sprintf(":a%d_%d", n, i)
	})
	for n, v := range args {
		if v == nil {
			continue
		}
		variables = append(variables, "-D", fmt.Sprintf("a%d_%d=%s", n+1, i, pgbenchValue(v)))
	}
	// Prepared before a tenant is entered: the name must be found without its search_path.
	return relation.ReplaceAllString(text, "$1 "+pgx.Identifier{t.schema, "task"}.Sanitize()) + ";", variables
}

func pgbenchValue(v any) string {
	switch v := v.(type) {
	case time.Time:
		return v.Format(time.RFC3339Nano)
	case []string:
		return "{}"
	default:
		return fmt.Sprint(v)
	}
}

// rateOf reads pgbench's progress and leaves out the first second, in which the
// statements are prepared.
func rateOf(out string) (rate float64, calls int64, err error) {
	total := processed.FindStringSubmatch(out)
	if aborted.MatchString(out) || total == nil {
		return 0, 0, fmt.Errorf("pgbench: %.1500s", out)
	}
	if calls, err = strconv.ParseInt(total[1], 10, 64); err != nil {
		return 0, 0, err
	}
	var rates []float64
	for _, m := range progress.FindAllStringSubmatch(out, -1) {
		rate, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return 0, 0, err
		}
		rates = append(rates, rate)
	}
	if len(rates) < 2 {
		return 0, 0, fmt.Errorf("pgbench told no progress: %.1500s", out)
	}
	sum := 0.0
	for _, r := range rates[1:] {
		sum += r
	}
	return sum / float64(len(rates)-1), calls, nil
}
