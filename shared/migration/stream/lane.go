package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

// Config bounds the change stream. The tags are those of sethvargo/go-envconfig.
type Config struct {
	Budget      time.Duration `env:"CODITECT_RECEIVE_BUDGET,default=20s"`         // of one run of the receiver; keep it below the queue's dispatch deadline
	Rest        time.Duration `env:"CODITECT_RECEIVE_REST"`                       // between two bursts of the receiver while tenants follow blue: it spares a busy blue a tenth, and they lag so much more; 0: none
	MaxRetained int64         `env:"CODITECT_SLOT_MAX_BYTES,default=10737418240"` // WAL that blue may keep for a slot before it is given up
}

// WithDefaults fills what a caller left zero.
func (c Config) WithDefaults() Config {
	if c.Budget <= 0 {
		c.Budget = 20 * time.Second
	}
	if c.MaxRetained <= 0 {
		c.MaxRetained = 10 << 30
	}
	return c
}

// Lane names one replication slot of one blue database.
type Lane struct {
	Database string
	Number   int // from 1
}

// Position is where a lane stands.
type Position struct {
	Slot     string
	Open     bool
	Spooled  int64 // every transaction that ended before this position in blue's WAL is in the spool
	PartLSN  int64 // of the transaction that commits here
	PartSeq  int64 // the first so many changes are there too
	WALEnd   int64
	Retained int64
	Heard    *time.Time
	RunUntil *time.Time
	Lost     *string
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// PositionOf reads where a lane stands.
func PositionOf(ctx context.Context, control querier, l Lane) (p Position, err error) {
	err = control.QueryRow(ctx, `SELECT slot, open, spooled, part_lsn, part_seq, wal_end, retained, heard_at, run_until, lost
		FROM control.lane WHERE database_name = $1 AND number = $2`, l.Database, l.Number).
		Scan(&p.Slot, &p.Open, &p.Spooled, &p.PartLSN, &p.PartSeq, &p.WALEnd, &p.Retained, &p.Heard, &p.RunUntil, &p.Lost)
	if errors.Is(err, pgx.ErrNoRows) {
		return p, fault.New(fault.NotFound, "lane_not_found", "there is no lane %d of database %s", l.Number, l.Database)
	}
	if err != nil {
		return p, fmt.Errorf("stream: position of lane %d of %s: %w", l.Number, l.Database, err)
	}
	return p, nil
}

// Open makes a lane's publication and slot where they are not there, and returns its
// position. It waits for transactions that are open in blue, as long as ctx allows.
func Open(ctx context.Context, dbs *citus.Databases, l Lane) (p Position, err error) {
	control, err := dbs.Control(ctx)
	if err != nil {
		return p, err
	}
	blue, err := dbs.Pool(ctx, l.Database)
	if err != nil {
		return p, err
	}
	if _, err := control.Exec(ctx, `INSERT INTO control.lane (database_name, number, slot) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
		l.Database, l.Number, newSlot()); err != nil {
		return p, fmt.Errorf("stream: record lane %d of %s: %w", l.Number, l.Database, err)
	}
	if _, err := control.Exec(ctx, `UPDATE control.lane SET wanted_at = clock_timestamp() WHERE database_name = $1 AND number = $2`, l.Database, l.Number); err != nil {
		return p, err
	}
	if p, err = PositionOf(ctx, control, l); err != nil || p.Open {
		return p, err
	}
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		// Whoever else opens this lane waits here.
		if _, err := tx.Exec(ctx, `SELECT FROM control.lane WHERE database_name = $1 AND number = $2 FOR UPDATE`, l.Database, l.Number); err != nil {
			return err
		}
		if p, err = PositionOf(ctx, tx, l); err != nil || p.Open {
			return err
		}
		// The publication comes first: decoding anything with a slot that is older than its publication fails.
		if err := createPublication(ctx, blue, p.Slot); err != nil {
			return err
		}
		var at int64
		if err := blue.QueryRow(ctx, createSlot, p.Slot).Scan(&at); err != nil {
			return fmt.Errorf("stream: create slot %s in %s: %w", p.Slot, l.Database, err)
		}
		_, err := tx.Exec(ctx, `UPDATE control.lane SET open = true, spooled = $3, part_lsn = 0, part_seq = 0, wal_end = $3, lost = NULL, heard_at = NULL, run_until = NULL
			WHERE database_name = $1 AND number = $2`, l.Database, l.Number, at)
		return err
	})
	if err != nil {
		return p, fmt.Errorf("stream: open lane %d of %s: %w", l.Number, l.Database, err)
	}
	return PositionOf(ctx, control, l)
}

// createSlot makes a slot or finds the one that an interrupted Open has made.
const createSlot = `SELECT (lsn - '0/0')::bigint FROM (
	SELECT confirmed_flush_lsn AS lsn FROM pg_replication_slots WHERE slot_name = $1
	UNION ALL
	SELECT lsn FROM pg_create_logical_replication_slot($1, 'pgoutput') WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)) x`

// newSlot returns a name that no other platform on the same server uses.
func newSlot() string {
	return "coditect_" + strings.ReplaceAll(uuid.NewString(), "-", "")[:16]
}

func createPublication(ctx context.Context, blue *citus.Pool, name string) error {
	// A partitioned table's changes are those of the table that green has, not of its partitions.
	_, err := blue.Exec(ctx, `CREATE PUBLICATION `+quoted(name)+` WITH (publish_via_partition_root = true)`)
	if err != nil && citus.StateOf(err) != duplicateObject {
		return fmt.Errorf("stream: create publication %s: %w", name, err)
	}
	return nil
}

const duplicateObject = "42710"

// Member is a tenant of a lane.
type Member struct {
	Tenant tenant.ID
	Run    uuid.UUID
	Schema string
	Tables []string
	Token  int64 // the fencing token of the step at work
}

// ErrOutdated says that a newer step has taken the tenant, as its gate in blue says.
var ErrOutdated = errors.New("stream: a newer step owns this tenant")

// own takes a tenant in blue for a step, until tx ends: none with a smaller token gets past it
// then or later.
func own(ctx context.Context, tx pgx.Tx, id tenant.ID, token int64) error {
	tag, err := tx.Exec(ctx, `UPDATE coditect.gate SET token = $2 WHERE tenant_id = $1 AND token <= $2`, id, token)
	if err == nil && tag.RowsAffected() == 0 {
		return ErrOutdated
	}
	return err
}

// ErrClosed says that the lane was closed or given up, and has another slot since.
var ErrClosed = fault.New(fault.Unavailable, "lane_closed", "the lane was closed at the same moment; try again")

// Enter records that a tenant's changes belong to a lane. It comes before Join: no change of a
// published table must find its tenant unknown. The error is ErrClosed when slot is not the lane's any more.
func Enter(ctx context.Context, control *citus.Pool, l Lane, slot string, m Member) error {
	tag, err := control.Exec(ctx, `INSERT INTO control.streamed (tenant_id, run_id, database_name, number, slot, schema_name)
		SELECT $1, $2, database_name, number, slot, $6 FROM (SELECT * FROM control.lane WHERE database_name = $3 AND number = $4 AND slot = $5 AND open FOR SHARE) l
		ON CONFLICT (tenant_id) DO UPDATE SET run_id = excluded.run_id, database_name = excluded.database_name, number = excluded.number,
			slot = excluded.slot, schema_name = excluded.schema_name, joined = false`,
		m.Tenant, m.Run, l.Database, l.Number, slot, m.Schema)
	if err != nil {
		return fmt.Errorf("stream: enter %s: %w", m.Tenant, err)
	}
	if tag.RowsAffected() == 0 {
		return ErrClosed
	}
	return nil
}

// Join puts a tenant's tables into a lane's publication. The lock is the barrier: it waits
// for the tables' open writers and holds new ones until the publication has the tables. Without
// it, what a transaction wrote before and commits afterwards would be in no stream and in no
// snapshot. An error of SQLSTATE 55P03 says that a writer was in the way for longer than wait.
func Join(ctx context.Context, blue *citus.Pool, slot string, m Member, wait time.Duration) error {
	if len(m.Tables) == 0 {
		return nil
	}
	names := make([]string, len(m.Tables))
	for i, t := range m.Tables {
		names[i] = quoted(m.Schema, t)
	}
	err := pgx.BeginFunc(ctx, blue, func(tx pgx.Tx) error {
		for _, s := range []string{
			fmt.Sprintf(`SET LOCAL lock_timeout = '%dms'`, wait.Milliseconds()),
			`SET LOCAL coditect.mover = 'on'`,
			`LOCK TABLE ` + strings.Join(names, ", ") + ` IN SHARE ROW EXCLUSIVE MODE`,
		} {
			if _, err := tx.Exec(ctx, s); err != nil {
				return err
			}
		}
		if err := own(ctx, tx, m.Tenant, m.Token); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT tablename::text FROM pg_publication_tables WHERE pubname = $1 AND schemaname = $2`, slot, m.Schema)
		if err != nil {
			return err
		}
		there, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		var missing []string
		for i, t := range m.Tables {
			if !contains(there, t) {
				missing = append(missing, names[i])
			}
		}
		if len(missing) == 0 {
			return nil
		}
		_, err = tx.Exec(ctx, `ALTER PUBLICATION `+quoted(slot)+` ADD TABLE `+strings.Join(missing, ", "))
		return err
	})
	if err != nil {
		return fmt.Errorf("stream: join %s: %w", m.Tenant, err)
	}
	return nil
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// Leave takes a tenant's tables out of a publication; the error is ErrOutdated when a newer step
// has joined it since. It locks nothing that writers need.
func Leave(ctx context.Context, blue *citus.Pool, slot string, m Member) error {
	err := pgx.BeginFunc(ctx, blue, func(tx pgx.Tx) error {
		if err := own(ctx, tx, m.Tenant, m.Token); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, `SELECT format('%I.%I', schemaname, tablename) FROM pg_publication_tables WHERE pubname = $1 AND schemaname = $2`, slot, m.Schema)
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(names) == 0 {
			return err
		}
		if _, err := tx.Exec(ctx, `SET LOCAL coditect.mover = 'on'`); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `ALTER PUBLICATION `+quoted(slot)+` DROP TABLE `+strings.Join(names, ", "))
		return err
	})
	if err != nil && citus.StateOf(err) != undefinedObject {
		return fmt.Errorf("stream: %s leaves %s: %w", m.Tenant, slot, err)
	}
	return nil
}

