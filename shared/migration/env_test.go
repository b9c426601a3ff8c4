package migration_test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/directory"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/source"
	"github.com/coditect/platform/shared/migration/stream"
	"github.com/coditect/platform/shared/tenant"
)

func TestMain(m *testing.M) { citustest.Main(m) }

// world is a platform with a mover; its queue hands steps to whoever drains it.
type world struct {
	*citustest.Env
	Mover *migration.Mover
	Queue *inbox
	// Legacy is a foreign database, when the test has registered one.
	Legacy string
	// between runs after a copy ahead, before its fence.
	between func()
}

// reached is called by movers at their crash points.
func (w *world) reached(cfg migration.Config, at string) {
	if (at == "copied" && cfg.AheadMax >= 0 || at == "catching_up") && w.between != nil {
		w.between()
	}
}

// inbox is a queue that keeps its tasks until the test delivers them, in any order,
// as often as it likes.
type inbox struct {
	mu      sync.Mutex
	tasks   []migration.StepTask
	receive func(migration.ReceiveTask, time.Time)
}

// EnqueueReceive has the change stream received in the background.
func (q *inbox) EnqueueReceive(_ context.Context, _ string, body []byte, after time.Time) error {
	var t migration.ReceiveTask
	if err := json.Unmarshal(body, &t); err != nil {
		return err
	}
	q.receive(t, after)
	return nil
}

func (q *inbox) EnqueueStep(_ context.Context, _ string, body []byte, _ time.Time) error {
	var t migration.StepTask
	if err := json.Unmarshal(body, &t); err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.tasks = append(q.tasks, t)
	return nil
}

func (q *inbox) take() (migration.StepTask, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.tasks) == 0 {
		return migration.StepTask{}, false
	}
	t := q.tasks[0]
	q.tasks = q.tasks[1:]
	return t, true
}

// quick is a configuration whose waits suit a test.
var quick = migration.Config{Lease: time.Second, LockTimeout: 100 * time.Millisecond, Stream: stream.Config{Budget: 8 * time.Second}, Limits: migration.Limits{Busy: -1}, SchemaCheck: 300 * time.Millisecond, Settle: 200 * time.Millisecond}

func newWorld(t *testing.T, env *citustest.Env, opts ...migration.Option) *world {
	w := &world{Env: env, Queue: &inbox{}}
	w.Mover = migration.New(env.Migrator, w.Queue, quick, opts...)
	w.receive(t, quick)
	return w
}

// receive lets tasks of the change stream be done in the background until the test ends.
func (w *world) receive(t *testing.T, cfg migration.Config) {
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	t.Cleanup(func() { cancel(); group.Wait() })
	mover := migration.New(w.Migrator, w.Queue, cfg)
	w.Queue.receive = func(task migration.ReceiveTask, after time.Time) {
		group.Go(func() {
			timer := time.NewTimer(time.Until(after))
			defer timer.Stop()
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
			if _, err := mover.Receive(ctx, task); err != nil && ctx.Err() == nil {
				t.Logf("receive: %v", err) // a server that the test has killed; the next call goes on
			}
		})
	}
}

// drain delivers tasks until there are none.
func (w *world) drain(t *testing.T) {
	t.Helper()
	for {
		task, ok := w.Queue.take()
		if !ok {
			return
		}
		require.NoError(t, w.Mover.Step(t.Context(), task))
	}
}

// eachServer runs f on plain PostgreSQL and on Citus.
func eachServer(t *testing.T, f func(t *testing.T, w *world)) {
	citustest.Each(t, func(t *testing.T, env *citustest.Env) { f(t, newWorld(t, env)) })
}

// plainServer runs f on plain PostgreSQL, and in the soak on Citus as well.
func plainServer(t *testing.T, f func(t *testing.T, w *world)) {
	if everything {
		eachServer(t, f)
		return
	}
	f(t, newWorld(t, citustest.New(t)))
}

const legacyDescription = `
name: legacy
database: LEGACY_DSN
tenant_table: public.customers_client
schema_column: schema_name
name_column: name
application_role: legacy_app
`

