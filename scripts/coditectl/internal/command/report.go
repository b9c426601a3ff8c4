package command

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"github.com/coditect/platform/scripts/coditectl/internal/report"
	"github.com/coditect/platform/shared/migration"
)

func (p *program) migrateReport() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "report RUN", Short: "Write a run as an HTML file with charts", Args: args("RUN, the run's ID"),
		Long: "Write a run as one HTML file: throughput and lag over time, write pauses, tenants by state, errors and what to do\nabout them, each chart with its figures as a table. The file needs nothing from anywhere.",
		RunE: func(c *cobra.Command, args []string) error {
			if file == "" {
				return usage("--html must name the file to write")
			}
			api, id, err := p.ofRun(args[0])
			if err != nil {
				return err
			}
			_, s, err := status(c.Context(), api, id)
			if err != nil {
				return err
			}
			body, err := api.Do(c.Context(), http.MethodGet, "/migrations/runs/"+id.String()+"/history", nil, nil)
			if err != nil {
				return err
			}
			var h migration.History
			if err := json.Unmarshal(body, &h); err != nil {
				return err
			}
			var page bytes.Buffer
			if err := report.Write(&page, report.Run{Status: s, History: h, Made: p.Now(), Action: func(f migration.Failure) string { return nextAction(s, f) }}); err != nil {
				return err
			}
			if err := os.WriteFile(file, page.Bytes(), 0o644); err != nil {
				return usage("--html must name a file that can be written: %v", err)
			}
			return p.print(map[string]any{"file": file, "bytes": page.Len()}, func(w io.Writer) { fmt.Fprintf(w, "Report of run %s: %s\n", id, file) })
		},
	}
	c.Flags().StringVar(&file, "html", "", "the file to write (required)")
	return c
}
