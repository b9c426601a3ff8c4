package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/coditect/platform/scripts/coditectl/internal/client"
	"github.com/coditect/platform/shared/migration"
)

const (
	watchEvery = 500 * time.Millisecond
	// outage is how long a function may be away, for a new version of it or a crash.
	outage = 2 * time.Minute
)

func (p *program) migrateWatch() *cobra.Command {
	return &cobra.Command{
		Use: "watch RUN", Short: "Watch a run until it ends", Args: args("RUN, the run's ID"),
		Long: "Watch a run until it ends: on a terminal as a dashboard, elsewhere as a line now and then, with --json as one JSON object on each\n" +
			"line whenever something has changed. The exit code is 4 when a tenant was not moved, or when the run has halted by itself and\n" +
			"nobody sits at a dashboard.\n\nInterrupting the watching does not interrupt the run.",
		RunE: func(c *cobra.Command, args []string) error {
			api, id, err := p.ofRun(args[0])
			if err != nil {
				return err
			}
			return p.watch(c.Context(), api, id, 0)
		},
	}
}

// watch shows a run until it ends. LeftOut is how many tenants were refused before it began.
func (p *program) watch(ctx context.Context, api *client.Client, id uuid.UUID, leftOut int) error {
	defer p.Console.Done()
	var (
		body json.RawMessage
		s    migration.Status
		err  error
	)
	switch {
	case p.json:
		_, s, err = p.follow(ctx, api, id, p.lines(), true)
	case p.Console.File() != nil:
		body, s, err = p.dashboard(ctx, api, id)
	default:
		body, s, err = p.follow(ctx, api, id, func(_ json.RawMessage, s migration.Status, _ string) error {
			p.Console.Progress(int(settled(s)), int(s.Tenants), remark(s))
			return nil
		}, true)
	}
	if err != nil {
		return err
	}
	p.Console.Done()
	if !p.json {
		if err := p.print(body, func(w io.Writer) { showStatus(w, s) }); err != nil {
			return err
		}
	}
	return ended(s, leftOut)
}

// follow asks for a run's status until it ends, and shows each answer, or for as long as the function
// is away the last one and why. Where nobody can do anything about it, a run that has
// halted has ended.
func (p *program) follow(ctx context.Context, api *client.Client, id uuid.UUID, show func(body json.RawMessage, s migration.Status, away string) error, haltEnds bool) (json.RawMessage, migration.Status, error) {
	var (
		last json.RawMessage
		s    migration.Status
	)
	for away := time.Duration(0); ; {
		body, now, err := status(ctx, api, id)
		switch {
		case err != nil && isOutage(err) && away < outage:
			away += watchEvery
			if last != nil {
				if err := show(last, s, err.Error()); err != nil {
					return nil, s, err
				}
			}
		case err != nil:
			return nil, s, err
		default:
			away, last, s = 0, body, now
			if err := show(body, s, ""); err != nil {
				return nil, s, err
			}
			if over(s) || haltEnds && s.State == migration.Paused && s.Halted != nil {
				return body, s, nil
			}
		}
		if err := p.Wait(ctx, watchEvery); err != nil {
			return nil, s, err
		}
	}
}

func over(s migration.Status) bool {
	return s.State == migration.Done || s.State == migration.Cancelled
}

// moved counts the tenants that live in green.
func moved(s migration.Status) int64 {
	return s.Counts[migration.Green] + s.Counts[migration.Finalised]
}

// settled counts the tenants that are where they stay.
func settled(s migration.Status) int64 { return moved(s) + s.Counts[migration.Blue] }

// lines writes a status as a line of JSON when something but the time has changed.
func (p *program) lines() func(json.RawMessage, migration.Status, string) error {
	var before []byte
	return func(body json.RawMessage, s migration.Status, away string) error {
		if away != "" {
			return nil
		}
		s.Seconds, s.ETA, s.Rate, s.Lanes, s.Streams = 0, nil, migration.Rate{}, nil, nil
		now, err := json.Marshal(s)
		if err != nil || bytes.Equal(now, before) {
			return err
		}
		before = now
		var line bytes.Buffer
		if err := json.Compact(&line, body); err != nil {
			return err
		}
		_, err = fmt.Fprintln(p.Out, line.String())
		return err
	}
}

