// Command main serves the function projects.
package main

import (
	"os"

	"github.com/coditect/platform/functions/projects"
	"github.com/coditect/platform/shared/edge"
)

func main() {
	h, stop, err := projects.Handler()
	if err != nil {
		edge.Logger().Error("the function cannot start", "error", err.Error())
		os.Exit(1)
	}
	edge.Serve(h, stop)
}
