package sqlite

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"iter"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// partBytes is when a part of a large commit ends, so that a reader who wants a
// little need not read all of it.
const partBytes = 64 << 10

// part is a row of events.
type part struct {
	first uint64 // sequence number of its first frame
	data  []byte
}

// parts cuts frames, of which the first has that sequence number, into rows.
func parts(first uint64, frames []build.Frame) iter.Seq[part] {
	return func(yield func(part) bool) {
		for len(frames) > 0 {
			n, size := 0, 0
			for n < len(frames) && (n == 0 || size < partBytes) {
				size += binary.MaxVarintLen32 + len(frames[n].Data)
				n++
			}
			data := make([]byte, 0, size)
			for _, frame := range frames[:n] {
				data = binary.AppendUvarint(data, uint64(len(frame.Data)))
				data = append(data, frame.Data...)
			}
			if !yield(part{first: first, data: data}) {
				return
			}
			first, frames = first+uint64(n), frames[n:]
		}
	}
}

var errTorn = errors.New("a row of events is torn")

// frames gives the frames of a row, whose data are part of the row's.
func (p part) frames(yield func(build.Frame, error) bool) {
	for sequence, data := p.first, p.data; len(data) > 0; sequence++ {
		length, n := binary.Uvarint(data)
		if n <= 0 || length > uint64(len(data)-n) {
			yield(build.Frame{}, errTorn)
			return
		}
		end := n + int(length) //nolint:gosec // no more than len(data)
		if !yield(build.Frame{Sequence: sequence, Data: data[n:end:end]}, nil) {
			return
		}
		data = data[end:]
	}
}

// Frames implements build.Store.
func (s *Store) Frames(ctx context.Context, id string, from uint64, maxBytes int) ([]build.Frame, error) {
	from = max(from, 1)
	rows, err := s.stmts.frames.QueryContext(ctx, id, from)
	if err != nil {
		return nil, explain(err)
	}
	defer rows.Close()
	var all []build.Frame
	known := false
	for rows.Next() {
		known = true
		var first sql.Null[uint64]
		var p part
		if err := rows.Scan(&first, &p.data); err != nil {
			return nil, explain(err)
		}
		p.first = first.V
		for frame, err := range p.frames {
			if err != nil {
				return nil, explain(err)
			}
			if frame.Sequence < from {
				continue
			}
			if maxBytes -= len(frame.Data); maxBytes < 0 && len(all) > 0 {
				return all, nil
			}
			all = append(all, frame)
		}
	}
	if err := rows.Err(); err != nil {
		return nil, explain(err)
	}
	if !known {
		return nil, build.ErrUnknown
	}
	return all, nil
}
