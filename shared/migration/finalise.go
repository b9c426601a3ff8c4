package migration

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration/catalog"
	"github.com/coditect/platform/shared/migration/convert"
	"github.com/coditect/platform/shared/tenant"
)

// Archive keeps dumps of schemas. An adapter over shared/archive is one.
type Archive interface {
	// Save dumps a schema of the database that dsn names, and proves that the dump can be read.
	// An error leaves nothing behind.
	Save(ctx context.Context, dsn, schema, name string) (Dump, error)
	// Remove deletes a dump. One that is not there is fine.
	Remove(ctx context.Context, name string) error
}

// Dump is a schema in the archive.
type Dump struct {
	URL    string
	Bytes  int64
	SHA256 []byte
	Tables []string // whose rows it holds, one entry each
}

// WithArchive lets a mover finalise: without an archive no schema is ever dropped.
func WithArchive(a Archive) Option { return func(m *Mover) { m.archive = a } }

// Finalisation says what became of a tenant's blue schema.
type Finalisation struct {
	Run     uuid.UUID  `json:"run"`
	Tenant  tenant.ID  `json:"tenant"`
	State   State      `json:"state"`
	Source  string     `json:"source"`
	Schema  string     `json:"schema"`
	Archive string     `json:"archive,omitempty"` // the dump's URL
	Bytes   int64      `json:"bytes,omitempty"`
	SHA256  string     `json:"sha256,omitempty"`
	Rows    int64      `json:"rows"`
	Saved   *time.Time `json:"saved_at,omitempty"`
	Dropped *time.Time `json:"dropped_at,omitempty"`
	Error   string     `json:"error,omitempty"`

	Tables map[string]TableDigest `json:"-"` // of the schema when it was dumped
}

// attempt is one call to finalise a tenant.
type attempt struct {
	Move            // Schema and Database are blue's
	Source   string // of the run
	Object   string // the dump's name
	Former   string // that of an attempt that did not get to its end
	Finished bool   // it was finalised before
}

// Finalise ends the way back of a tenant that lives in green: its blue schema is dumped into
// the archive and dropped. That takes the end of the observation time, unless an operator does not
// want to wait for it. It may be called again at any time: what was cut short is taken up.
//
// First comes the dump, which is proven readable; then, by one change of the move's state, the
// schema is given up; then it is dropped, a few tables at a time. Before the change nothing
// has happened to the schema, and after it nobody goes back to it.
func (m *Mover) Finalise(ctx context.Context, run uuid.UUID, who tenant.ID, actor string, now bool) (Finalisation, error) {
	if m.archive == nil {
		return Finalisation{}, fault.New(fault.Conflict, "no_archive", "there is no archive for dumps of schemas: set CODITECT_ARCHIVE")
	}
	f, err := m.claimFinalise(ctx, run, who, actor, now)
	if err != nil {
		return Finalisation{}, err
	}
	if !f.Finished {
		m.crash("finalise claimed")
		err := m.keepLease(ctx, f, func(ctx context.Context) error { return m.finalise(ctx, f, actor) })
		if err := m.endAttempt(context.WithoutCancel(ctx), f, ignoreOutdated(err)); err != nil {
			return Finalisation{}, err
		}
	}
	return m.finalised(ctx, run, who)
}

func (m *Mover) finalise(ctx context.Context, f attempt, actor string) error {
	blue, err := m.dbs.Pool(ctx, f.Database)
	if err != nil {
		return err
	}
	if f.State == Green {
		if err := m.save(ctx, blue, f, actor); err != nil {
			return err
		}
	}
	return m.dropBlue(ctx, blue, f, actor)
}

// save dumps the schema and gives it up.
func (m *Mover) save(ctx context.Context, blue *citus.Pool, f attempt, actor string) error {
	if f.Former != "" {
		if err := m.archive.Remove(ctx, f.Former); err != nil {
			return err
		}
	}
	there, err := m.takeGate(ctx, blue, f.Move)
	if err == nil && !there {
		err = errNotFenced(f.Schema)
	}
	if err != nil {
		return err
	}
	m.crash("finalise gate taken")
	tables, err := m.checkBlue(ctx, blue, f)
	if err != nil {
		return err
	}
	dump, err := m.archive.Save(ctx, m.dbs.DSN(f.Database), f.Schema, f.Object)
	if err != nil {
		return err
	}
	m.crash("dump written")
	err = m.giveUp(ctx, f, actor, dump, tables)
	if err != nil && !mayHaveCommitted(err) {
		return errors.Join(err, m.archive.Remove(context.WithoutCancel(ctx), f.Object))
	}
	if err != nil {
		return err
	}
	m.crash("finalised")
	return nil
}

