package migrations

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/planner"
	"github.com/coditect/platform/shared/tenant"
)

// operatorsOnly refuses whoever belongs to a tenant: moving is the platform's business.
func operatorsOnly(p auth.Principal) error {
	if !p.IsOperator() {
		return fault.New(fault.Forbidden, "operators_only", "only operators may do this")
	}
	return nil
}

type planInput struct {
	Body struct {
		Source     string   `json:"source" minLength:"1" maxLength:"63" doc:"\"platform\" for the platform's own blue tenants, or a registered foreign source"`
		Tenants    []string `json:"tenants,omitempty" minItems:"1" maxItems:"100000" doc:"Absent: all tenants of the source that live in blue. Of these, those are moved for whom all the rules hold"`
		BatchSize  int      `json:"batch_size,omitempty" minimum:"1" maximum:"1000" doc:"Tenants in one batch; 50 by default"`
		MaxPauseMS int64    `json:"max_pause_ms,omitempty" minimum:"1" maximum:"60000" doc:"A tenant whose writes would wait for longer, in milliseconds, is refused by name; 30000 by default"`

		Exclude     []string  `json:"exclude,omitempty" minItems:"1" maxItems:"100000" doc:"Rule: never these tenants"`
		NewSince    time.Time `json:"new_since,omitempty" required:"false" doc:"Rule: entered into the directory at this time or later"`
		Plans       []string  `json:"plans,omitempty" minItems:"1" maxItems:"100" doc:"Rule: on one of these plans"`
		Percent     float64   `json:"percent,omitempty" exclusiveMinimum:"0" maximum:"100" doc:"Rule: this share of all, always the same tenants; those of a smaller percentage are among them"`
		MaxBytes    int64     `json:"max_bytes,omitempty" minimum:"1" doc:"Rule: content of at most this many bytes, as estimated"`
		MaxActivity *int64    `json:"max_activity,omitempty" minimum:"0" doc:"Rule: at most this many rows changed a day, by the statistics of the tenant's database; who has not been counted for a day is left out"`

		Waves           []float64 `json:"waves,omitempty" minItems:"1" maxItems:"20" doc:"Percentages of the tenants that grow up to 100; a wave begins when the one before it is done and its errors are within the budget. By default 1, 10, 50, 100 where there is a rule, a soak or an error budget, else 100"`
		SoakSeconds     int64     `json:"soak_seconds,omitempty" minimum:"0" maximum:"604800" doc:"Rest between the end of a wave and the next"`
		Concurrency     int       `json:"concurrency,omitempty" minimum:"1" maximum:"1000" doc:"Batches at work at the same time; absent: no bound"`
		RowsPerSecond   int64     `json:"rows_per_second,omitempty" minimum:"1" maximum:"1000000000" doc:"Of all batches together, on average; absent: no bound"`
		Hours           string    `json:"hours,omitempty" maxLength:"100" doc:"22:00-06:00@Europe/Berlin: outside of these hours no tenant's move begins or goes on, but for one whose writes wait already; absent: all hours"`
		MaxErrors       *int64    `json:"max_errors,omitempty" minimum:"0" doc:"The run halts when the moves of more tenants than this have failed"`
		Hold            bool      `json:"hold,omitempty" doc:"Copy every tenant and keep it in step with blue, but let none cut over until /runs/{id}/cutover says so"`
		MaxErrorPercent *float64  `json:"max_error_percent,omitempty" minimum:"0" maximum:"100" doc:"The same as a share of the tenants in the waves begun; 5 by default where there are several waves and no budget is given"`
	}
}

func (in *planInput) plan(p auth.Principal) (plan migration.Plan, err error) {
	if err := operatorsOnly(p); err != nil {
		return plan, err
	}
	b := &in.Body
	plan = migration.Plan{Source: b.Source, BatchSize: b.BatchSize, MaxPause: time.Duration(b.MaxPauseMS) * time.Millisecond,
		Rules: planner.Rules{NewSince: b.NewSince, Plans: b.Plans, Percent: b.Percent, MaxBytes: b.MaxBytes, MaxActivity: b.MaxActivity},
		Waves: b.Waves, Soak: time.Duration(b.SoakSeconds) * time.Second, Concurrency: b.Concurrency, RowsPerSecond: b.RowsPerSecond,
		Budget: planner.Budget{Errors: b.MaxErrors, Percent: b.MaxErrorPercent}, Hold: b.Hold, Actor: p.Subject}
	if plan.Tenants, err = tenantIDs("tenants", b.Tenants); err != nil {
		return plan, err
	}
	if plan.Rules.Exclude, err = tenantIDs("exclude", b.Exclude); err != nil {
		return plan, err
	}
	if plan.Hours, err = planner.ParseHours(b.Hours); err != nil {
		return plan, fault.BadField("hours", "%v", err)
	}
	return plan, nil
}

