package localpg

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/coditect/platform/shared/citus/localpg/child"
)

// ErrNoPooler says that PgBouncer is not installed.
var ErrNoPooler = errors.New("localpg: no PgBouncer found in PATH and /usr/sbin (Debian, Ubuntu: apt-get install pgbouncer)")

// Pooler is a PgBouncer in transaction mode: each transaction of a client goes over whichever of
// a few connections to the server is free, so that nothing of a session outlives a transaction.
// It listens on a free loopback port and asks nobody for a password.
type Pooler struct {
	dir  string
	port int
	proc *child.Process
}

// PoolerOptions says what a pooler stands in front of.
type PoolerOptions struct {
	// Databases are the connection strings of the databases behind it, by the names that clients
	// of the pooler know them by. Each role connects as itself.
	Databases map[string]string
	// Roles that may connect.
	Roles []string
	// Connections to each database and role; 0 means 3.
	Connections int
}

// StartPooler starts a PgBouncer and returns when it accepts connections. The error is
// ErrNoPooler when none is installed.
func StartPooler(ctx context.Context, opts PoolerOptions) (*Pooler, error) {
	program, err := poolerProgram()
	if err != nil {
		return nil, err
	}
	dir, err := temporaryFolder()
	if err != nil {
		return nil, err
	}
	p := &Pooler{dir: dir}
	for range 10 { // somebody may be faster to take the port that was free
		if p.port, err = freePort(); err != nil {
			break
		}
		if err = p.configure(opts); err != nil {
			break
		}
		if err = p.run(ctx, program); !errors.Is(err, ErrPortTaken) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return p, nil
}

// DSN is the address of a database behind the pooler for a role. Without prepared statements,
// which PgBouncer has in transaction mode from version 1.21 on and only when it is told to.
func (p *Pooler) DSN(db, role string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User(role), Host: p.address(), Path: "/" + db,
		RawQuery: "sslmode=disable&default_query_exec_mode=exec",
	}
	return u.String()
}

// Remove ends the pooler, and with it all connections through it.
func (p *Pooler) Remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return errors.Join(p.proc.Stop(ctx, syscall.SIGTERM), os.RemoveAll(p.dir))
}

func (p *Pooler) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.port)) }

func poolerProgram() (string, error) {
	for _, name := range []string{"pgbouncer", "/usr/sbin/pgbouncer"} { // Debian's place is not in every PATH
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoPooler
}

// configure writes PgBouncer's configuration.
func (p *Pooler) configure(opts PoolerOptions) error {
	connections := opts.Connections
	if connections == 0 {
		connections = 3
	}
	var ini, roles strings.Builder
	fmt.Fprintln(&ini, "[databases]")
	for _, name := range slices.Sorted(maps.Keys(opts.Databases)) {
		cfg, err := pgconn.ParseConfig(opts.Databases[name])
		if err != nil {
			return fmt.Errorf("localpg: connection string of database %s: %w", name, err)
		}
		fmt.Fprintf(&ini, "%s = host=%s port=%d dbname=%s\n", name, cfg.Host, cfg.Port, cfg.Database)
	}
	fmt.Fprintf(&ini, `[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = trust
auth_file = %s
pool_mode = transaction
default_pool_size = %d
max_client_conn = 500
`, p.port, p.file("roles"), connections)
	for _, role := range opts.Roles {
		fmt.Fprintf(&roles, "%q \"\"\n", role)
	}
	return errors.Join(os.WriteFile(p.file("ini"), []byte(ini.String()), 0o644), os.WriteFile(p.file("roles"), []byte(roles.String()), 0o644))
}

func (p *Pooler) file(name string) string { return filepath.Join(p.dir, "pgbouncer."+name) }

func (p *Pooler) run(ctx context.Context, program string) error {
	cred, err := account() // PgBouncer does not run as root either
	if err != nil {
		return err
	}
	log, err := os.Create(p.file("log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the program has its own copy
	cmd := exec.Command(program, p.file("ini"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	if p.proc, err = child.Start(cmd, syscall.SIGKILL); err != nil {
		return fmt.Errorf("localpg: %w", err)
	}
	if err := p.waitReady(ctx); err != nil {
		_ = p.proc.KillGroup() // the first error is the one to tell
		<-p.proc.Done()
		tail := logSince(p.file("log"), 0)
		if strings.Contains(tail, "Address already in use") {
			return fmt.Errorf("localpg: port %d: %w", p.port, ErrPortTaken)
		}
		return fmt.Errorf("localpg: PgBouncer: %w; its log ends with:\n%s", err, tail)
	}
	return nil
}

// waitReady waits until PgBouncer says that it is up: whoever listens on its port may be another program.
func (p *Pooler) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for !strings.Contains(logSince(p.file("log"), 0), "process up") {
		select {
		case <-p.proc.Done():
			return fmt.Errorf("it ended while starting (%v)", p.proc.Err())
		case <-ctx.Done():
			return fmt.Errorf("it is not ready: %w", ctx.Err())
		case <-time.After(poll):
		}
	}
	return nil
}
