package stream

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/stretchr/testify/require"
)

// Blue says after each commit of its other tenants how far it is, thousands a second: whoever takes a nap after each
// of these messages falls behind. Over TLS one read brings no more than one of them.
func TestTheReaderKeepsUpWithABusyBlue(t *testing.T) {
	const messages = 5000 // with a nap after each, 50 s
	for name, encrypted := range map[string]bool{"plain": false, "TLS": true} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewUnstartedServer(nil)
			server.StartTLS() // for its certificate
			defer server.Close()
			trust := server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
			trust.ServerName = "example.com"
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			defer func() { _ = listener.Close() }()
			over := make(chan struct{})
			defer close(over)
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				defer func() { <-over; _ = conn.Close() }()
				if encrypted {
					conn = tls.Server(conn, server.TLS)
				}
				for n := range messages {
					keepalive := make([]byte, 18)
					keepalive[0], keepalive[7], keepalive[8] = pglogrepl.PrimaryKeepaliveMessageByteID, byte((n+1)>>8), byte(n+1)
					m, err := (&pgproto3.CopyData{Data: keepalive}).Encode(nil)
					if err != nil {
						return
					}
					if _, err := conn.Write(m); err != nil {
						return
					}
				}
			}()
			conn, err := net.Dial("tcp", listener.Addr().String())
			require.NoError(t, err)
			if encrypted {
				conn = tls.Client(conn, trust)
			}
			cfg, err := pgconn.ParseConfig("")
			require.NoError(t, err)
			pg, err := pgconn.Construct(&pgconn.HijackedConn{Conn: conn, Config: cfg})
			require.NoError(t, err)
			s := &session{until: time.Now().Add(2 * time.Second)}
			events := make(chan event, 4096)
			require.NoError(t, s.read(context.Background(), pg, newDecoder(1), events))
			require.EqualValues(t, messages, s.idle.at.Load())
		})
	}
}

// A blue that falls silent in the middle of a transaction holds no receiver for longer than its time, and is not told
// again and again what it knows.
func TestTheReaderEndsWhenBlueIsSilent(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = listener.Close() }()
	statuses := make(chan int, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		begin := append(make([]byte, 25), 'B')
		begin[0] = pglogrepl.XLogDataByteID
		m, err := (&pgproto3.CopyData{Data: append(begin, make([]byte, 20)...)}).Encode(nil)
		if err == nil {
			_, err = conn.Write(m)
		}
		backend, n := pgproto3.NewBackend(conn, conn), 0
		for err == nil {
			if _, err = backend.Receive(); err == nil {
				n++
			}
		}
		statuses <- n
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	cfg, err := pgconn.ParseConfig("")
	require.NoError(t, err)
	pg, err := pgconn.Construct(&pgconn.HijackedConn{Conn: conn, Config: cfg})
	require.NoError(t, err)
	began := time.Now()
	s := &session{until: began.Add(silence / 2)}
	d := newDecoder(1)
	require.NoError(t, s.read(t.Context(), pg, d, make(chan event, 4096)))
	require.True(t, d.open)
	took := time.Since(began)
	require.Greater(t, took, silence-sameEvery)
	require.Less(t, took, silence+5*sameEvery)
	require.NoError(t, conn.Close())
	require.LessOrEqual(t, <-statuses, int(took/sameEvery)+1)
}
