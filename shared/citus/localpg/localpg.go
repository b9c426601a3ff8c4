// Package localpg starts real PostgreSQL servers on this machine: for tests,
// for benchmarks and for scripts/dev. It uses the distribution's programs,
// never a download.
//
// A server listens on a free loopback port, trusts every local connection and
// has one superuser, `postgres`. By default it is tuned to be thrown away:
// fsync is off, which survives kill -9 of any process (the kernel has the pages)
// but not a power cut. Pass Settings{"fsync": "on"} for data worth keeping.
//
// A server never outlives the process that started it, see package child.
package localpg

import (
	"bytes"
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

	"github.com/coditect/platform/shared/citus/localpg/child"
)

// Options says what kind of server to start. The zero value is a fresh
// throw-away server.
type Options struct {
	// Dir keeps the data. A folder that already holds a database is adopted as it
	// is, so state survives restarts. Empty means a temporary folder that Remove
	// deletes.
	Dir string
	// Port to listen on; Start fails when it is taken. 0 means any free one.
	Port int
	// Settings are added to, and win over, the package's own. They are given on
	// the command line at every start and never stored.
	Settings map[string]string
	// Preload lists shared_preload_libraries, for instance "citus".
	Preload []string
}

// Server is one PostgreSQL server. Its methods are not for concurrent use,
// except DSN, Port and Dir.
type Server struct {
	opts      Options
	temporary string // folder that Remove deletes, "" for a given Dir
	port      int
	proc      *child.Process // of the current run
}

var defaults = map[string]string{
	"listen_addresses":        "127.0.0.1",
	"unix_socket_directories": "", // nothing to collide with, nothing to leave behind
	"wal_level":               "logical",
	"max_connections":         "200",
	"max_wal_senders":         "20",
	"max_replication_slots":   "40",
	// What two-phase commit between Citus nodes needs; harmless elsewhere.
	"max_prepared_transactions": "200",
	"fsync":                     "off",
	"full_page_writes":          "off",
	"shared_buffers":            "128MB",
	"log_line_prefix":           "%m [%p] %u@%d ",
	"lc_messages":               "C", // addressTaken reads the log
	"timezone":                  "UTC",
}

// startPatience is how long a server may take to answer; crash recovery of a
// big database is what takes time.
const startPatience = 60 * time.Second

// Start creates the database folder when there is none, starts a server on it and
// returns when it accepts connections.
func Start(ctx context.Context, opts Options) (*Server, error) {
	s := &Server{opts: opts}
	if s.opts.Dir == "" {
		base, err := temporaryFolder()
		if err != nil {
			return nil, err
		}
		s.temporary, s.opts.Dir = base, filepath.Join(base, "data")
	}
	abs, err := filepath.Abs(s.opts.Dir)
	if err != nil {
		return nil, err
	}
	s.opts.Dir = abs
	err = s.create(ctx)
	if err == nil {
		err = s.startSomewhere(ctx)
	}
	if err != nil && s.temporary != "" {
		err = errors.Join(err, os.RemoveAll(s.temporary))
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// DSN is the address of database db for user.
func (s *Server) DSN(db, user string) string {
	u := url.URL{
		Scheme: "postgres", User: url.User(user),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)),
		Path: "/" + db, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port is where the server listens.
func (s *Server) Port() int { return s.port }

// Dir is the data folder.
func (s *Server) Dir() string { return s.opts.Dir }

// LogFile is where the server writes its log.
func (s *Server) LogFile() string { return s.opts.Dir + ".log" }

// Exited is closed when the current run of the server has ended, for whatever reason.
func (s *Server) Exited() <-chan struct{} { return s.proc.Done() }

// Stop ends the server in the fast way: open transactions are rolled back, a
// checkpoint is written. The data stays.
func (s *Server) Stop(ctx context.Context) error {
	return s.proc.Stop(ctx, syscall.SIGINT)
}

// Kill is kill -9 of the server and all its processes, as a crash would be.
// Restart starts it again.
func (s *Server) Kill() error {
	children := childrenOf(s.proc.Pid())
	if err := s.proc.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-s.proc.Done()
	for _, pid := range children {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("localpg: kill process %d: %w", pid, err)
		}
	}
	return nil
}

// Restart starts a stopped, killed or crashed server again on the same port
// and data; a running one is stopped first.
func (s *Server) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	if err := s.waitForOld(ctx); err != nil {
		return err
	}
	return s.run(ctx)
}

