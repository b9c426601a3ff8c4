package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coditect/platform/scripts/coditectl/internal/client"
	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/tenant"
)

// verified is a whole comparison, of as many calls as it took.
type verified struct {
	Tenant      tenant.ID              `json:"tenant"`
	Home        tenant.Home            `json:"home"`
	State       migration.State        `json:"state,omitempty"`
	Expect      migration.Expectation  `json:"expect"`
	Equal       bool                   `json:"equal"`
	Complete    bool                   `json:"complete"` // false: there may be more differences than the limit
	BlueRows    int64                  `json:"blue_rows"`
	GreenRows   int64                  `json:"green_rows"`
	Pending     int64                  `json:"pending"`
	Differences []migration.Difference `json:"differences"`
}

func (p *program) verify() *cobra.Command {
	var limit int
	var values bool
	c := &cobra.Command{
		Use: "verify TENANT", Short: "Compare what blue and green have of a tenant, before, during and after its move", Args: args("TENANT, the tenant's ID"),
		Long: "Compare what blue and green have of a tenant, row by row, wherever its move stands. It changes nothing.\n\n" +
			"Each difference is told by table, key and columns. The exit code is 0 when there is none, and 6 when there are.",
		RunE: func(c *cobra.Command, args []string) error {
			who, err := tenantArg(args[0])
			if err != nil {
				return err
			}
			if limit < 1 || limit > migration.MaxDifferences {
				return usage("--limit must be between 1 and %d; it is %d", migration.MaxDifferences, limit)
			}
			api, err := p.client()
			if err != nil {
				return err
			}
			v, err := p.compare(c.Context(), api, who, limit, values)
			if err != nil {
				return err
			}
			if err := p.print(v, func(w io.Writer) { showVerified(w, v) }); err != nil {
				return err
			}
			if !v.Equal {
				return &outcome{exitDifferent, "blue and green differ in " + atLeast(v.Complete, len(v.Differences))}
			}
			return nil
		},
	}
	c.Flags().IntVar(&limit, "limit", migration.DefaultDifferences, fmt.Sprintf("stop after so many differences, 1 to %d", migration.MaxDifferences))
	c.Flags().BoolVar(&values, "show-values", false, "show the values of columns that differ: they are the tenant's")
	return c
}

func atLeast(complete bool, rows int) string {
	if complete {
		return count(rows, "row")
	}
	return "at least " + count(rows, "row")
}

// compare calls until all is compared, or there are enough differences.
func (p *program) compare(ctx context.Context, api *client.Client, who tenant.ID, limit int, values bool) (verified, error) {
	out := verified{Tenant: who, Differences: []migration.Difference{}}
	err := p.calls(ctx, api, "/migrations/tenants/"+who.String()+"/verify", func(query url.Values) {
		query.Set("limit", strconv.Itoa(limit-len(out.Differences)))
		query.Set("values", strconv.FormatBool(values))
	}, func(v migration.Verification) bool {
		out.Home, out.State, out.Expect = v.Home, v.State, v.Expect
		out.BlueRows, out.GreenRows, out.Pending = out.BlueRows+v.BlueRows, out.GreenRows+v.GreenRows, out.Pending+v.Pending
		out.Differences = append(out.Differences, v.Differences...)
		return len(out.Differences) < limit
	})
	out.Complete = len(out.Differences) < limit
	out.Equal = len(out.Differences) == 0
	return out, err
}

// calls asks again and again from where the answer before has stopped, with a progress bar.
func (p *program) calls(ctx context.Context, api *client.Client, path string, ask func(query url.Values), got func(v migration.Verification) (more bool)) error {
	defer p.Console.Done()
	for cursor := ""; ; {
		query := url.Values{}
		if cursor != "" {
			query.Set("cursor", cursor)
		}
		ask(query)
		body, err := api.Do(ctx, http.MethodPost, path, query, nil)
		if err != nil {
			return err
		}
		var v migration.Verification
		if err := json.Unmarshal(body, &v); err != nil {
			return err
		}
		more := got(v)
		p.Console.Progress(int(v.Progress*100), 100, v.Table)
		if cursor = v.Cursor; cursor == "" || !more {
			return nil
		}
	}
}

// meanings say what was compared.
var meanings = map[migration.Expectation]string{
	migration.GreenEmpty: "it lives in blue and does not move: green is to have none of its rows",
	migration.Moving:     "it is moving: rows that are on their way are counted only",
	migration.InStep:     "one side follows the other: rows were looked at again before they were called different",
	migration.AsMoved:    "it lives in green, and blue is as the move has left it: what differs was written in green since",
}