// mayHaveCommitted: the answer to a COMMIT may have been lost, and with it the dump that is the only one.
func mayHaveCommitted(err error) bool {
	return !errors.Is(err, errOutdated) && fault.As(err) == nil && citus.StateOf(err) == ""
}

// leaseOfFinalise is how long a finalisation is left alone without a sign of life.
const leaseOfFinalise = 30 * time.Second

// claimFinalise takes a tenant for finalisation, or says why it cannot be.
func (m *Mover) claimFinalise(ctx context.Context, run uuid.UUID, who tenant.ID, actor string, now bool) (attempt, error) {
	f := attempt{Move: Move{Run: run, Tenant: who}}
	control, err := m.control(ctx)
	if err != nil {
		return f, err
	}
	if _, err := m.move(ctx, run, who); err != nil { // there is none
		return f, err
	}
	err = m.impatient(ctx, control, func(tx pgx.Tx) error {
		var (
			status       string
			back         bool
			over         time.Time
			busy, gone   bool
			observed     bool
			forced       *string
			schema, prev *string
		)
		err := tx.QueryRow(ctx, `SELECT m.state, m.rows, r.source, t.status, coalesce(m.green_at, clock_timestamp()) + $3::interval, coalesce(m.green_at + $3::interval <= clock_timestamp(), false),
				a.forced_by, a.schema_name, a.object, coalesce(a.lease_until > clock_timestamp(), false), a.dropped_at IS NOT NULL, m.back_by IS NOT NULL
			FROM control.move m JOIN control.run r ON r.id = m.run_id JOIN control.tenant t ON t.id = m.tenant_id
			LEFT JOIN control.archive a ON a.run_id = m.run_id AND a.tenant_id = m.tenant_id
			WHERE m.run_id = $1 AND m.tenant_id = $2 FOR UPDATE OF m`, run, who, m.cfg.Observation).
			Scan(&f.State, &f.Rows, &f.Source, &status, &over, &observed, &forced, &schema, &prev, &busy, &gone, &back)
		if err != nil {
			return err
		}
		f.Database = blueOf(f.Source)
		switch {
		case f.State == Finalised && gone:
			f.Finished = true
			return nil
		case f.State != Green && f.State != Finalised:
			return fault.New(fault.Conflict, "not_green", "the tenant's move is %s; only one that is green can be finalised", f.State)
		case f.State == Green && back:
			return fault.New(fault.Conflict, "going_back", "the tenant is on its way back to blue")
		case f.State == Green && status != "active" && status != "suspended":
			return fault.New(fault.Conflict, "tenant_deleted", "the tenant is %s: its rows are to go, not to be archived", status)
		case f.State == Green && !observed && !now && forced == nil:
			return fault.New(fault.Conflict, "observation_time", "the tenant can go back to blue until %s; force it to end that before", over.UTC().Format(time.DateTime+" MST"))
		case busy:
			f := fault.New(fault.Unavailable, "finalise_busy", "the tenant is being finalised at this moment")
			f.RetryAfter = leaseOfFinalise
			return f
		}
		if schema == nil {
			if schema, err = m.blueSchema(ctx, f); err != nil {
				return err
			}
		}
		f.Schema = *schema
		if err := tx.QueryRow(ctx, `UPDATE control.move SET token = nextval('control.move_token'), updated_at = clock_timestamp() WHERE run_id = $1 AND tenant_id = $2 RETURNING token`,
			run, who).Scan(&f.Token); err != nil {
			return err
		}
		if f.State != Green {
			_, err := tx.Exec(ctx, `UPDATE control.archive SET attempts = attempts + 1, lease_until = clock_timestamp() + $3::interval WHERE run_id = $1 AND tenant_id = $2`, run, who, leaseOfFinalise)
			return err
		}
		f.Object = fmt.Sprintf("%s-%d.dump", who, f.Token)
		if prev != nil {
			f.Former = *prev
		}
		var by *string
		if now {
			by = &actor
		}
		_, err = tx.Exec(ctx, `INSERT INTO control.archive AS a (run_id, tenant_id, database_name, schema_name, forced_by, object, attempts, lease_until)
			VALUES ($1, $2, $3, $4, $5, $6, 1, clock_timestamp() + $7::interval)
			ON CONFLICT (run_id, tenant_id) DO UPDATE SET forced_by = coalesce(a.forced_by, excluded.forced_by), object = excluded.object,
				attempts = a.attempts + 1, lease_until = excluded.lease_until`, run, who, f.Database, f.Schema, by, f.Object, leaseOfFinalise)
		return err
	})
	return f, err
}