// RestartWith is Restart with other settings, which are added to those of [Options].
func (s *Server) RestartWith(ctx context.Context, settings map[string]string) error {
	merged := maps.Clone(s.opts.Settings)
	if merged == nil {
		merged = map[string]string{}
	}
	maps.Copy(merged, settings)
	s.opts.Settings = merged
	return s.Restart(ctx)
}

// Remove stops the server at once and, if it lived in a temporary folder, deletes it.
func (s *Server) Remove() error {
	err := s.Kill()
	if s.temporary != "" {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		err = errors.Join(err, s.waitForOld(ctx), os.RemoveAll(s.temporary))
	}
	return err
}

func (s *Server) create(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(s.opts.Dir, "PG_VERSION")); err == nil {
		return s.waitForOld(ctx)
	}
	bin, err := Programs()
	if err != nil {
		return err
	}
	if err := CanServe(s.opts.Dir); err != nil {
		return err
	}
	cred, err := account()
	if err != nil {
		return err
	}
	// Built beside and moved into place when complete: initdb killed half-way must
	// not leave a folder that the next start takes for a database.
	half := s.opts.Dir + ".new"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	if err := os.MkdirAll(half, 0o700); err != nil {
		return err
	}
	if cred != nil {
		if err := os.Chown(half, int(cred.Uid), int(cred.Gid)); err != nil {
			return err
		}
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", half, "-U", "postgres", "-A", "trust",
		"--no-sync", "--no-instructions", "-E", "UTF8", "--locale", locale())
	cmd.Dir, cmd.Stdout, cmd.Stderr = half, &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("localpg: initdb in %s: %w: %s", s.opts.Dir, err, bytes.TrimSpace(out.Bytes()))
	}
	// Rename replaces an empty folder and refuses to replace one with content.
	if err := os.Rename(half, s.opts.Dir); err != nil {
		return fmt.Errorf("localpg: the folder for the database is in use for something else: %w", err)
	}
	return nil
}

// startSomewhere runs the server, choosing another free port when somebody was
// faster to take the one chosen.
func (s *Server) startSomewhere(ctx context.Context) error {
	if s.opts.Port != 0 {
		s.port = s.opts.Port
		return s.run(ctx)
	}
	var err error
	for range 10 {
		if s.port, err = freePort(); err != nil {
			return err
		}
		if err = s.run(ctx); !errors.Is(err, ErrPortTaken) {
			return err
		}
	}
	return err
}

// ErrPortTaken says that another program listens on the port.
var ErrPortTaken = errors.New("the port is taken by another program")

func (s *Server) run(ctx context.Context) error {
	bin, err := Programs()
	if err != nil {
		return err
	}
	cred, err := account()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the server has its own copy
	from, err := log.Seek(0, 2)
	if err != nil {
		return err
	}

	cmd := exec.Command(filepath.Join(bin, "postgres"), s.arguments()...)
	cmd.Env = append(os.Environ(), "HOME="+s.opts.Dir) // libpq inside the server (Citus) looks for certificates there
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.opts.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	// SIGQUIT is PostgreSQL's immediate shutdown; the next start recovers from WAL.
	s.proc, err = child.Start(cmd, syscall.SIGQUIT)
	if err != nil {
		return fmt.Errorf("localpg: %w", err)
	}
	if err := s.waitReady(ctx); err != nil {
		_ = s.proc.KillGroup() // the first error is the one to tell
		<-s.proc.Done()
		tail := logSince(s.LogFile(), from)
		if strings.Contains(tail, "Address already in use") {
			return fmt.Errorf("localpg: port %d: %w", s.port, ErrPortTaken)
		}
		return fmt.Errorf("localpg: server in %s: %w; its log ends with:\n%s", s.opts.Dir, err, tail)
	}
	return nil
}

func (s *Server) arguments() []string {
	settings := maps.Clone(defaults)
	if len(s.opts.Preload) > 0 {
		settings["shared_preload_libraries"] = strings.Join(s.opts.Preload, ",")
	}
	if slices.Contains(s.opts.Preload, "citus") {
		settings["citus.enable_statistics_collection"] = "off" // no phoning home
	}
	maps.Copy(settings, s.opts.Settings)
	args := []string{"-D", s.opts.Dir, "-p", strconv.Itoa(s.port)}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}
