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
