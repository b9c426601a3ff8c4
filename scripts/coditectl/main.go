// Command coditectl is the operators' command line: it looks before a move, moves
// tenants and watches, and prepares databases, keys and foreign sources.
//
//	go run ./scripts/coditectl --help
//
// The commands are in internal/command, the way to the functions in internal/client.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/coditect/platform/scripts/coditectl/internal/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := command.Run(ctx, os.Args[1:], command.Terminal())
	stop()
	os.Exit(code)
}