const undefinedObject = "42704"

// Check looks at a lane's slot in blue. A slot that is gone, that blue has invalidated, or
// for which blue keeps more WAL than max bytes, is given up: the reason is returned and
// recorded, slot and publication are dropped, and the lane gets another name.
func Check(ctx context.Context, dbs *citus.Databases, l Lane, max int64) (lost string, err error) {
	control, err := dbs.Control(ctx)
	if err != nil {
		return "", err
	}
	p, err := PositionOf(ctx, control, l)
	if err != nil || !p.Open {
		return "", err
	}
	blue, err := dbs.Pool(ctx, l.Database)
	if err != nil {
		return "", err
	}
	var (
		status   string
		retained int64
		end      int64
	)
	err = blue.QueryRow(ctx, `SELECT coalesce(wal_status, 'lost'), coalesce(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn), 0)::bigint,
		(pg_current_wal_insert_lsn() - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = $1`, p.Slot).Scan(&status, &retained, &end)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		lost = fmt.Sprintf("blue has no slot %s any more", p.Slot)
	case err != nil:
		return "", fmt.Errorf("stream: look at slot %s: %w", p.Slot, err)
	case status == "lost":
		lost = fmt.Sprintf("blue has thrown away WAL that slot %s had not read (max_slot_wal_keep_size)", p.Slot)
	case retained > max:
		lost = fmt.Sprintf("slot %s was %d bytes behind, more than the %d that blue may keep for it (CODITECT_SLOT_MAX_BYTES)", p.Slot, retained, max)
	}
	if lost == "" {
		_, err = control.Exec(ctx, `UPDATE control.lane SET wal_end = greatest(wal_end, $3), retained = $4 WHERE database_name = $1 AND number = $2`, l.Database, l.Number, end, retained)
		return "", err
	}
	_, err = giveUp(ctx, control, blue, l, p.Slot, lost)
	return lost, err
}