func tenantIDs(field string, texts []string) (ids []tenant.ID, err error) {
	for i, s := range texts {
		id, err := tenant.ParseID(s)
		if err != nil {
			return nil, fault.BadField(fmt.Sprintf("%s[%d]", field, i), "must be a tenant's UUID, not %q", s)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

type preflightOutput struct{ Body migration.Preflight }

type started struct {
	ID        uuid.UUID           `json:"id" doc:"The run's"`
	Run       migration.Run       `json:"run"`
	Preflight migration.Preflight `json:"preflight"`
}

type startedOutput struct {
	Location string `header:"Location"`
	Body     started
}

type listInput struct {
	Before uuid.UUID `query:"before" format:"uuid" doc:"Runs older than this one"`
	Limit  int       `query:"limit" minimum:"1" maximum:"100" default:"20"`
}

type listOutput struct {
	Body struct {
		Runs []migration.Run `json:"runs"`
	}
}

// RunInput is exported because huma does not look into unexported embedded structs.
type RunInput struct {
	ID uuid.UUID `path:"id" format:"uuid" doc:"The run's"`
}

type cutoverInput struct {
	RunInput
	Body *struct {
		Tenants []string `json:"tenants,omitempty" minItems:"1" maxItems:"100000" doc:"Absent: every tenant that the run holds"`
		Limit   int      `json:"limit,omitempty" minimum:"1" doc:"At most so many of them: those that are in step first, the smallest first"`
	}
}

type cutoverOutput struct {
	Body struct {
		Tenants int `json:"tenants" doc:"How many were let go: each cuts over as soon as it can"`
	}
}

type statusOutput struct{ Body migration.Status }

type historyOutput struct{ Body migration.History }

type runOutput struct{ Body migration.Run }

type tenantInput struct {
	RunInput
	Tenant tenant.ID `path:"tenant" format:"uuid"`
}

type finaliseInput struct {
	RunInput
	Tenant tenant.ID `path:"tenant" format:"uuid"`
	Now    bool      `query:"now" doc:"Do not wait for the end of the observation time"`
}

type finalisedOutput struct{ Body migration.Finalisation }

type verifyInput struct {
	Tenant tenant.ID `path:"tenant" format:"uuid"`
	Cursor string    `query:"cursor" maxLength:"500" doc:"Of the answer before"`
	Limit  int       `query:"limit" minimum:"1" maximum:"1000" default:"100" doc:"Differences, at most"`
	Values bool      `query:"values" doc:"Tell the values of columns that differ"`
}

type repairInput struct {
	Tenant tenant.ID `path:"tenant" format:"uuid"`
	Cursor string    `query:"cursor" maxLength:"500" doc:"Of the answer before"`
}

type verifiedOutput struct{ Body migration.Verification }

type resumeInput struct {
	RunInput
	Body *struct {
		MaxErrors       *int64   `json:"max_errors,omitempty" minimum:"0" doc:"Another error budget, counted from now on; absent: as it was"`
		MaxErrorPercent *float64 `json:"max_error_percent,omitempty" minimum:"0" maximum:"100"`
	}
}

type eventsInput struct {
	RunInput
	Cursor string `query:"cursor" maxLength:"2048" doc:"next_cursor of the answer before"`
	Limit  int    `query:"limit" minimum:"1" maximum:"1000" default:"100"`
}

type eventsOutput struct {
	Body struct {
		Events []migration.Event `json:"events" doc:"Oldest first"`
		Next   string            `json:"next_cursor,omitempty" doc:"Absent: there are no more at the moment"`
	}
}

// eventPosition is the place in a run's audit trail that a cursor stands for.
type eventPosition struct {
	After int64 `json:"a"`
}

type sweepInput struct {
	Seconds int `query:"seconds" default:"0" minimum:"0" maximum:"240" doc:"Go on for about so long, with a sweep every five seconds; 0: one. Cloud Scheduler, which calls no more often than once a minute, asks for 55."`
}

type sweptOutput struct{ Body migration.Swept }

// changed runs one of the changes of a run's state.
func changed(ctx context.Context, p auth.Principal, in *RunInput, change func(context.Context, uuid.UUID, string) (migration.Run, error)) (*runOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	run, err := change(ctx, in.ID, p.Subject)
	return &runOutput{run}, err
}