// blueOf is the database in which a source's tenants live before they move.
func blueOf(src string) string {
	if src == platformSource {
		return citus.BlueDatabase
	}
	return src
}

// blueSchema asks blue which schema is the tenant's: the directory names the one on green.
func (m *Mover) blueSchema(ctx context.Context, f attempt) (*string, error) {
	blue, err := m.dbs.Pool(ctx, f.Database)
	if err != nil {
		return nil, err
	}
	var schema string
	err = blue.QueryRow(ctx, `SELECT schema_name FROM coditect.gate WHERE tenant_id = $1`, f.Tenant).Scan(&schema)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fault.New(fault.Conflict, "blue_dropped", "database %s has no schema of the tenant any more", f.Database)
	}
	return &schema, err
}

// keepLease does work while it keeps others away from it.
func (m *Mover) keepLease(ctx context.Context, f attempt, work func(ctx context.Context) error) error {
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	beat, cancel := context.WithCancel(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(leaseOfFinalise / 3)
		defer tick.Stop()
		for {
			select {
			case <-beat.Done():
				return
			case <-tick.C:
				_, _ = control.Exec(beat, `UPDATE control.archive a SET lease_until = clock_timestamp() + $4::interval FROM control.move m
					WHERE a.run_id = $1 AND a.tenant_id = $2 AND m.run_id = $1 AND m.tenant_id = $2 AND m.token = $3`, f.Run, f.Tenant, f.Token, leaseOfFinalise)
			}
		}
	}()
	defer func() { cancel(); <-stopped }()
	return work(ctx)
}

// endAttempt gives the lease back, and notes what went wrong: a sweep tries again later and later.
// It returns what went wrong, if that still matters: the trouble of an attempt that a newer one has
// overtaken is nobody's.
func (m *Mover) endAttempt(ctx context.Context, f attempt, failed error) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	control, err := m.control(ctx)
	if err != nil {
		return errors.Join(failed, err)
	}
	var why *string
	if failed != nil {
		s := messageOf(failed)
		why = &s
	}
	tag, err := control.Exec(ctx, `UPDATE control.archive a SET lease_until = NULL, error = $4::text,
			retry_at = CASE WHEN $4::text IS NULL THEN NULL ELSE clock_timestamp() + least(interval '10 seconds' * power(2, least(a.attempts, 12)), interval '6 hours') END
		FROM control.move m WHERE a.run_id = $1 AND a.tenant_id = $2 AND m.run_id = $1 AND m.tenant_id = $2 AND m.token = $3`, f.Run, f.Tenant, f.Token, why)
	if err == nil && tag.RowsAffected() == 0 {
		return nil
	}
	return errors.Join(failed, err)
}

// takeGate makes blue refuse whoever held the tenant before: one who wakes up now and wants to
// open it. It reports whether there is a gate; one that is not closed and fenced is a fault.
func (m *Mover) takeGate(ctx context.Context, blue *citus.Pool, v Move) (there bool, err error) {
	var shut bool
	var token int64
	err = blue.QueryRow(ctx, `UPDATE coditect.gate SET token = CASE WHEN fenced AND closed THEN greatest(token, $2) ELSE token END WHERE tenant_id = $1 RETURNING fenced AND closed, token`,
		v.Tenant, v.Token).Scan(&shut, &token)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("migration: take the gate of %s: %w", v.Tenant, err)
	case !shut:
		return true, errNotFenced(v.Schema)
	case token != v.Token:
		return true, errOutdated
	}
	return true, nil
}

