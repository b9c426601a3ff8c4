package command

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/tenant"
)

func (p *program) keys() *cobra.Command {
	c := &cobra.Command{Use: "keys", Short: "Make, list and revoke API keys", Args: cobra.ArbitraryArgs, RunE: group}
	c.AddCommand(p.keysCreate(), p.keysList(), p.keysRevoke())
	return c
}

// created is the result of `keys create`.
type created struct {
	Secret string `json:"key"` // shown this once
	auth.Key
}

func (p *program) keysCreate() *cobra.Command {
	var (
		operator              bool
		tenantID, name, until string
		scopes                []string
	)
	c := &cobra.Command{
		Use: "create", Short: "Make an API key and print it, this once", Args: args(),
		Long: "Make an API key and print it, this once: only its hash is stored.\n\nThe key alone is written to standard output: " + keyVariable + "=$(coditectl keys create --operator --scope migrations:read).\n\nScopes: " + strings.Join(auth.AllScopes(), ", ") + ".",
		RunE: func(c *cobra.Command, _ []string) error {
			n := auth.NewKey{Name: name, Scopes: scopes}
			var err error
			switch {
			case operator == (tenantID != ""):
				return usage("either --operator or --tenant must be given: a key is an operator's or one tenant's")
			case operator:
				n.Kind = auth.Operator
			default:
				n.Kind = auth.TenantKey
				if n.Tenant, err = tenant.ParseID(tenantID); err != nil {
					return usage("--tenant must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is %q", tenantID)
				}
			}
			if n.Expires, err = parseExpiry(until, p.Now()); err != nil {
				return err
			}
			db, closer, err := p.control(c.Context())
			if err != nil {
				return err
			}
			defer closer()
			secret, key, err := auth.CreateKey(c.Context(), db, n)
			if err != nil {
				return err
			}
			p.Console.Say("Key %s (%s), expires %s. It is shown this once:", key.ID, strings.Join(key.Scopes, " "), day(key.Expires))
			return p.print(created{secret, key}, func(w io.Writer) { fmt.Fprintln(w, secret) })
		},
	}
	f := c.Flags()
	f.BoolVar(&operator, "operator", false, "a key for operators, who belong to no tenant")
	f.StringVar(&tenantID, "tenant", "", "a key for the tenant with this ID")
	f.StringSliceVar(&scopes, "scope", nil, "what the key may do; may be given more than once (required)")
	f.StringVar(&name, "name", "coditectl", "what the key is for, for people")
	f.StringVar(&until, "expires", "", "when it ends: a day (2027-01-31), a time (2027-01-31T12:00:00Z), or from now (90d, 12h); never when absent")
	return c
}

var days = regexp.MustCompile(`^([1-9][0-9]{0,4})d$`)

// parseExpiry reads a day, a time, or a distance from now. "" is never, the zero time.
func parseExpiry(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if m := days.FindStringSubmatch(s); m != nil {
		n, _ := strconv.Atoi(m[1]) // at most five digits
		return now.AddDate(0, 0, n), nil
	}
	if d, err := time.ParseDuration(s); err == nil && d > 0 {
		return now.Add(d), nil
	}
	if t, ok := dayOrTime(s); ok {
		return t, nil
	}
	return time.Time{}, usage("--expires must be a day (2027-01-31), a time (2027-01-31T12:00:00Z) or a time from now (90d, 12h); it is %q", s)
}

func dayOrTime(s string) (time.Time, bool) {
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

func (p *program) keysList() *cobra.Command {
	var tenantID string
	c := &cobra.Command{
		Use: "list", Short: "List keys, oldest first: everything but their secrets", Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			var of tenant.ID
			var err error
			if tenantID != "" {
				if of, err = tenant.ParseID(tenantID); err != nil {
					return usage("--tenant must be a tenant's ID such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69; it is %q", tenantID)
				}
			}
			db, closer, err := p.control(c.Context())
			if err != nil {
				return err
			}
			defer closer()
			all := []auth.Key{}
			for after := uuid.Nil; ; {
				const page = 1000
				keys, err := auth.ListKeys(c.Context(), db, of, after, page)
				if err != nil {
					return err
				}
				all = append(all, keys...)
				if len(keys) < page {
					break
				}
				after = keys[len(keys)-1].ID
			}
			return p.print(map[string]any{"items": all}, func(w io.Writer) { showKeys(w, all, p.Now()) })
		},
	}
	c.Flags().StringVar(&tenantID, "tenant", "", "only those of the tenant with this ID")
	return c
}

func showKeys(w io.Writer, keys []auth.Key, now time.Time) {
	var rows [][]string
	for _, k := range keys {
		whose, state := string(k.Kind), "expires "+day(k.Expires)
		if k.Tenant != nil {
			whose = "tenant " + k.Tenant.String()
		}
		switch {
		case k.Revoked != nil:
			state = "revoked " + day(k.Revoked)
		case k.Expires != nil && !k.Expires.After(now):
			state = "expired " + day(k.Expires)
		}
		rows = append(rows, []string{k.ID.String(), whose, state, "used " + day(k.LastUsed), strings.Join(k.Scopes, " "), k.Name})
	}
	table(w, "There is no key.", []string{"KEY", "WHOSE", "STATE", "LAST USED", "SCOPES", "NAME"}, rows)
}

func (p *program) keysRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke KEY-ID", Short: "Make a key worthless for good", Args: args("KEY-ID, as `keys list` shows it"),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := uuid.Parse(args[0])
			if err != nil || len(args[0]) != 36 {
				return usage("KEY-ID must be a key's ID as `keys list` shows it, such as 0190a5c4-7c1e-7e3a-9f6b-2d1f0c4b5a69")
			}
			db, closer, err := p.control(c.Context())
			if err != nil {
				return err
			}
			defer closer()
			key, err := auth.RevokeKey(c.Context(), db, id)
			if err != nil {
				return err
			}
			return p.print(key, func(w io.Writer) {
				fmt.Fprintf(w, "Key %s is revoked; functions that have seen it follow within %v\n", key.ID, auth.TTL)
			})
		},
	}
}
