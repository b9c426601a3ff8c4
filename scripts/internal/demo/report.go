package demo

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/coditect/platform/scripts/internal/terminal"
)

// Report is what the demo found. The JSON keys are part of the command line's
// interface: scripts read them.
type Report struct {
	TenantsMoved       int     `json:"tenants_moved"`
	TenantsFailed      int     `json:"tenants_failed"`
	WritesFenced       int64   `json:"writes_fenced"` // of the old application: its only allowed failure
	RowsMoved          int64   `json:"rows_moved"`
	Seconds            float64 `json:"seconds"` // from the start of the first run to the end of the last, interruptions included
	RowsPerSecond      float64 `json:"rows_per_second"`
	Requests           int64   `json:"requests"`
	RequestsFailed     int64   `json:"requests_failed"` // what users would have seen as an error
	AcknowledgedWrites int64   `json:"acknowledged_writes"`
	WritesLost         int64   `json:"writes_lost"`
	WritesDuplicated   int64   `json:"writes_duplicated"`
	PauseMS            Pause   `json:"pause_ms"`
	// Verified: every tenant is green (which needs equal counts and hashes of every
	// table on both sides), and every acknowledged write was found as it was written.
	Verified bool `json:"verified"`

	// For people, and for the next start; not part of the report's file.
	details details
}

// Pause is how long a tenant's writes had to wait.
type Pause struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

// details say what went wrong.
type details struct {
	Different int           // rows or reads that nobody wrote
	Slowest   time.Duration // the longest that a caller waited for a write
	Sentences []string      // examples
}

// Clean reports whether nothing was lost, duplicated, different or failed.
func (r Report) Clean() bool {
	return r.Verified && r.TenantsFailed == 0 && r.RequestsFailed == 0 && r.WritesLost == 0 && r.WritesDuplicated == 0 && r.details.Different == 0
}

// maxSentences bounds what is printed of a disaster.
const maxSentences = 8

// Print prints the report for people.
func (r Report) Print(c *terminal.Console) {
	c.Say("")
	c.Say("  Moved            %d tenants, %d failed", r.TenantsMoved, r.TenantsFailed)
	c.Say("                   %d rows in %.1f s (%.0f rows/s, beside the traffic)", r.RowsMoved, r.Seconds, r.RowsPerSecond)
	c.Say("  Write pause      p50 %.0f ms, p99 %.0f ms, longest %.0f ms", r.PauseMS.P50, r.PauseMS.P99, r.PauseMS.Max)
	c.Say("  Traffic          %d requests, %d failed; the slowest write took its caller %d ms", r.Requests, r.RequestsFailed, r.details.Slowest.Milliseconds())
	c.Say("  Old application  %d writes refused by the fence, as they must be", r.WritesFenced)
	c.Say("  Every write      %d acknowledged; %d lost, %d duplicated, %d different", r.AcknowledgedWrites, r.WritesLost, r.WritesDuplicated, r.details.Different)
	if r.Verified {
		c.Say("  Verified         yes: counts and hashes of every table, and every acknowledged write")
	} else {
		c.Say("  Verified         NO")
	}
	for i, s := range r.details.Sentences {
		if i == maxSentences {
			c.Say("    … and %d more", len(r.details.Sentences)-i)
			break
		}
		c.Say("    %.200s", s)
	}
	c.Say("")
}

// WriteFile writes the report as JSON.
func (r Report) WriteFile(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}