func errNotFenced(schema string) error {
	return fault.New(fault.Conflict, "blue_not_fenced", "schema %s of blue is not fenced any more since the tenant left it: somebody may have written there; compare it with green before it is dropped", schema)
}

// checkBlue makes sure that the schema is still what was moved, and that it can be dropped
// without touching anything else. It returns its tables.
func (m *Mover) checkBlue(ctx context.Context, blue *citus.Pool, f attempt) (map[string]TableDigest, error) {
	followed, err := m.endReverse(ctx, blue, f.Move)
	if err != nil {
		return nil, err
	}
	var tables map[string]TableDigest
	err = frozen(ctx, blue, func(tx pgx.Tx) error {
		if err := mayDrop(ctx, tx, f.Schema); err != nil {
			return err
		}
		tables, err = SchemaDigests(ctx, tx, f.Schema)
		return err
	})
	if err != nil || followed {
		return tables, err
	}
	var open bool
	err = blue.QueryRow(ctx, `SELECT EXISTS (SELECT FROM coditect.relations($1) c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
		AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgname = 'coditect_fence' AND tgenabled = 'A'))`, f.Schema).Scan(&open)
	if err == nil && open {
		err = errNotFenced(f.Schema)
	}
	if err != nil {
		return nil, err
	}
	l, err := m.layoutAtMove(ctx, blue, f.Source, f.Schema)
	if err != nil {
		return nil, err
	}
	var rows int64
	for _, t := range l.Tables {
		rows += tables[t.Name].Rows
	}
	if rows != f.Rows {
		return nil, fault.New(fault.Conflict, "blue_changed", "schema %s of blue has %d rows; %d were moved and verified: compare it with green before it is dropped", f.Schema, rows, f.Rows)
	}
	return tables, nil
}

// endReverse waits until blue has what was written in green until now. It reports whether blue
// followed green: then it is not what the flip has left. What cannot come back, because it does
// not fit into blue any more, does not keep the schema from its end: it is noted.
func (m *Mover) endReverse(ctx context.Context, blue *citus.Pool, v Move) (followed bool, err error) {
	w, err := m.wayBack(ctx, v.Run, v.Tenant)
	if err == nil && (w.Token != v.Token || w.State != Green) {
		return false, errOutdated
	}
	if err == nil {
		err = m.drainTo(ctx, w, 0, nil)
	}
	if err != nil && !isTenantsFault(err) {
		return false, err
	}
	if err != nil {
		control, controlErr := m.control(ctx)
		if controlErr != nil {
			return false, controlErr
		}
		if err := note(ctx, control, v.Run, &v.Tenant, "mover", "archived without what was written since", map[string]any{"why": messageOf(err)}); err != nil {
			return false, err
		}
	}
	err = blue.QueryRow(ctx, `SELECT EXISTS (SELECT FROM coditect.reversed WHERE tenant_id = $1)`, v.Tenant).Scan(&followed)
	return followed, err
}

// layoutAtMove is what of a schema was moved. Unlike layoutFor it does not ask whether green's
// tables still have the same columns: they have been changed since.
func (m *Mover) layoutAtMove(ctx context.Context, blue *citus.Pool, src, schema string) (convert.Layout, error) {
	control, err := m.control(ctx)
	if err != nil {
		return convert.Layout{}, err
	}
	opts, err := conversionOptions(ctx, control, src)
	if err != nil {
		return convert.Layout{}, err
	}
	cat, err := catalog.Read(ctx, blue, []string{schema, "public"})
	if err != nil {
		return convert.Layout{}, fmt.Errorf("migration: read the structure of %s: %w", schema, err)
	}
	return convert.LayoutOf(cat, schema, opts)
}

// TableDigest sums up all rows of one table, in any order.
type TableDigest struct {
	Rows int64  `json:"rows"`
	Hash string `json:"hash"` // the sum of a 64-bit hash of each row's canonical text, decimal
}

