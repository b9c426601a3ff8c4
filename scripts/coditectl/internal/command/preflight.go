package command

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/preflight"
)

func (p *program) preflight() *cobra.Command {
	var o order
	c := &cobra.Command{
		Use: "preflight", Short: "Look for everything that would make moves fail; changes nothing", Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.read(c, p.Now()); err != nil {
				return err
			}
			api, err := p.client()
			if err != nil {
				return err
			}
			body, err := api.Do(c.Context(), http.MethodPost, "/migrations/preflight", nil, o)
			if err != nil {
				return err
			}
			var found migration.Preflight
			if err := json.Unmarshal(body, &found); err != nil {
				return err
			}
			if err := p.print(body, func(w io.Writer) { showPreflight(w, found) }); err != nil {
				return err
			}
			return verdict(found)
		},
	}
	o.flags(c)
	return c
}

func showPreflight(w io.Writer, found migration.Preflight) {
	if plan := found.Plan; plan != nil && plan.LeftOut > 0 {
		fmt.Fprintf(w, "Source %s: the rules leave out %s (%s)\n", found.Source, count(plan.LeftOut, "tenant"), reasons(plan.Reasons))
	}
	if found.Tenants == 0 {
		fmt.Fprintf(w, "Source %s has no tenant in blue that could be moved\n", found.Source)
		return
	}
	fmt.Fprintf(w, "Source %s: looked at %s; %d can be moved (%s)\n", found.Source, count(found.Tenants, "tenant"), found.Tenants-found.LeftOut, size(found.Bytes))
	findings(w, found.Findings)
	if len(found.Findings) == 0 {
		fmt.Fprintln(w, "Nothing stands in the way")
	}
}

// findings prints what a preflight has found: what is wrong, and below it what to do.
func findings(w io.Writer, all []preflight.Finding) {
	for _, f := range all {
		where := ""
		if f.Schema != "" {
			where = f.Schema + ": "
		}
		fmt.Fprintf(w, "  %-8s %s%s [%s]\n", f.Severity, where, f.Message, f.Code)
		if f.Action != "" {
			fmt.Fprintf(w, "           do: %s\n", f.Action)
		}
	}
}

// verdict is the exit code: whatever is not a warning stops somebody.
func verdict(found migration.Preflight) error {
	blockers, unknown := 0, 0
	for _, f := range found.Findings {
		switch f.Severity {
		case preflight.Warning:
		case preflight.Unknown:
			unknown++
		default:
			blockers++
		}
	}
	if blockers+unknown == 0 {
		return nil
	}
	var what []string
	if blockers > 0 {
		what = append(what, count(blockers, "blocker"))
	}
	if unknown > 0 {
		what = append(what, count(unknown, "thing")+" that could not be looked at")
	}
	return &outcome{exitRefused, fmt.Sprintf("%s: %d of %s cannot be moved", andList(what), found.LeftOut, count(found.Tenants, "tenant"))}
}
