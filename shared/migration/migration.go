package migration

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/coditect/platform/shared/citus"
	"github.com/coditect/platform/shared/migration/planner"
	"github.com/coditect/platform/shared/migration/stream"
	"github.com/coditect/platform/shared/tenant"
)

// StepTask is the wake-up call for one batch of a run. It carries no state: what is
// to be done stands in the control tables.
type StepTask struct {
	Run   uuid.UUID `json:"run"`
	Batch int       `json:"batch"`
	Step  int64     `json:"step"` // with run and batch, the task's name: the same step is enqueued once
}

// Queue delivers wake-up calls at least once, in any order: it POSTs body to the
// step function, not before after (zero: at once). Enqueueing a name again is
// success and adds nothing. *taskqueue.Queue is one.
type Queue interface {
	EnqueueStep(ctx context.Context, name string, body []byte, after time.Time) error
	// EnqueueReceive is the same for the function that receives changes.
	EnqueueReceive(ctx context.Context, name string, body []byte, after time.Time) error
}

// enqueue puts a step into the queue.
func (m *Mover) enqueue(ctx context.Context, t StepTask, after time.Time) error {
	body, err := json.Marshal(t)
	if err != nil {
		return err
	}
	// The part that differs comes first: the service stores such names faster.
	return m.queue.EnqueueStep(ctx, fmt.Sprintf("%d-%d-%s", t.Batch, t.Step, t.Run), body, after)
}

// Config bounds what a step does. The tags are those of sethvargo/go-envconfig.
type Config struct {
	StepBudget   time.Duration `env:"CODITECT_STEP_BUDGET,default=10s"`         // a step begins nothing new after this; keep it well below the queue's dispatch deadline
	GroupTenants int           `env:"CODITECT_GROUP_TENANTS,default=24"`        // tenants that are copied together, at most
	FenceTenants int           `env:"CODITECT_FENCE_TENANTS"`                   // and of these, how many are fenced and flipped together; 0: 3, or 1 where green has Citus
	AheadMax     int64         `env:"CODITECT_AHEAD_MAX,default=16777216"`      // bytes of the largest tenant that is copied in one step, before its fence goes up; a larger one moves online
	GroupBytes   int64         `env:"CODITECT_GROUP_BYTES,default=4194304"`     // and the bytes of their rows, at most (one tenant may exceed it alone)
	ChunkPages   int64         `env:"CODITECT_CHUNK_PAGES,default=8192"`        // 8 kB pages of a big table copied in one transaction
	LockTimeout  time.Duration `env:"CODITECT_FENCE_LOCK_TIMEOUT,default=50ms"` // how long the fence may queue behind a writer, and others behind it
	MaxAttempts  int           `env:"CODITECT_MOVE_ATTEMPTS,default=12"`        // claims of one move before it is undone
	Lease        time.Duration `env:"CODITECT_BATCH_LEASE,default=5s"`          // of a batch, renewed while its step lives
	StepsAtOnce  int           `env:"CODITECT_STEPS_AT_ONCE,default=4"`         // what the queue delivers at the same time, for estimates

	Observation      time.Duration `env:"CODITECT_OBSERVATION,default=720h"`     // after which a green tenant's blue schema is archived and dropped
	Settle           time.Duration `env:"CODITECT_SETTLE,default=1s"`            // after which a comparison looks again at a row that differs while one side follows the other
	CompareRows      int64         `env:"CODITECT_COMPARE_ROWS,default=500000"`  // about so many rows of a table are compared in one go
	FinalisePerSweep int           `env:"CODITECT_FINALISE_PER_SWEEP,default=4"` // tenants of one sweep for which that is done, at most

	Lanes           int           `env:"CODITECT_LANES,default=1"`             // replication slots of each blue database: each decodes all of its WAL; -1: no tenant moves online
	CutoverPatience time.Duration `env:"CODITECT_CUTOVER_PATIENCE,default=2s"` // how long a fenced tenant waits for its last changes before the fence is lifted again
	LagAlarm        time.Duration `env:"CODITECT_LAG_ALARM,default=1m"`        // a change of a held tenant that is not in green after this is an alarm
	SchemaCheck     time.Duration `env:"CODITECT_SCHEMA_CHECK,default=10s"`    // between two looks whether a held tenant's tables have changed
	Stream          stream.Config
	Limits          Limits
}

