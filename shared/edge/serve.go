package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// The limits of a connection. WriteTimeout is past the deadline of a request,
// so that an answer about the deadline still gets out; an API whose deadline is later moves it.
const (
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 30 * time.Second
	writeTimeout      = DefaultDeadline + answerTime
	answerTime        = 10 * time.Second
	idleTimeout       = 620 * time.Second // past the load balancer's 600 s, else it meets closed connections
	maxHeaderBytes    = 64 << 10
	drainTime         = 8 * time.Second // Cloud Run kills 10 s after SIGTERM
)

// Serve serves h on HOST:PORT (all interfaces, 8080) until SIGTERM or SIGINT,
// lets requests end for up to 8 s, and then runs closers. It is all of a
// function's main; a failure ends the process with status 1.
//
// functions-framework-go's own server has neither timeouts nor a graceful
// stop, so functions only register with it and are served by this one.
func Serve(h http.Handler, closers ...func()) {
	log := Logger()
	if err := serveEnv(log, h, closers); err != nil {
		log.Error("the server failed", "error", err.Error())
		os.Exit(1)
	}
}

func serveEnv(log *slog.Logger, h http.Handler, closers []func()) error {
	// A second signal kills at once: stop gives the signals back to the runtime.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop)
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	l, err := net.Listen("tcp", net.JoinHostPort(os.Getenv("HOST"), port))
	if err != nil {
		return fmt.Errorf("edge: listening on port %s: %w", port, err)
	}
	return ServeListener(ctx, log, l, h, closers...)
}

// ServeListener serves h on l until ctx ends, then drains and runs closers.
func ServeListener(ctx context.Context, log *slog.Logger, l net.Listener, h http.Handler, closers ...func()) error {
	defer func() {
		for _, c := range closers {
			c()
		}
	}()
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(l) }()
	log.Info("serving", "address", l.Addr().String())
	select {
	case err := <-failed:
		return fmt.Errorf("edge: serving: %w", err)
	case <-ctx.Done():
	}
	log.Info("draining")
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if err := server.Shutdown(drain); err != nil {
		// What is still running is cut: the platform would do the same, with SIGKILL, two seconds later.
		if closeErr := server.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
		return fmt.Errorf("edge: requests did not end within %s: %w", drainTime, err)
	}
	log.Info("stopped")
	return nil
}
