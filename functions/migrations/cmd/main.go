// Command main serves the function migrations.
package main

import (
	"github.com/coditect/platform/functions/migrations"
	"github.com/coditect/platform/shared/edge"
)

func main() { edge.Serve(migrations.Handler()) }