// SchemaDigests sums up every table of a schema: a schema that was restored from its dump has the same.
func SchemaDigests(ctx context.Context, tx pgx.Tx, schema string) (map[string]TableDigest, error) {
	if err := execAll(ctx, tx, canonical); err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, `SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relkind = 'r' ORDER BY 1`, schema)
	if err != nil {
		return nil, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	out := map[string]TableDigest{}
	for _, n := range names {
		var d TableDigest
		if err := tx.QueryRow(ctx, `SELECT count(*), coalesce(sum(hashtextextended(x::text, 0)), 0)::text FROM `+quoted(schema, n)+` x`, pgx.QueryExecModeExec).Scan(&d.Rows, &d.Hash); err != nil {
			return nil, fmt.Errorf("migration: sum up table %s: %w", n, err)
		}
		out[n] = d
	}
	return out, nil
}

// mayDrop refuses a schema that is not the mover's to drop, or whose objects are used from outside.
func mayDrop(ctx context.Context, tx pgx.Tx, schema string) error {
	var owners []string
	if err := tx.QueryRow(ctx, `SELECT array_agg(DISTINCT pg_get_userbyid(o)::text) FILTER (WHERE NOT pg_has_role(o, 'USAGE')) FROM (
			SELECT nspowner AS o FROM pg_namespace WHERE nspname = $1
			UNION ALL SELECT relowner FROM coditect.relations($1)) x`, schema).Scan(&owners); err != nil {
		return err
	}
	if owners != nil {
		return fault.New(fault.Conflict, "schema_not_ours", "schema %s belongs to %s, as whom the mover may not act: GRANT %s TO coditect_migrator", schema, orList(owners), strings.Join(owners, ", "))
	}
	return notUsed(ctx, tx, schema)
}

// notUsed refuses a schema whose objects something outside of it depends on: a view over many
// tenants, another schema's foreign key. Dropping the schema would drop that, too. What depends
// on an object as a part of it (PostgreSQL: internal, automatic) belongs to the schema.
func notUsed(ctx context.Context, tx pgx.Tx, schema string) error {
	var users []string
	err := tx.QueryRow(ctx, `WITH RECURSIVE inside(classid, objid) AS (
			SELECT d.classid, d.objid FROM pg_depend d WHERE d.refclassid = 'pg_namespace'::regclass AND d.refobjid = (SELECT oid FROM pg_namespace WHERE nspname = $1)
			UNION
			SELECT d.classid, d.objid FROM inside i JOIN pg_depend d ON d.refclassid = i.classid AND d.refobjid = i.objid WHERE d.deptype IN ('a', 'i', 'P', 'S'))
		SELECT array_agg(DISTINCT pg_describe_object(d.classid, d.objid, 0))
		FROM inside i JOIN pg_depend d ON d.refclassid = i.classid AND d.refobjid = i.objid
		WHERE d.deptype IN ('n', 'e', 'x') AND NOT EXISTS (SELECT FROM inside o WHERE o.classid = d.classid AND o.objid = d.objid)`, schema).Scan(&users)
	if err != nil {
		return err
	}
	if users != nil {
		return fault.New(fault.Conflict, "schema_in_use", "schema %s cannot be dropped, for others use it: %s", schema, strings.Join(users[:min(len(users), 5)], ", "))
	}
	return nil
}