// withDefaults fills what a caller left zero.
func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.StepBudget, 10*time.Second)
	def(&c.LockTimeout, 50*time.Millisecond)
	def(&c.Lease, 5*time.Second)
	def(&c.Settle, time.Second)
	def(&c.Observation, 30*24*time.Hour)
	if c.GroupTenants <= 0 {
		c.GroupTenants = 24
	}
	if c.GroupBytes <= 0 {
		c.GroupBytes = 4 << 20
	}
	if c.AheadMax == 0 {
		c.AheadMax = 16 << 20
	}
	if c.ChunkPages <= 0 {
		c.ChunkPages = 8192
	}
	if c.CompareRows <= 0 {
		c.CompareRows = 500_000
	}
	if c.FinalisePerSweep <= 0 {
		c.FinalisePerSweep = 4
	}
	if c.StepsAtOnce <= 0 {
		c.StepsAtOnce = 4
	}
	if c.MaxAttempts <= 0 {
		c.MaxAttempts = 12
	}
	if c.Lanes == 0 {
		c.Lanes = 1
	}
	def(&c.CutoverPatience, 2*time.Second)
	def(&c.LagAlarm, time.Minute)
	def(&c.SchemaCheck, 10*time.Second)
	c.Stream = c.Stream.WithDefaults()
	c.Limits = c.Limits.withDefaults()
	return c
}

// Mover moves tenants. It holds no state of its own beside caches: any number of
// them may work at the same time. Safe for concurrent use.
type Mover struct {
	dbs     *citus.Databases // of the migrator's role
	queue   Queue
	cfg     Config
	layouts *layouts
	steps   chan struct{} // one for each step at work: it holds connections while it asks for more
	calm    calm
	archive Archive            // nil: nothing is finalised
	now     func() time.Time   // measures
	clock   func() time.Time   // tells the time of day that plans are kept by
	shapes  sync.Map           // of changes, by number
	looked  sync.Map           // when a held tenant's tables were looked at, by tenant
	busy    sync.Map           // time.Time by database: when it was last seen to be busy
	crash   func(point string) // tests kill the process here
}

// stepConns is how many connections to one database a step uses at the same time: the session
// of its copy, and one for each of the fences.
const stepConns = 1 + fencesAtOnce

// Option changes a Mover.
type Option func(*Mover)

// WithCrashPoints calls f at each named point, right after an effect has become
// durable: tests kill the process there.
func WithCrashPoints(f func(point string)) Option { return func(m *Mover) { m.crash = f } }

// WithClock sets the clock by which plans are kept: allowed hours, soaks, rows a second and the
// age of statistics. What is measured, a pause or a lease, goes by the machine's.
func WithClock(now func() time.Time) Option { return func(m *Mover) { m.clock = now } }

// New returns a mover over databases that were opened with the migrator's role. From now on commits
// over them are durable, whatever the servers' setting: a fence that a crash of blue takes back
// after green was opened would leave the tenant two homes.
func New(dbs *citus.Databases, queue Queue, cfg Config, opts ...Option) *Mover {
	dbs.ForMoves()
	m := &Mover{dbs: dbs, queue: queue, cfg: cfg.withDefaults(), layouts: newLayouts(), now: time.Now, clock: time.Now,
		steps: make(chan struct{}, max(1, dbs.MaxConns()/stepConns)), crash: func(string) {}}
	for _, o := range opts {
		o(m)
	}
	return m
}

// Run is one run as operators see it.
type Run struct {
	ID         uuid.UUID     `json:"id"`
	Source     string        `json:"source"`
	State      RunState      `json:"state"`
	MaxPause   time.Duration `json:"-"`
	CreatedBy  string        `json:"created_by"`
	CreatedAt  time.Time     `json:"created_at"`
	StartedAt  *time.Time    `json:"started_at,omitempty"`
	FinishedAt *time.Time    `json:"finished_at,omitempty"`

	Wave           int            `json:"wave"` // the open one
	LastWave       int            `json:"last_wave"`
	NextWaveAt     *time.Time     `json:"next_wave_at,omitempty"` // the open one is done
	Soak           time.Duration  `json:"-"`
	Concurrency    int            `json:"concurrency,omitempty"`
	RowsPerSecond  int64          `json:"rows_per_second,omitempty"`
	Hours          planner.Hours  `json:"hours,omitzero"`
	WaitsUntil     *time.Time     `json:"waits_until,omitempty"` // the opening of its hours
	Budget         planner.Budget `json:"budget,omitzero"`
	ErrorsAccepted int64          `json:"errors_accepted,omitempty"` // of the budget: those that an operator has resumed it with
	Halted         *string        `json:"halted,omitempty"`          // why it paused by itself

	credit planner.Credit
}

// Move is one tenant's move.
type Move struct {
	Run      uuid.UUID
	Tenant   tenant.ID
	Batch    int
	State    State
	Epoch    int64
	Token    int64
	Attempts int
	Bytes    int64
	Rows     int64
	FencedAt *time.Time
	GreenAt  *time.Time
	Pause    *time.Duration
	Error    *string
	FenceUp  bool // a fence may be up in blue
	Online   bool // it goes the online way
	Hold     bool // it follows blue until it is let go

	Schema   string // the tenant's blue schema
	Database string // the database it is in
}
