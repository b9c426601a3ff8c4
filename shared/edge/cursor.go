package edge

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"

	"github.com/coditect/platform/shared/fault"
)

// maxCursor bounds what DecodeCursor looks at.
const maxCursor = 2048

// EncodeCursor makes position, the place where the next page begins, an opaque
// string. It is not secret and not signed: a position gives no right, the rows
// after it are filtered for the caller like those before it. The checksum is
// there so that a damaged one is refused instead of giving a wrong page.
func EncodeCursor(position any) (string, error) {
	body, err := json.Marshal(position)
	if err != nil {
		return "", fault.Wrap(err, fault.Internal, "internal", "a cursor could not be made")
	}
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(body, crc32.ChecksumIEEE(body))), nil
}

// DecodeCursor is the inverse of EncodeCursor. Position is a pointer.
func DecodeCursor(cursor string, position any) error {
	bad := fault.BadField("cursor", "must be the next_cursor of an earlier answer of this list, unchanged")
	if len(cursor) > maxCursor {
		return bad
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(raw) < 4 {
		return bad
	}
	body, sum := raw[:len(raw)-4], binary.BigEndian.Uint32(raw[len(raw)-4:])
	if crc32.ChecksumIEEE(body) != sum {
		return bad
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(position); err != nil {
		return bad
	}
	return nil
}
