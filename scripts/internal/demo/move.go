package demo

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/scripts/internal/traffic"
	"github.com/coditect/platform/shared/tenant"
)

const (
	batchSize    = 10
	watchEvery   = 300 * time.Millisecond
	stallTimeout = 3 * time.Minute // without any change the demo gives up, for --exit must end
)

// moved is what became of the runs.
type moved struct {
	runs     []uuid.UUID
	total    int
	green    int
	rows     int64
	failures []string
}

// runStatus is the answer of GET /runs/{id}, as far as the demo reads it.
type runStatus struct {
	State  string `json:"state"`
	Counts struct {
		Planned int `json:"planned"`
		Fenced  int `json:"fenced"`
		Green   int `json:"green"`
		Blue    int `json:"blue"`
	} `json:"counts"`
	RowsMoved int64 `json:"rows_moved"`
	Failed    []struct {
		Tenant string `json:"tenant"`
		Error  string `json:"error"`
	} `json:"failed"`
}

func (s runStatus) ended() bool { return s.State == "done" || s.State == "cancelled" }

// open is where the demo's tenants stand before a run is asked for.
type open struct {
	Source  string
	Tenants []tenant.ID // in blue, and in no run
}

// standing reads the runs there are (an interrupted start may have left some, which go
// on by themselves) and who is still to be moved.
func (e Environment) standing(ctx context.Context, all []tenant.ID) (runs []uuid.UUID, todo []open, green int, err error) {
	conn, err := pgx.Connect(ctx, e.Green)
	if err != nil {
		return nil, nil, 0, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	rows, err := conn.Query(ctx, `SELECT id FROM control.run ORDER BY id`)
	if err != nil {
		return nil, nil, 0, err
	}
	if runs, err = pgx.CollectRows(rows, pgx.RowTo[uuid.UUID]); err != nil {
		return nil, nil, 0, err
	}
	rows, err = conn.Query(ctx, `SELECT t.source, array_agg(t.id) FROM control.tenant t
		WHERE t.id = ANY($1) AND t.home = 'blue' AND NOT EXISTS (
			SELECT FROM control.move m WHERE m.tenant_id = t.id AND m.state NOT IN ('blue', 'finalised'))
		GROUP BY t.source ORDER BY t.source`, all)
	if err != nil {
		return nil, nil, 0, err
	}
	if todo, err = pgx.CollectRows(rows, pgx.RowToStructByPos[open]); err != nil {
		return nil, nil, 0, err
	}
	err = conn.QueryRow(ctx, `SELECT count(*) FROM control.tenant WHERE id = ANY($1) AND home = 'green'`, all).Scan(&green)
	return runs, todo, green, err
}

// move asks for a run for each source and watches until all have ended.
func (e Environment) move(ctx context.Context, all []tenant.ID, figures func() traffic.Figures) (moved, error) {
	m := moved{total: len(all)}
	runs, todo, _, err := e.standing(ctx, all)
	if err != nil {
		return m, err
	}
	m.runs = runs
	for _, o := range todo {
		var run struct{ ID uuid.UUID }
		order := map[string]any{"source": o.Source, "batch_size": batchSize, "tenants": o.Tenants}
		if err := e.operatorFor("").Do(ctx, http.MethodPost, "/migrations/runs", order, &run); err != nil {
			return m, fmt.Errorf("start moving the tenants of %s: %w", o.Source, err)
		}
		m.runs = append(m.runs, run.ID)
	}
	statuses, err := e.watch(ctx, &m, figures)
	if err != nil {
		return m, err
	}
	for _, s := range statuses {
		m.rows += s.RowsMoved
		for _, f := range s.Failed {
			m.failures = append(m.failures, fmt.Sprintf("tenant %s was not moved: %s", f.Tenant, f.Error))
		}
	}
	// The directory's word, not a sum of the runs': a tenant undone in one run may have moved in another.
	_, _, m.green, err = e.standing(ctx, all)
	return m, err
}

// watch shows how far the runs are until all have ended.
func (e Environment) watch(ctx context.Context, m *moved, figures func() traffic.Figures) ([]runStatus, error) {
	total := m.total
	e.Console.Say("Moving %d tenants, %d in a batch:", total, batchSize)
	defer e.Console.Done()
	statuses := make([]runStatus, len(m.runs))
	for last, lastChange := -1, time.Now(); ; {
		ended, green, touched := 0, 0, 0
		for i, id := range m.runs {
			// A function that is being restarted may not answer: then the last answer stands.
			if s, err := e.status(ctx, id); err == nil {
				statuses[i] = s
			} else if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if statuses[i].ended() {
				ended++
			}
			green += statuses[i].Counts.Green
			touched += 3*statuses[i].Counts.Green + 2*statuses[i].Counts.Blue + statuses[i].Counts.Fenced
		}
		f := figures()
		e.Console.Progress(green, total, fmt.Sprintf("%d requests, %d failed, %d refused by the fence", f.Requests, f.Failed, f.Fenced))
		if ended == len(m.runs) {
			break
		}
		if touched != last {
			last, lastChange = touched, time.Now()
		}
		if time.Since(lastChange) > stallTimeout {
			m.failures = append(m.failures, fmt.Sprintf("nothing has moved for %v", stallTimeout))
			break
		}
		if err := pause(ctx, watchEvery); err != nil {
			return nil, err
		}
	}
	return statuses, nil
}

func (e Environment) status(ctx context.Context, id uuid.UUID) (runStatus, error) {
	var s runStatus
	return s, e.operatorFor("").Do(ctx, http.MethodGet, "/migrations/runs/"+id.String(), nil, &s)
}
