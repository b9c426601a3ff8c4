// Command tenants serves the function tenants.
package main

import (
	"github.com/coditect/platform/functions/tenants"
	"github.com/coditect/platform/shared/edge"
)

func main() { edge.Serve(tenants.Handler()) }
