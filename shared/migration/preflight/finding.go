// Package preflight looks for everything that would make a move fail or change
// what a tenant's data means, before anything is changed. All checks are set-based:
// a thousand schemas are a handful of queries.
package preflight

// Severity says how much a finding weighs.
type Severity string

// The severities. Unknown is never "fine": what could not be checked stops a run
// until an operator has looked.
const (
	Blocker Severity = "blocker"
	Warning Severity = "warning"
	Unknown Severity = "unknown"
)

// Finding is one thing that is wrong, for one tenant or (Schema "") for the whole source.
type Finding struct {
	Schema   string   `json:"schema,omitempty"`
	Tenant   string   `json:"tenant,omitempty"` // the tenant's name
	Code     string   `json:"code"`             // stable, snake_case
	Severity Severity `json:"severity"`
	Table    string   `json:"table,omitempty"`
	Message  string   `json:"message"` // what is wrong
	Action   string   `json:"action"`  // what to do
}
