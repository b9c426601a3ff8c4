package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
)

// client is one keep-alive connection. It does no more than it must: on one
// machine the client's work is taken from the server's.
type client struct {
	conn net.Conn
	in   *bufio.Reader
	out  []byte
}

func dial(ctx context.Context, addr string) (*client, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return newClient(conn), nil
}

func newClient(conn net.Conn) *client {
	return &client{conn: conn, in: bufio.NewReaderSize(conn, 32<<10)}
}

func (c *client) Close() error { return c.conn.Close() }

// request is one request without what differs from call to call.
type request struct {
	method, path, secret string
	body                 []byte
}

// do sends a request and reads the answer to its end. The body is returned only
// where it explains a refusal.
func (c *client) do(r request, want int) error {
	c.out = c.out[:0]
	c.out = append(append(append(append(c.out, r.method...), ' '), r.path...), " HTTP/1.1\r\nHost: localhost\r\n"...)
	if r.secret != "" {
		c.out = append(append(append(c.out, "Authorization: Bearer "...), r.secret...), "\r\n"...)
	}
	if r.body != nil {
		c.out = append(c.out, "Content-Type: "...)
		if r.method == http.MethodPatch {
			c.out = append(c.out, "application/merge-patch+json"...)
		} else {
			c.out = append(c.out, "application/json"...)
		}
		c.out = strconv.AppendInt(append(c.out, "\r\nContent-Length: "...), int64(len(r.body)), 10)
		c.out = append(c.out, "\r\n"...)
	}
	c.out = append(append(c.out, "\r\n"...), r.body...)
	if _, err := c.conn.Write(c.out); err != nil {
		return err
	}
	return c.answer(r, want)
}

var (
	contentLength = []byte("Content-Length: ")
	chunked       = []byte("Transfer-Encoding: chunked")
)

func (c *client) answer(r request, want int) error {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if len(line) < 12 {
		return fmt.Errorf("no status line: %q", line)
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return fmt.Errorf("no status line: %q", line)
	}
	length, inChunks := 0, false
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case len(line) == 0:
			return c.body(r, status, want, length, inChunks)
		case bytes.HasPrefix(line, contentLength):
			if length, err = strconv.Atoi(string(line[len(contentLength):])); err != nil {
				return err
			}
		case bytes.Equal(line, chunked):
			inChunks = true
		}
	}
}

func (c *client) body(r request, status, want, length int, inChunks bool) error {
	if status != want {
		text := make([]byte, min(length, 500))
		_, _ = io.ReadFull(c.in, text)
		return fmt.Errorf("%s %s answered %d, not %d: %s", r.method, r.path, status, want, text)
	}
	if !inChunks {
		_, err := c.in.Discard(length)
		return err
	}
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		n, err := strconv.ParseInt(string(bytes.TrimRight(line, "\r\n")), 16, 64)
		if err != nil {
			return err
		}
		if _, err := c.in.Discard(int(n) + 2); err != nil || n == 0 {
			return err
		}
	}
}
