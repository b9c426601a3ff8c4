package migration

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/tenant"
)

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
