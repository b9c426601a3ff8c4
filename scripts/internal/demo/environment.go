// Package demo is what scripts/dev shows: it imports the 20 tenants of a real
// django-tenants database, makes tenants of our own through the API, lets traffic
// write to all of them, moves them, looks every acknowledged write up, and
// reports.
//
// Prepare → Run → [Report]. Everything may be interrupted and run again: what is
// there already is left alone, and writes that an interrupted start had
// acknowledged are looked up by the next.
package demo

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/coditect/platform/scripts/internal/statedir"
	"github.com/coditect/platform/scripts/internal/terminal"
	"github.com/coditect/platform/scripts/internal/traffic"
	"github.com/coditect/platform/shared/auth"
	"github.com/coditect/platform/shared/citus"
)

// Names of the foreign source and of what belongs to it on the blue server.
const (
	Source         = "legacy"
	LegacyDatabase = "legacy"
	legacyOwner    = "legacy_owner" // owns the tables, as the old application's deployment did
	legacyApp      = "legacy_app"   // what the old application connects as
)

// Server is a database server that the demo may connect to as any role.
type Server interface {
	DSN(db, user string) string
}

// Environment is the running platform, as the demo sees it.
type Environment struct {
	Gateway     string // http://localhost:8080
	OperatorKey string
	Databases   citus.Config // of the application's role
	Migrator    citus.Config // of the migrator's role
	Green       string       // DSN of a superuser, for the control tables
	Blue        Server
	State       *statedir.Dir
	Console     *terminal.Console
	Tenants     int // of our own
}

// client is shared by all HTTP traffic: one pool of connections.
var client = &http.Client{
	Timeout:   20 * time.Second,
	Transport: &http.Transport{MaxIdleConns: 512, MaxIdleConnsPerHost: 512, MaxConnsPerHost: 512},
}

// operatorFor is the API as an operator sees it, acting for a tenant or for none.
func (e Environment) operatorFor(tenantID string) traffic.API {
	return traffic.API{Base: e.Gateway, Key: e.OperatorKey, Tenant: tenantID, HTTP: client}
}

// keys is what keys.json in the state folder holds.
type keys struct {
	Operator string `json:"operator"`
	Tenant   string `json:"tenant,omitempty"`    // of one tenant, to try things with
	TenantID string `json:"tenant_id,omitempty"` // which one
}

const keysFile = "keys.json"

// OperatorKey returns the operator's key that the state folder keeps, making one
// the first time. Only its hash is in the database.
func OperatorKey(ctx context.Context, green string, state *statedir.Dir) (string, error) {
	var k keys
	if err := state.Load(keysFile, &k); err != nil || k.Operator != "" {
		return k.Operator, err
	}
	conn, err := pgx.Connect(ctx, green)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	k.Operator, _, err = auth.CreateKey(ctx, conn, auth.NewKey{Name: "scripts/dev", Kind: auth.Operator, Scopes: auth.AllScopes()})
	if err != nil {
		return "", fmt.Errorf("make an operator's key: %w", err)
	}
	return k.Operator, state.Save(keysFile, k)
}