func showVerified(w io.Writer, v verified) {
	fmt.Fprintf(w, "Tenant %s: %s\n", v.Tenant, meanings[v.Expect])
	fmt.Fprintf(w, "  rows         %d in blue, %d in green, %d on their way\n", v.BlueRows, v.GreenRows, v.Pending)
	if v.Equal {
		fmt.Fprintln(w, "  differences  none")
		return
	}
	fmt.Fprintf(w, "  differences  %s\n", atLeast(v.Complete, len(v.Differences)))
	for _, d := range v.Differences {
		fmt.Fprintf(w, "  %s\n", differenceText(d))
	}
}

func differenceText(d migration.Difference) string {
	var key []string
	for _, column := range slices.Sorted(maps.Keys(d.Key)) {
		key = append(key, column+"="+d.Key[column])
	}
	s := "table " + d.Table + ", " + strings.Join(key, ", ") + ": "
	if d.Where != "both" {
		return s + "only in " + d.Where
	}
	if len(d.Columns) == 0 {
		return s + "differs, and was changed again"
	}
	for i, c := range d.Columns {
		if i > 0 {
			s += ", "
		}
		s += c
		if i < len(d.Blue) {
			s += " (blue " + valueText(d.Blue[i]) + ", green " + valueText(d.Green[i]) + ")"
		}
	}
	return s
}

func valueText(v *string) string {
	if v == nil {
		return "NULL"
	}
	return strconv.Quote(*v)
}

// repaired is a whole repair, of as many calls as it took.
type repaired struct {
	Tenant   tenant.ID              `json:"tenant"`
	Repaired []migration.Difference `json:"repaired"`
	Failed   []migration.Difference `json:"failed"` // the other side does not take them
}

func (p *program) repair() *cobra.Command {
	var confirm bool
	c := &cobra.Command{
		Use: "repair TENANT", Short: "Make the rows that differ those of the tenant's home", Args: args("TENANT, the tenant's ID"),
		Long: "Make the rows that differ those of the home that the tenant lives in, and write down how many of which table.\n" +
			"Without --confirm the rows are shown, and nothing is changed.\n\n" +
			"A tenant that lives in blue and does not move has no rows in green: those that are there are deleted. Of one that\n" +
			"lives in green and can go back, blue's rows become those of green, while the tenant is used; a row that blue does\n" +
			"not take is named, and the others are repaired (exit code 6). While a tenant moves, the move itself repairs; and what\n" +
			"blue has kept of one that cannot go back stays as it is.",
		RunE: func(c *cobra.Command, args []string) error {
			who, err := tenantArg(args[0])
			if err != nil {
				return err
			}
			api, err := p.client()
			if err != nil {
				return err
			}
			if !confirm {
				return p.wouldRepair(c.Context(), api, who)
			}
			out := repaired{Tenant: who, Repaired: []migration.Difference{}, Failed: []migration.Difference{}}
			err = p.calls(c.Context(), api, "/migrations/tenants/"+who.String()+"/repair", func(url.Values) {}, func(v migration.Verification) bool {
				out.Repaired = append(out.Repaired, v.Differences...)
				for _, d := range v.Failed { // the same row may be in the way of several calls
					if !slices.ContainsFunc(out.Failed, func(f migration.Difference) bool { return f.Table == d.Table && maps.Equal(f.Key, d.Key) }) {
						out.Failed = append(out.Failed, d)
					}
				}
				return true
			})
			if err != nil {
				return err
			}
			if err := p.print(out, func(w io.Writer) { showRepaired(w, out) }); err != nil {
				return err
			}
			if n := len(out.Failed); n > 0 {
				return &outcome{exitDifferent, "the tenant's other side does not take " + count(n, "row")}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&confirm, "confirm", false, "yes, change them")
	return c
}

func showRepaired(w io.Writer, r repaired) {
	for _, d := range r.Repaired {
		fmt.Fprintln(w, differenceText(d))
	}
	for _, d := range r.Failed {
		fmt.Fprintf(w, "not repaired: %s: %s\n", differenceText(d), d.Error)
	}
	fmt.Fprintf(w, "Repaired: %s\n", count(len(r.Repaired), "row"))
}

// wouldRepair shows what a repair would change.
func (p *program) wouldRepair(ctx context.Context, api *client.Client, who tenant.ID) error {
	v, err := p.compare(ctx, api, who, migration.DefaultDifferences, false)
	if err != nil {
		return err
	}
	var what string
	switch {
	case v.Expect == migration.GreenEmpty:
		what = "would be deleted from green"
	case v.Expect == migration.InStep && v.State == migration.Green:
		what = "would become in blue what green has"
	default:
		return &outcome{exitFailed, "there is nothing to repair: " + meanings[v.Expect]}
	}
	if err := p.print(v, func(w io.Writer) { showVerified(w, v) }); err != nil || v.Equal {
		return err
	}
	return &outcome{exitDifferent, atLeast(v.Complete, len(v.Differences)) + " " + what + "; nothing was changed: give --confirm"}
}
