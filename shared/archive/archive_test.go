package archive_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"google.golang.org/api/option"

	"github.com/coditect/platform/shared/archive"
	"github.com/coditect/platform/shared/citus/citustest"
	"github.com/coditect/platform/shared/citus/localpg"
	"github.com/coditect/platform/shared/fault"
)

func TestMain(m *testing.M) { citustest.Main(m) }

func programs(t *testing.T) string {
	bin, err := localpg.Programs()
	require.NoError(t, err)
	return bin
}

// places are the kinds of archives, each empty, and how to damage an object there.
func places(t *testing.T, f func(t *testing.T, cfg archive.Config, opts []option.ClientOption, damage func(name string, change func([]byte) []byte), names func() []string)) {
	t.Run("folder", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "an archive")
		u := url.URL{Scheme: "file", Path: dir}
		f(t, archive.Config{URL: u.String(), Programs: programs(t)}, nil, func(name string, change func([]byte) []byte) {
			b, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), change(b), 0o600))
		}, func() []string {
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			var out []string
			for _, e := range entries {
				out = append(out, e.Name())
			}
			return out
		})
	})
	t.Run("bucket", func(t *testing.T) {
		s := &storageService{objects: map[string][]byte{}, uploads: map[string]*uploading{}}
		server := httptest.NewServer(s)
		t.Cleanup(server.Close)
		opts := []option.ClientOption{option.WithEndpoint(server.URL + "/storage/v1/"), option.WithoutAuthentication()}
		f(t, archive.Config{URL: "gs://dumps/of/tenants", Programs: programs(t)}, opts, func(name string, change func([]byte) []byte) {
			s.objects["of/tenants/"+name] = change(s.objects["of/tenants/"+name])
		}, func() []string {
			var out []string
			for name := range s.objects {
				out = append(out, strings.TrimPrefix(name, "of/tenants/"))
			}
			return out
		})
	})
}

// made is a database with a schema whose name needs quotes, and a neighbour.
func made(t *testing.T) string {
	dsn := citustest.EmptyDatabase(t)
	execSQL(t, dsn, `CREATE SCHEMA "my ""schema"; CREATE SCHEMA "my"; CREATE TABLE "my".other (id int);
		CREATE TABLE "my ""schema".one (id int PRIMARY KEY, name text); CREATE TABLE "my ""schema"."two words" (id int PRIMARY KEY REFERENCES "my ""schema".one);
		INSERT INTO "my ""schema".one SELECT i, (SELECT string_agg(md5(i || ' ' || j), '') FROM generate_series(1, 100) j) FROM generate_series(1, 6000) i; INSERT INTO "my ""schema"."two words" VALUES (7)`)
	return dsn
}

func execSQL(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	_, err = conn.Exec(t.Context(), sql, pgx.QueryExecModeSimpleProtocol)
	require.NoError(t, err, sql)
}

func countIn(t *testing.T, dsn, sql string) (n int64) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	require.NoError(t, conn.QueryRow(t.Context(), sql).Scan(&n))
	return n
}

