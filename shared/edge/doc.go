// Package edge is the only HTTP package: what stands between the network and
// the functions. A function makes an API, registers its operations and serves
// it:
//
//	api := edge.New(edge.Config{Name: "tenants", Version: "1"}, keys)
//	edge.Register(api, edge.Operation{
//		ID: "readTenant", Method: "GET", Path: "/tenants/{id}",
//		Summary: "Read a tenant", Scope: auth.TenantsRead,
//	}, func(ctx context.Context, caller auth.Principal, in *readInput) (*tenantOutput, error) { … })
//
// Inputs and outputs are huma's structs (tags path, query, header, a field
// Body), from which the OpenAPI 3.1 document at /openapi.json and the
// validation both come. Around every operation edge puts, in this order:
// request and trace ids, a deadline, recovery from panics, the request log,
// authentication, the scope, the query's names, the body's limit, validation.
//
// Errors leave as application/problem+json (RFC 9457). A handler returns a
// *fault.Error and never chooses a status: problem.go has the one table that
// maps fault.Kind to HTTP.
//
// Nothing a caller sends is dropped in silence: unknown fields, unknown or
// repeated query parameters, duplicate keys and broken UTF-8 are refused by
// name.
package edge
