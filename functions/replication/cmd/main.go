// Command main serves the function replication.
package main

import (
	"github.com/coditect/platform/functions/replication"
	"github.com/coditect/platform/shared/edge"
)

func main() { edge.Serve(replication.Handler()) }
