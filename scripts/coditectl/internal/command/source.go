package command

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/coditect/platform/shared/migration"
	"github.com/coditect/platform/shared/migration/source"
)

func (p *program) source() *cobra.Command {
	c := &cobra.Command{Use: "source", Short: "Make a foreign schema-per-tenant database a source of tenants", Args: cobra.ArbitraryArgs, RunE: group}
	c.AddCommand(
		p.sourceCommand("review FILE", "Print the tables that would be made on green; changes nothing", migration.Registration.Review, showReview),
		p.sourceCommand("apply FILE", "Make the tables, install gate and fence in the source, and enter its tenants", migration.Registration.Apply, showRegistered))
	return c
}

const sourceHelp = `

FILE describes the foreign database: its tenant table, the columns with schema and
name, what to leave out. The field database names the variable of the environment
that holds the connection string, of a role that may make a schema there and give
rights on its tables.`

// registered is the result of both commands.
type registered struct {
	Source string `json:"source"`
	migration.Registered
	Notes   []note   `json:"notes"`
	Remarks []string `json:"remarks"`
}

// note is convert.Note as a program reads it.
type note struct {
	Code    string `json:"code"`
	Refused bool   `json:"refused"`
	Table   string `json:"table,omitempty"`
	Message string `json:"message"`
	Action  string `json:"action,omitempty"`
}

type registrar func(migration.Registration, context.Context) (migration.Registered, error)

func (p *program) sourceCommand(use, short string, do registrar, show func(w io.Writer, r registered)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: short + "." + sourceHelp, Args: args("FILE, the description of the source"),
		RunE: func(c *cobra.Command, args []string) error {
			s, err := source.Load(args[0])
			if err != nil {
				return err
			}
			foreign, err := s.DSN(p.Getenv)
			if err != nil {
				return err
			}
			green, err := p.dsn(greenVariable)
			if err != nil {
				return err
			}
			p.Console.Say("Reading source %s …", s.Name)
			done, err := do(migration.Registration{Source: s, Blue: foreign, Green: green}, c.Context())
			if err != nil {
				return err
			}
			r := registered{Source: s.Name, Registered: done, Notes: []note{}, Remarks: orNone(done.Remarks)}
			for _, n := range done.Notes {
				r.Notes = append(r.Notes, note(n))
			}
			if err := p.print(r, func(w io.Writer) { show(w, r) }); err != nil {
				return err
			}
			return refusedNotes(r)
		},
	}
}

// showReview prints SQL that could be run as it is: what is to be said are comments.
func showReview(w io.Writer, r registered) {
	fmt.Fprintf(w, "-- Source %s: %s, structure of schema %s\n", r.Source, count(r.Tenants, "tenant"), r.Template)
	for _, n := range r.Notes {
		fmt.Fprintf(w, "-- %s\n", sentence(n))
	}
	fmt.Fprintf(w, "\n%s", r.SQL)
}

func showRegistered(w io.Writer, r registered) {
	fmt.Fprintf(w, "Source %s: %s, structure of schema %s, %s run on green\n", r.Source, count(r.Tenants, "tenant"), r.Template, count(r.Applied, "statement"))
	for _, n := range r.Notes {
		fmt.Fprintf(w, "  note: %s\n", sentence(n))
	}
	for _, s := range r.Remarks {
		fmt.Fprintf(w, "  note: %s\n", s)
	}
	fmt.Fprintf(w, "Look before moving them: coditectl preflight --source %s\n", r.Source)
}

func sentence(n note) string {
	word := ""
	if n.Refused {
		word = "REFUSED: "
	}
	if n.Action == "" {
		return word + n.Message
	}
	return word + n.Message + "; " + n.Action
}

// refusedNotes is the exit code of a review that found what cannot be converted.
func refusedNotes(r registered) error {
	refused := 0
	for _, n := range r.Notes {
		if n.Refused {
			refused++
		}
	}
	if refused == 0 {
		return nil
	}
	return &outcome{exitRefused, fmt.Sprintf("source %s cannot be converted: %s refused", r.Source, count(refused, "thing"))}
}
