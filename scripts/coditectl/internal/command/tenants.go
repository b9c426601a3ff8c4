package command

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/coditect/platform/shared/organisation"
)

func (p *program) tenants() *cobra.Command {
	c := &cobra.Command{Use: "tenants", Short: "Look at tenants", Args: cobra.ArbitraryArgs, RunE: group}
	c.AddCommand(p.tenantsList())
	return c
}

func (p *program) tenantsList() *cobra.Command {
	var home string
	c := &cobra.Command{
		Use: "list", Short: "List tenants and where they live", Args: args(),
		RunE: func(c *cobra.Command, _ []string) error {
			query := url.Values{"limit": {"100"}}
			switch home {
			case "":
			case "blue", "green":
				query.Set("home", home)
			default:
				return usage("--home must be blue or green; it is %q", home)
			}
			api, err := p.client()
			if err != nil {
				return err
			}
			all := []json.RawMessage{}
			for {
				body, err := api.Do(c.Context(), http.MethodGet, "/tenants/tenants", query, nil)
				if err != nil {
					return err
				}
				var page struct {
					Items []json.RawMessage `json:"items"`
					Next  string            `json:"next_cursor"`
				}
				if err := json.Unmarshal(body, &page); err != nil {
					return err
				}
				all = append(all, page.Items...)
				if page.Next == "" {
					break
				}
				query.Set("cursor", page.Next)
			}
			rows, err := tenantRows(all)
			if err != nil {
				return err
			}
			return p.print(map[string]any{"items": all}, func(w io.Writer) {
				table(w, "There is no such tenant.", []string{"TENANT", "HOME", "STATUS", "SOURCE", "NAME"}, rows)
			})
		},
	}
	c.Flags().StringVar(&home, "home", "", "only those that live in blue, or in green")
	return c
}

func tenantRows(items []json.RawMessage) ([][]string, error) {
	var rows [][]string
	for _, item := range items {
		var o organisation.Organisation
		if err := json.Unmarshal(item, &o); err != nil {
			return nil, err
		}
		rows = append(rows, []string{o.ID.String(), string(o.Home), string(o.Status), o.Source, o.Name})
	}
	return rows, nil
}