// ended is the exit code of a run.
func ended(s migration.Status, leftOut int) error {
	if !over(s) {
		why := ";"
		if s.Halted != nil {
			why = ", " + *s.Halted + ";"
		}
		return &outcome{exitNotAll, fmt.Sprintf("the run has halted%s `coditectl migrate resume %s` goes on", why, s.ID)}
	}
	if missing := s.Tenants - moved(s) + int64(leftOut); missing > 0 {
		return &outcome{exitNotAll, fmt.Sprintf("not moved: %d of %s", missing, count(s.Tenants+int64(leftOut), "tenant"))}
	}
	return nil
}

func isOutage(err error) bool {
	var nobody *client.UnreachableError
	var problem *client.Problem
	return errors.As(err, &nobody) || errors.As(err, &problem) && problem.Unavailable()
}

func remark(s migration.Status) string {
	out := fmt.Sprintf("%s, %d green, %d moving, %s", s.State, moved(s), s.Counts[migration.Fenced], count(s.RowsMoved, "row"))
	if s.LastWave > 1 {
		out += fmt.Sprintf(", wave %d of %d", s.Wave, s.LastWave)
	}
	if s.ETA != nil {
		out += ", " + lasting(s.ETA.Seconds) + " left"
	}
	if n := len(s.Failed); n > 0 {
		out += fmt.Sprintf(", %d in trouble", n)
	}
	return out
}

func status(ctx context.Context, api *client.Client, id uuid.UUID) (json.RawMessage, migration.Status, error) {
	var s migration.Status
	body, err := api.Do(ctx, http.MethodGet, "/migrations/runs/"+id.String(), nil, nil)
	if err != nil {
		return nil, s, err
	}
	return body, s, json.Unmarshal(body, &s)
}

func showStatus(w io.Writer, s migration.Status) {
	fmt.Fprintf(w, "Run %s of source %s is %s\n", s.ID, s.Source, s.State)
	fmt.Fprintf(w, "  tenants      %d: %d green, %d in blue, %d moving, %d waiting\n", s.Tenants,
		moved(s), s.Counts[migration.Blue], s.Counts[migration.Fenced], s.Counts[migration.Planned])
	fmt.Fprintf(w, "  rows         %d in %.1f s\n", s.RowsMoved, s.Seconds)
	fmt.Fprintf(w, "  write pause  half of the tenants at most %.0f ms, 99 %% at most %.0f ms, longest %.0f ms\n", s.Pause.P50, s.Pause.P99, s.Pause.Max)
	if s.ETA != nil {
		fmt.Fprintf(w, "  ends         in %s, at %s (%s)\n", lasting(s.ETA.Seconds), day(&s.ETA.At), s.ETA.Basis)
	}
	if s.WaitsUntil != nil {
		fmt.Fprintf(w, "  hours        %s; waits until %s\n", s.Hours, day(s.WaitsUntil))
	}
	if s.Halted != nil {
		fmt.Fprintf(w, "  halted       %s\n", *s.Halted)
	}
	showWaves(w, s)
	for _, f := range s.Failed {
		where := "is " + string(f.State)
		if f.State == migration.Blue {
			where = "stays in blue"
		}
		fmt.Fprintf(w, "  %s (%s) %s: %s\n", f.Schema, f.Tenant, where, f.Error)
	}
}

// showWaves prints the waves of a run that has several.
func showWaves(w io.Writer, s migration.Status) {
	if len(s.Waves) < 2 {
		return
	}
	var rows [][]string
	for _, v := range s.Waves {
		state := "waits, planned for " + dayOr(v.BeginsAt, "later")
		switch {
		case v.DoneAt != nil:
			state = "done " + day(v.DoneAt)
		case v.OpenedAt != nil:
			state = "open since " + day(v.OpenedAt)
		case v.Number == s.Wave+1 && s.NextWaveAt != nil:
			state = "opens " + day(s.NextWaveAt)
		}
		rows = append(rows, []string{fmt.Sprintf("  wave %d", v.Number), fmt.Sprintf("%g %%", v.Percent), count(v.Tenants, "tenant"),
			fmt.Sprintf("%d green", v.Green), fmt.Sprintf("%d in blue", v.Blue), state})
	}
	columns(w, rows)
}
