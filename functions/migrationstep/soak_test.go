//go:build soak

package migrationstep_test

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// TestSoakMoves moves tenants of all sizes, run after run, while they are written and
// processes are killed at random. SOAK_SEED repeats the choices, SOAK_MINUTES says how long.
// everything: go through all points, not a sample of them.
const everything = true

// TestSoakEveryPoint kills functions and databases at every named point.
func TestSoakEveryPoint(t *testing.T) {
	t.Run("functions", TestStepIsKilledAnywhere)
	t.Run("functions, online", TestFunctionsAreKilledWhileTenantsMoveOnline)
	t.Run("databases", TestDatabasesAreKilledAnywhere)
}

// backPoints are all points of a rollback.
var backPoints = []string{"rollback recorded", "rollback claimed", "green again", "blue entered", "changes read", "changes applied in blue", "changes deleted in green", "chunk compared", "compared",
	"fenced back", "gate shut", "writers drained", "proven", "flipped back", "blue's gate told", "fence lifted"}

func TestSoakGoesBack(t *testing.T) { TestMigrationsIsKilledWhileTenantsGoBack(t) }

func TestSoakMoves(t *testing.T) {
	seed, err := strconv.ParseUint(os.Getenv("SOAK_SEED"), 10, 64)
	require.NoError(t, err, "SOAK_SEED")
	minutes, err := strconv.ParseFloat(os.Getenv("SOAK_MINUTES"), 64)
	require.NoError(t, err, "SOAK_MINUTES")
	t.Logf("SOAK_SEED=%d SOAK_MINUTES=%g", seed, minutes)
	dice := rand.New(rand.NewPCG(seed, 0))
	p := start(t)
	t.Setenv("CODITECT_AHEAD_MAX", "200000") // about half of the tenants move online
	p.serve("")
	end := time.Now().Add(time.Duration(minutes * float64(time.Minute)))
	for round := 0; round == 0 || time.Now().Before(end); round++ {
		ids := p.tenants(4 + dice.IntN(12))
		for _, id := range ids {
			p.fill(id, dice.IntN(3)*dice.IntN(2000))
		}
		j := p.write(ids)
		kills := []func(){p.killStep, p.killReceiver, p.killQueue, p.killBlue, p.killGreen}
		next := time.Now()
		s := p.sweepUntilDone(p.run(ids), func(migration.Status) {
			if time.Now().After(next) {
				next = time.Now().Add(time.Duration(500+dice.IntN(4000)) * time.Millisecond)
				kills[dice.IntN(len(kills))]()
			}
		})
		j.stop()
		j.group.Wait()
		require.EqualValues(t, len(ids), s.Counts[migration.Green]+s.Counts[migration.Blue], "round %d: every move ends", round)
		j.check()
		t.Logf("round %d: %v, %d acknowledged writes, pauses %+v", round, s.Counts, j.n, s.Pause)
	}
}

// fill gives a tenant some rows that nobody acknowledged: they are there from the start.
func (p *platform) fill(id tenant.ID, rows int) {
	p.t.Helper()
	require.NoError(p.t, p.door.InTenant(p.t.Context(), id, func(tx *citus.Tx) error {
		_, err := tx.Exec(p.t.Context(), `INSERT INTO label (tenant_id, id, name, created_at, updated_at) SELECT $1, gen_random_uuid(), 'label ' || i || repeat('x', 50), now(), now() FROM generate_series(1, $2::int) i`, tx.Tenant(), rows)
		return err
	}))
}
