// Command main serves the function migrationstep.
package main

import (
	"github.com/coditect/platform/functions/migrationstep"
	"github.com/coditect/platform/shared/edge"
)

func main() { edge.Serve(migrationstep.Handler()) }