// Close drops a lane's slot and publication when no tenant is in it and no move has wanted it for
// idleFor: a slot that nobody needs makes blue keep its WAL. It reports whether the lane is closed.
func Close(ctx context.Context, dbs *citus.Databases, l Lane) (bool, error) {
	control, err := dbs.Control(ctx)
	if err != nil {
		return false, err
	}
	p, err := PositionOf(ctx, control, l)
	if err != nil || !p.Open {
		return err == nil, err
	}
	blue, err := dbs.Pool(ctx, l.Database)
	if err != nil {
		return false, err
	}
	return giveUp(ctx, control, blue, l, p.Slot, "")
}

// idleFor is how long a lane that nobody uses is kept for the next move.
const idleFor = 30 * time.Second

// giveUp closes a lane under its present name and gives it another one: a tenant that joins
// at the same moment finds that its slot is not the lane's. Only then are slot and publication
// dropped; what a crash leaves of them is in control.slot_due, for [DropDue].
//
// Without a reason only a lane that has no tenants is closed. It reports whether the lane was.
func giveUp(ctx context.Context, control, blue *citus.Pool, l Lane, slot, why string) (mine bool, err error) {
	err = pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		// Whoever enters a tenant waits here.
		var used bool
		if _, err := tx.Exec(ctx, `SELECT FROM control.lane WHERE database_name = $1 AND number = $2 FOR UPDATE`, l.Database, l.Number); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT wanted_at > clock_timestamp() - $3::interval OR EXISTS (SELECT FROM control.streamed s WHERE s.database_name = l.database_name AND s.number = l.number)
			FROM control.lane l WHERE database_name = $1 AND number = $2`, l.Database, l.Number, idleFor).Scan(&used); err != nil || used && why == "" {
			return err
		}
		tag, err := tx.Exec(ctx, `UPDATE control.lane SET open = false, slot = $4, lost = nullif($5, ''), spooled = 0, part_lsn = 0, part_seq = 0, retained = 0
			WHERE database_name = $1 AND number = $2 AND slot = $3`, l.Database, l.Number, slot, newSlot(), why)
		if mine = tag.RowsAffected() == 1; err != nil || !mine {
			return err
		}
		_, err = tx.Exec(ctx, `INSERT INTO control.slot_due (slot, database_name) VALUES ($1, $2)`, slot, l.Database)
		return err
	})
	if err != nil || !mine {
		return false, err
	}
	return true, dropDue(ctx, control, blue, slot)
}

// DropDue drops the slots that a crash left behind after they were given up.
func DropDue(ctx context.Context, dbs *citus.Databases) error {
	control, err := dbs.Control(ctx)
	if err != nil {
		return err
	}
	rows, err := control.Query(ctx, `SELECT slot, database_name FROM control.slot_due LIMIT 100`)
	if err != nil {
		return err
	}
	due := map[string]string{}
	var slot, database string
	if _, err := pgx.ForEachRow(rows, []any{&slot, &database}, func() error { due[slot] = database; return nil }); err != nil {
		return err
	}
	var errs []error
	for slot, database := range due {
		blue, err := dbs.Pool(ctx, database)
		if err == nil {
			err = dropDue(ctx, control, blue, slot)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func dropDue(ctx context.Context, control, blue *citus.Pool, slot string) error {
	if err := drop(ctx, blue, slot); err != nil {
		return err
	}
	_, err := control.Exec(ctx, `DELETE FROM control.slot_due WHERE slot = $1`, slot)
	return err
}

// drop removes a slot, ending whoever reads it, and its publication.
func drop(ctx context.Context, blue *citus.Pool, slot string) error {
	for range 50 {
		_, err := blue.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1 AND active_pid IS NOT NULL`, slot)
		if err != nil {
			return fmt.Errorf("stream: end the reader of slot %s: %w", slot, err)
		}
		_, err = blue.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1`, slot)
		if citus.StateOf(err) == objectInUse {
			if err := pause(ctx, 20*time.Millisecond); err != nil {
				return err
			}
			continue
		}
		if err != nil && citus.StateOf(err) != undefinedObject {
			return fmt.Errorf("stream: drop slot %s: %w", slot, err)
		}
		_, err = blue.Exec(ctx, `DROP PUBLICATION IF EXISTS `+quoted(slot))
		return err
	}
	return fault.New(fault.Unavailable, "slot_in_use", "slot %s is still being read; it is dropped at the next try", slot)
}

const objectInUse = "55006"

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func quoted(parts ...string) string { return pgx.Identifier(parts).Sanitize() }