// withLegacy restores the dump of the django-tenants application into a database of
// its own and registers it as a source.
func (w *world) withLegacy(t *testing.T) {
	t.Helper()
	w.Legacy = citustest.EmptyDatabase(t)
	restoreDump(t, w.Legacy)
	w.register(t, legacyDescription)
}

func (w *world) register(t *testing.T, description string) migration.Registered {
	t.Helper()
	s, err := source.Parse([]byte(description))
	require.NoError(t, err)
	r, err := migration.Registration{Source: s, Blue: w.Legacy, Green: w.GreenAdmin}.Apply(t.Context())
	require.NoError(t, err)
	open := func(role string) *citus.Databases {
		dbs, err := citus.Open(t.Context(), citus.Config{Green: citustest.As(t, w.GreenAdmin, role), Blue: citustest.As(t, w.BlueAdmin, role),
			Sources: citus.SourceDSNs{s.Name: citustest.As(t, w.Legacy, role)}, MaxConns: 8})
		require.NoError(t, err)
		t.Cleanup(dbs.Close)
		return dbs
	}
	w.Migrator = open("coditect_migrator")
	w.Databases = open("coditect_app")
	w.Directory = directory.New(w.Databases, 0)
	w.Door = citus.NewDoor(w.Databases, w.Directory)
	w.Mover = migration.New(w.Migrator, w.Queue, quick)
	w.receive(t, quick) // of the new source, too
	return r
}

// restoreDump loads the fixture as legacy_owner's, with legacy_app as the old application.
func restoreDump(t *testing.T, dsn string) {
	t.Helper()
	f, err := os.Open(citustest.Fixture(t, "scripts/internal/demo/testdata/legacy-20.sql.gz"))
	require.NoError(t, err)
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	bin, err := localpg.Programs()
	require.NoError(t, err)
	execSQL(t, dsn, `DO $$ BEGIN
		PERFORM pg_advisory_xact_lock(4711);
		IF to_regrole('legacy_owner') IS NULL THEN CREATE ROLE legacy_owner; END IF;
		IF to_regrole('legacy_app') IS NULL THEN CREATE ROLE legacy_app LOGIN; END IF;
	END $$`)
	execSQL(t, dsn, fmt.Sprintf(`GRANT CREATE ON DATABASE %s TO legacy_owner; GRANT ALL ON SCHEMA public TO legacy_owner`, databaseOf(t, dsn)))
	cmd := exec.Command(bin+"/psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn)
	cmd.Env = append(os.Environ(), "PGOPTIONS=-c role=legacy_owner")
	cmd.Stdin = z
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	execSQL(t, dsn, `DO $$ DECLARE s name; BEGIN
		FOR s IN SELECT nspname FROM pg_namespace WHERE nspname LIKE 'acme%' LOOP
			EXECUTE format('GRANT USAGE ON SCHEMA %1$I TO legacy_app; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %1$I TO legacy_app; GRANT USAGE ON ALL SEQUENCES IN SCHEMA %1$I TO legacy_app', s);
		END LOOP;
	END $$`)
	execSQL(t, dsn, `ANALYZE`) // alone: autovacuum may have one of the tables and wait for another's rights
}

func databaseOf(t *testing.T, dsn string) string {
	cfg, err := pgx.ParseConfig(dsn)
	require.NoError(t, err)
	return cfg.Database
}

// execSQL executes statements as the connection string's role.
func execSQL(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err, sql)
}

// addProject writes one acknowledged row through the door.
func addProject(ctx context.Context, door *citus.Door, id tenant.ID, name string) (tenant.ID, error) {
	row := tenant.NewID()
	return row, door.InTenant(ctx, id, func(tx *citus.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO project (tenant_id, id, name, created_at, updated_at) VALUES ($1, $2, $3, $4, $4)`, tx.Tenant(), row, name, time.Unix(1, 0))
		return err
	})
}

func projects(t *testing.T, door *citus.Door, id tenant.ID) (n int) {
	t.Helper()
	require.NoError(t, door.ReadTenant(t.Context(), id, func(tx *citus.Tx) error {
		return tx.QueryRow(t.Context(), `SELECT count(*) FROM project WHERE tenant_id = $1`, tx.Tenant()).Scan(&n)
	}))
	return n
}
