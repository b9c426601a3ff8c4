package edge

import (
	"io"
	"log/slog"
	"os"
	"strings"
)

// Logger returns a logger to standard error in the form Cloud Logging reads:
// one JSON object per line, with severity and message. CODITECT_LOG_LEVEL is
// debug, info (the default), warn or error.
func Logger() *slog.Logger {
	level := slog.LevelInfo
	if err := level.UnmarshalText([]byte(os.Getenv("CODITECT_LOG_LEVEL"))); err != nil {
		level = slog.LevelInfo
	}
	return NewLogger(os.Stderr, level)
}

// NewLogger is Logger with a place and a level.
func NewLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: cloudNames}))
}

// cloudNames renames slog's own fields.
func cloudNames(groups []string, a slog.Attr) slog.Attr {
	if len(groups) > 0 {
		return a
	}
	switch a.Key {
	case slog.LevelKey:
		a.Key = "severity"
		if l, ok := a.Value.Any().(slog.Level); ok {
			switch {
			case l >= slog.LevelError:
				a.Value = slog.StringValue("ERROR")
			case l >= slog.LevelWarn:
				a.Value = slog.StringValue("WARNING")
			default:
				a.Value = slog.StringValue(strings.ToUpper(l.String()))
			}
		}
	case slog.MessageKey:
		a.Key = "message"
	}
	return a
}
