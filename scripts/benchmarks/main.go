// Command benchmarks measures the platform against what it is made of: the same
// work by PostgreSQL's own tools on the same servers in the same run. scripts/bench
// builds and starts it.
//
// Every comparison is a ratio, both sides taken in turns, because absolute figures
// say more about the machine than about the platform. The last line that it
// prints is one JSON object with all figures; progress goes to standard error.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// figures is what a benchmark found, as it is printed.
type figures map[string]any

// benchmark is one benchmark. Flags registers its flags and returns what runs it
// once they are parsed.
type benchmark struct {
	name, about string
	flags       func(*flag.FlagSet) func(context.Context, *bench) (figures, error)
}

var benchmarks = []benchmark{
	{"migrate", "generated tenants moved and verified, against a pg_dump | psql loop, one raw COPY, and pgcopydb", migrateFlags},
	{"door", "statements through the door and over HTTP, against pgbench with the same statements prepared", doorFlags},
	{"pause", "write pause of each tenant while it is moved under load", pauseFlags},
	{"apply", "changes brought from blue to green, against PostgreSQL's own logical replication of the same changes", applyFlags},
	{"overhead", "what a move takes from the other users of blue, against the same load without a move", overheadFlags},
	{"memory", "the most memory of the mover's processes while a large tenant moves online", memoryFlags},
	{"tenant-create", "time to make a blue tenant, directly and by signing up over HTTP", tenantCreateFlags},
	{"schema-noop", "time to find that thousands of blue schemas are up to date, and to upgrade them all", schemaNoopFlags},
	{"coldstart", "exec to first answered request of each function, and the size of its binary", coldstartFlags},
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == profiledFunction {
		serveProfiled(os.Args[2])
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" {
		list()
		return nil
	}
	for _, m := range benchmarks {
		if m.name == args[0] {
			return m.run(ctx, args[1:])
		}
	}
	list()
	return fmt.Errorf("there is no benchmark %q", args[0])
}

func list() {
	fmt.Println("scripts/bench NAME [--citus] [flags]   (scripts/bench NAME --help lists them)")
	fmt.Println()
	for _, m := range benchmarks {
		fmt.Printf("  %-14s %s\n", m.name, m.about)
	}
}

func (m benchmark) run(ctx context.Context, args []string) (err error) {
	b := &bench{name: m.name, began: time.Now()}
	set := flag.NewFlagSet(m.name, flag.ContinueOnError)
	set.BoolVar(&b.wantCitus, "citus", false, "green is a Citus coordinator with two workers, where this PostgreSQL offers it")
	body := m.flags(set)
	if err := set.Parse(args); err != nil {
		return err
	}
	if set.NArg() > 0 {
		return fmt.Errorf("%s takes flags only; there is %q", m.name, set.Arg(0))
	}
	defer func() { err = errors.Join(err, b.close()) }()
	found, err := body(ctx, b)
	if err != nil {
		return fmt.Errorf("%s: %w", m.name, err)
	}
	found["benchmark"] = m.name
	found["machine"] = machine()
	found["took_seconds"] = round(time.Since(b.began).Seconds(), 1)
	if b.servers != nil {
		found["servers"] = b.servers
	}
	line, err := json.Marshal(found)
	if err != nil {
		return err
	}
	fmt.Println(string(line))
	return nil
}