// giveUp records the dump and ends the way back, in one commit.
func (m *Mover) giveUp(ctx context.Context, f attempt, actor string, dump Dump, tables map[string]TableDigest) error {
	if len(dump.Tables) != len(tables) {
		return fault.New(fault.Conflict, "archive_incomplete", "the dump of schema %s holds the rows of %d tables; the schema has %d", f.Schema, len(dump.Tables), len(tables))
	}
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return m.impatient(ctx, control, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE control.move SET state = 'finalised', fence_up = false, updated_at = clock_timestamp()
			WHERE run_id = $1 AND tenant_id = $2 AND token = $3 AND state = 'green'`, f.Run, f.Tenant, f.Token)
		if err := oneEach(tag.RowsAffected(), 1, err); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `UPDATE control.archive SET url = $3, bytes = $4, sha256 = $5, tables = $6, saved_at = clock_timestamp() WHERE run_id = $1 AND tenant_id = $2`,
			f.Run, f.Tenant, dump.URL, dump.Bytes, dump.SHA256, tables); err != nil {
			return err
		}
		return note(ctx, tx, f.Run, &f.Tenant, actor, "finalised", map[string]any{"archive": dump.URL, "bytes": dump.Bytes, "sha256": hex.EncodeToString(dump.SHA256)})
	})
}

// tablesAtOnce are dropped in one transaction: each holds its locks until the end, and as many
// rows of the catalogue are in doubt for everybody else.
const tablesAtOnce = 4

// dropBlue drops a schema that was given up, and forgets its tenant in blue.
func (m *Mover) dropBlue(ctx context.Context, blue *citus.Pool, f attempt, actor string) error {
	if f.State != Green { // an earlier attempt's token is in the gate, if the gate is still there
		if _, err := m.takeGate(ctx, blue, f.Move); err != nil {
			return err
		}
	}
	if err := m.endCapture(ctx, f.Tenant); err != nil {
		return err
	}
	for left := true; left; {
		var err error
		if left, err = m.dropSome(ctx, blue, f); err != nil {
			return err
		}
		m.crash("tables dropped")
	}
	control, err := m.control(ctx)
	if err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, control, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, `UPDATE control.archive a SET dropped_at = clock_timestamp() FROM control.move m
			WHERE a.run_id = $1 AND a.tenant_id = $2 AND m.run_id = $1 AND m.tenant_id = $2 AND m.token = $3 AND m.state = 'finalised'`, f.Run, f.Tenant, f.Token)
		if err := oneEach(tag.RowsAffected(), 1, err); err != nil {
			return err
		}
		return note(ctx, tx, f.Run, &f.Tenant, actor, "schema dropped", map[string]any{"database": f.Database, "schema": f.Schema})
	})
}

// dropSome drops a few tables, or when there are none the schema. It reports whether there is more.
// The gate goes with the schema: whoever finds none has nothing to drop, and a schema of this name that
// is made later is nobody's to drop.
func (m *Mover) dropSome(ctx context.Context, blue *citus.Pool, f attempt) (left bool, err error) {
	err = pgx.BeginFunc(ctx, blue, func(tx pgx.Tx) error {
		// A foreign key's other table, which all tenants share, is locked for a moment: nobody is to queue for long.
		if _, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true), set_config('coditect.mover', 'on', true)`, fmt.Sprint(10*m.cfg.LockTimeout.Milliseconds())); err != nil {
			return err
		}
		var token int64
		err := tx.QueryRow(ctx, `SELECT token FROM coditect.gate WHERE tenant_id = $1 AND schema_name = $2 FOR UPDATE`, f.Tenant, f.Schema).Scan(&token)
		if errors.Is(err, pgx.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		if token != f.Token {
			return errOutdated
		}
		rows, err := tx.Query(ctx, `SELECT relname::text FROM coditect.relations($1) WHERE relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1 LIMIT $2`, f.Schema, tablesAtOnce)
		if err != nil {
			return err
		}
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		left = len(names) > 0
		if !left {
			return dropSchema(ctx, tx, f)
		}
		for i, n := range names {
			names[i] = quoted(f.Schema, n)
		}
		all := strings.Join(names, ", ")
		if _, err := tx.Exec(ctx, `LOCK TABLE `+all+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		// Under the lock nothing new can come to use them.
		if err := notUsed(ctx, tx, f.Schema); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, `DROP TABLE `+all+` CASCADE`)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("migration: drop schema %s: %w", f.Schema, err)
	}
	return left, nil
}

// dropSchema drops what is left of a schema, and blue's knowledge of its tenant.
func dropSchema(ctx context.Context, tx pgx.Tx, f attempt) error {
	if err := notUsed(ctx, tx, f.Schema); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `DROP SCHEMA IF EXISTS `+quoted(f.Schema)+` CASCADE`); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `DELETE FROM coditect.tenant_schema WHERE tenant_id = $1`, f.Tenant); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `DELETE FROM coditect.gate WHERE tenant_id = $1`, f.Tenant)
	return err
}

