// Package terminal is what the launcher prints: lines, and below them a progress
// bar where there is a terminal to draw it on. Elsewhere (a pipe, a CI log) the
// progress is a plain line now and then.
package terminal

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// plainInterval is how often progress is told where there is no bar.
const plainInterval = 5 * time.Second

// Console prints. It is safe for concurrent use.
type Console struct {
	out  io.Writer
	file *os.File // nil: no terminal

	mu   sync.Mutex
	bar  *progressbar.ProgressBar
	last time.Time // when progress was last told as a line
	now  func() time.Time
}

// New returns a console on f.
func New(f *os.File) *Console {
	c := &Console{out: f, now: time.Now}
	if term.IsTerminal(int(f.Fd())) {
		c.file = f
	}
	return c
}

// File is the terminal that the console prints on; nil when it is none.
func (c *Console) File() *os.File { return c.file }

// NewPlain returns a console that writes plain lines to w.
func NewPlain(w io.Writer) *Console { return &Console{out: w, now: time.Now} }

// Say prints a line; the bar, if any, moves below it.
func (c *Console) Say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bar != nil {
		_ = c.bar.Clear() // cosmetic
	}
	fmt.Fprintf(c.out, format+"\n", args...)
	if c.bar != nil {
		_ = c.bar.RenderBlank() // cosmetic
	}
}

// Progress shows done of total and a remark beside it.
func (c *Console) Progress(done, total int, remark string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file == nil {
		if now := c.now(); done == total || now.Sub(c.last) >= plainInterval {
			c.last = now
			fmt.Fprintf(c.out, "  %d of %d  %s\n", done, total, remark)
		}
		return
	}
	if c.bar == nil {
		c.bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(c.out), progressbar.OptionShowCount(),
			progressbar.OptionSetWidth(30), progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(true))
	}
	c.bar.ChangeMax(total)
	c.bar.Describe(remark)
	_ = c.bar.Set(done) // cosmetic
}

// Done takes the bar away.
func (c *Console) Done() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.bar != nil {
		fmt.Fprintln(c.out)
		c.bar = nil
	}
	c.last = time.Time{}
}