func TestASchemaIsSavedAndRestored(t *testing.T) {
	places(t, func(t *testing.T, cfg archive.Config, opts []option.ClientOption, damage func(string, func([]byte) []byte), names func() []string) {
		dsn := made(t)
		a, err := archive.Open(cfg, opts...)
		require.NoError(t, err)
		saved, err := a.Save(t.Context(), dsn, `my "schema`, "x.dump")
		require.NoError(t, err)
		require.Len(t, saved.Tables, 2, "%v", saved.Tables) // and not the neighbour's
		require.Greater(t, saved.Bytes, int64(8<<20), "more than a chunk of an upload")
		require.Len(t, saved.SHA256, 32)
		require.Equal(t, []string{"x.dump"}, names())

		there, name, err := archive.OpenDump(archive.Config{Programs: cfg.Programs}, saved.URL, opts...)
		require.NoError(t, err)
		into := citustest.EmptyDatabase(t)
		require.NoError(t, there.Restore(t.Context(), name, saved, into))
		const sum = `SELECT (sum(hashtextextended(x::text, 0)) % 1000000007)::bigint FROM "my ""schema".one x`
		require.Equal(t, countIn(t, dsn, sum), countIn(t, into, sum))
		require.EqualValues(t, 1, countIn(t, into, `SELECT count(*) FROM "my ""schema"."two words"`))
		require.EqualValues(t, 1, countIn(t, into, `SELECT count(*) FROM pg_constraint WHERE contype = 'f'`))

		// Once more: it is there, and nothing is changed.
		err = there.Restore(t.Context(), name, saved, into)
		require.ErrorContains(t, err, "already exists")
		require.EqualValues(t, 6000, countIn(t, into, `SELECT count(*) FROM "my ""schema".one`))

		// One bit.
		damage("x.dump", func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		err = there.Restore(t.Context(), name, saved, citustest.EmptyDatabase(t))
		require.Equal(t, "archive_damaged", fault.As(err).Code)
		require.NoError(t, there.Remove(t.Context(), name))
		require.NoError(t, there.Remove(t.Context(), name), "again")
		err = there.Restore(t.Context(), name, saved, citustest.EmptyDatabase(t))
		require.Equal(t, "archive_missing", fault.As(err).Code)
	})
}

// A dump that fails leaves nothing behind, whenever it does.
func TestAFailedDumpLeavesNothing(t *testing.T) {
	places(t, func(t *testing.T, cfg archive.Config, opts []option.ClientOption, _ func(string, func([]byte) []byte), names func() []string) {
		dsn := made(t)
		a, err := archive.Open(cfg, opts...)
		require.NoError(t, err)
		_, err = a.Save(t.Context(), dsn, "nowhere", "x.dump")
		require.ErrorContains(t, err, "no matching schemas were found")
		require.Empty(t, names())
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = a.Save(ctx, dsn, `my "schema`, "x.dump")
		require.ErrorIs(t, err, context.Canceled)
		require.Empty(t, names())
		_, err = a.Save(t.Context(), strings.Replace(dsn, "postgres@", "nobody:secret@", 1), `my "schema`, "x.dump")
		require.Error(t, err)
		require.NotContains(t, err.Error(), "secret")
		require.Empty(t, names())
	})
}

func TestOnlyFoldersAndBuckets(t *testing.T) {
	for _, u := range []string{"", "/var/archive", "file://host/x", "s3://bucket", "gs:///x", "gs://user@bucket", "https://x"} {
		_, err := archive.Open(archive.Config{URL: u})
		require.Equal(t, "archive", fault.As(err).Fields[0].Name, u)
	}
	a, err := archive.Open(archive.Config{URL: "file:///nowhere", Programs: "/nowhere"})
	require.NoError(t, err)
	require.NoError(t, a.Remove(t.Context(), "x"))
}

// storageService is the part of Google Cloud Storage's JSON API that an archive uses, as its
// manual describes it: resumable and multipart uploads, media downloads, deletion.
type storageService struct {
	mu      sync.Mutex
	objects map[string][]byte
	uploads map[string]*uploading
}

type uploading struct {
	name string
	data []byte
}

func (s *storageService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client went away in the middle: nothing is there
	}
	switch name, ok := strings.CutPrefix(r.URL.Path, "/storage/v1/b/dumps/o/"); {
	case r.URL.Path == "/upload/storage/v1/b/dumps/o" && r.URL.Query().Get("uploadType") == "resumable" && r.Method == http.MethodPost:
		id := strconv.Itoa(len(s.uploads))
		s.uploads[id] = &uploading{name: nameIn(body)}
		w.Header().Set("Location", "http://"+r.Host+"/session/"+id)
	case strings.HasPrefix(r.URL.Path, "/session/"):
		s.chunk(w, r, s.uploads[strings.TrimPrefix(r.URL.Path, "/session/")], body)
	case r.URL.Path == "/upload/storage/v1/b/dumps/o" && r.URL.Query().Get("uploadType") == "multipart":
		parts := strings.SplitN(string(body), "\r\n\r\n", 3)
		boundary := regexp.MustCompile(`boundary="?([^";]+)`).FindStringSubmatch(r.Header.Get("Content-Type"))[1]
		data, _, _ := strings.Cut(parts[2], "\r\n--"+boundary)
		s.finish(w, nameIn([]byte(parts[1])), []byte(data))
	case ok && s.objects[name] == nil:
		http.Error(w, `{"error":{"code":404,"message":"No such object"}}`, http.StatusNotFound)
	case ok && r.Method == http.MethodDelete:
		delete(s.objects, name)
		w.WriteHeader(http.StatusNoContent)
	case ok && r.URL.Query().Get("alt") == "media":
		_, _ = w.Write(s.objects[name])
	default:
		http.Error(w, "unexpected "+r.Method+" "+r.URL.String(), http.StatusTeapot)
	}
}

var objectName = regexp.MustCompile(`"name":\s*"([^"]+)"`)

func nameIn(b []byte) string { return objectName.FindStringSubmatch(string(b))[1] }

// chunk takes "Content-Range: bytes 0-8388607/*", or with the size in place of * the last.
func (s *storageService) chunk(w http.ResponseWriter, r *http.Request, u *uploading, body []byte) {
	u.data = append(u.data, body...)
	if strings.HasSuffix(r.Header.Get("Content-Range"), "/*") {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", len(u.data)-1))
		w.Header().Set("X-Http-Status-Code-Override", "308")
		return
	}
	s.finish(w, u.name, u.data)
}

func (s *storageService) finish(w http.ResponseWriter, name string, data []byte) {
	s.objects[name] = bytes.Clone(data)
	sum := crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))
	_ = json.NewEncoder(w).Encode(map[string]string{"name": name, "crc32c": base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, sum))})
}
