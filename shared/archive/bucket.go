package archive

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"path"
	"sync"

	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"
	"google.golang.org/api/storage/v1"

	"github.com/coditect/platform/shared/fault"
)

// bucket keeps objects in Google Cloud Storage, below a folder.
type bucket struct {
	name, folder string
	service      func() (*storage.Service, error) // made when first used, and not at a function's start
}

func newBucket(name, folder string, opts []option.ClientOption) bucket {
	return bucket{name: name, folder: folder, service: sync.OnceValues(func() (*storage.Service, error) {
		return storage.NewService(context.Background(), opts...)
	})}
}

// uploadChunk is what is sent, and on a broken connection sent again, at a time: it is held in memory.
const uploadChunk = 8 << 20

func (b bucket) create(ctx context.Context, name string) (writer, error) {
	service, err := b.service()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	u := &upload{PipeWriter: w, cancel: cancel, sum: crc32.New(crc32.MakeTable(crc32.Castagnoli)), done: make(chan struct{})}
	go func() {
		defer close(u.done)
		// Generation 0: no object of this name may be there.
		call := service.Objects.Insert(b.name, &storage.Object{Name: b.key(name), ContentType: "application/octet-stream"}).IfGenerationMatch(0)
		u.object, u.err = call.Media(r, googleapi.ChunkSize(uploadChunk)).Context(ctx).Do()
		_ = r.CloseWithError(errors.Join(u.err, io.ErrClosedPipe)) // whoever writes on must not wait for ever
	}()
	return u, nil
}

func (b bucket) open(ctx context.Context, name string) (io.ReadCloser, error) {
	service, err := b.service()
	if err != nil {
		return nil, err
	}
	answer, err := service.Objects.Get(b.name, b.key(name)).Context(ctx).Download()
	if isMissing(err) {
		return nil, fault.Wrap(err, fault.NotFound, "archive_missing", "there is no dump %s", b.locate(name))
	}
	if err != nil {
		return nil, err
	}
	return answer.Body, nil
}

func (b bucket) remove(ctx context.Context, name string) error {
	service, err := b.service()
	if err != nil {
		return err
	}
	if err := service.Objects.Delete(b.name, b.key(name)).Context(ctx).Do(); err != nil && !isMissing(err) {
		return err
	}
	return nil
}

func (b bucket) key(name string) string { return path.Join(b.folder, name) }

func (b bucket) locate(name string) string { return "gs://" + b.name + "/" + b.key(name) }

func isMissing(err error) bool {
	var e *googleapi.Error
	return errors.As(err, &e) && e.Code == http.StatusNotFound
}

// upload is an object on its way.
type upload struct {
	*io.PipeWriter
	cancel context.CancelFunc
	sum    hash.Hash32
	done   chan struct{}
	object *storage.Object
	err    error
}

func (u *upload) Write(p []byte) (int, error) {
	n, err := u.PipeWriter.Write(p)
	u.sum.Write(p[:n])
	return n, err
}

// Close ends the upload. The service makes the object visible as a whole.
func (u *upload) Close() error {
	defer u.cancel()
	_ = u.PipeWriter.Close() // never fails
	<-u.done
	if u.err != nil {
		return u.err
	}
	want := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, u.sum.Sum32()))
	if u.object.Crc32c != want {
		return fmt.Errorf("the service has an object with the CRC32C %s; sent was %s", u.object.Crc32c, want)
	}
	return nil
}

func (u *upload) abort() {
	u.cancel()
	_ = u.CloseWithError(context.Canceled) // never fails
	<-u.done
}