// finaliseDue finalises tenants whose observation time is over, and those that were cut short:
// a few, and none is begun after the budget of a step. What fails is noted, and not the sweep's error.
func (m *Mover) finaliseDue(ctx context.Context) (n int, err error) {
	if m.archive == nil {
		return 0, nil
	}
	control, err := m.control(ctx)
	if err != nil {
		return 0, err
	}
	deadline := m.now().Add(m.cfg.StepBudget)
	rows, err := control.Query(ctx, `SELECT x.run_id, x.tenant_id FROM (
			SELECT m.run_id, m.tenant_id, m.green_at FROM control.move m WHERE m.state = 'green' AND m.back_by IS NULL AND m.green_at <= clock_timestamp() - $1::interval
			UNION
			SELECT a.run_id, a.tenant_id, m.green_at FROM control.archive a JOIN control.move m USING (run_id, tenant_id)
			WHERE a.dropped_at IS NULL AND (m.state = 'finalised' OR m.state = 'green' AND a.forced_by IS NOT NULL)) x
		JOIN control.tenant t ON t.id = x.tenant_id LEFT JOIN control.archive a ON a.run_id = x.run_id AND a.tenant_id = x.tenant_id
		WHERE coalesce(a.lease_until, '-infinity') <= clock_timestamp() AND coalesce(a.retry_at, '-infinity') <= clock_timestamp()
		  AND (t.status IN ('active', 'suspended') OR a.saved_at IS NOT NULL)
		ORDER BY x.green_at LIMIT $2`, m.cfg.Observation, m.cfg.FinalisePerSweep)
	if err != nil {
		return 0, fmt.Errorf("migration: finalise: %w", err)
	}
	due, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (v Move, err error) { return v, row.Scan(&v.Run, &v.Tenant) })
	if err != nil {
		return 0, fmt.Errorf("migration: finalise: %w", err)
	}
	for _, v := range due {
		if m.now().After(deadline) {
			break
		}
		done, _ := m.Finalise(ctx, v.Run, v.Tenant, "mover", false) // what has failed stands in control.archive
		if done.Dropped != nil {
			n++
		}
	}
	return n, nil
}

// finalised reads what became of one tenant's schema.
func (m *Mover) finalised(ctx context.Context, run uuid.UUID, who tenant.ID) (Finalisation, error) {
	control, err := m.control(ctx)
	if err != nil {
		return Finalisation{}, err
	}
	all, err := readFinalised(ctx, control, `a.run_id = $1 AND a.tenant_id = $2`, run, who)
	if err != nil || len(all) == 0 {
		return Finalisation{}, errors.Join(err, pgx.ErrNoRows)
	}
	return all[0], nil
}

// Archived lists what became of a tenant's blue schemas, newest first; of all tenants, if
// the tenant is the zero ID, at most limit.
func Archived(ctx context.Context, control *citus.Pool, who tenant.ID, limit int) ([]Finalisation, error) {
	return readFinalised(ctx, control, `($1::uuid = '00000000-0000-0000-0000-000000000000' OR a.tenant_id = $1) ORDER BY a.saved_at DESC NULLS FIRST LIMIT $2`, who, limit)
}

func readFinalised(ctx context.Context, control *citus.Pool, where string, args ...any) ([]Finalisation, error) {
	rows, err := control.Query(ctx, `SELECT a.run_id, a.tenant_id, m.state, r.source, a.schema_name, coalesce(a.url, ''), coalesce(a.bytes, 0), coalesce(encode(a.sha256, 'hex'), ''),
			a.tables, a.saved_at, a.dropped_at, coalesce(a.error, '')
		FROM control.archive a JOIN control.move m USING (run_id, tenant_id) JOIN control.run r ON r.id = a.run_id WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("migration: read the archive: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (f Finalisation, err error) {
		err = row.Scan(&f.Run, &f.Tenant, &f.State, &f.Source, &f.Schema, &f.Archive, &f.Bytes, &f.SHA256, &f.Tables, &f.Saved, &f.Dropped, &f.Error)
		for d := range maps.Values(f.Tables) {
			f.Rows += d.Rows
		}
		return f, err
	})
}
