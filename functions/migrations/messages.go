package migrations

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/fault"
	"github.com/coditect/platform/shared/migration"
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
		Tenants    []string `json:"tenants,omitempty" minItems:"1" maxItems:"100000" doc:"Absent: all tenants of the source that live in blue"`
		BatchSize  int      `json:"batch_size,omitempty" minimum:"1" maximum:"1000" doc:"Tenants in one batch; 50 by default"`
		MaxPauseMS int64    `json:"max_pause_ms,omitempty" minimum:"1" maximum:"60000" doc:"A tenant whose writes would wait for longer, in milliseconds, is refused by name; 30000 by default"`
	}
}

func (in *planInput) plan(p auth.Principal) (migration.Plan, error) {
	plan := migration.Plan{Source: in.Body.Source, BatchSize: in.Body.BatchSize, MaxPause: time.Duration(in.Body.MaxPauseMS) * time.Millisecond, Actor: p.Subject}
	if err := operatorsOnly(p); err != nil {
		return plan, err
	}
	for i, s := range in.Body.Tenants {
		id, err := tenant.ParseID(s)
		if err != nil {
			return plan, fault.BadField(fmt.Sprintf("tenants[%d]", i), "must be a tenant's UUID, not %q", s)
		}
		plan.Tenants = append(plan.Tenants, id)
	}
	return plan, nil
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

type statusOutput struct{ Body migration.Status }

type runOutput struct{ Body migration.Run }

type undoInput struct {
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

type sweptOutput struct{ Body migration.Swept }

// changed runs one of the changes of a run's state.
func changed(ctx context.Context, p auth.Principal, in *RunInput, change func(context.Context, uuid.UUID, string) (migration.Run, error)) (*runOutput, error) {
	if err := operatorsOnly(p); err != nil {
		return nil, err
	}
	run, err := change(ctx, in.ID, p.Subject)
	return &runOutput{run}, err
}
