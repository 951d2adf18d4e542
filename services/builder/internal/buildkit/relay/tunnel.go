package relay

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/services/builder/internal/rawcodec"
)

// stream is either end of a Control/Session call, coded by rawcodec.
type stream interface {
	SendMsg(any) error
	RecvMsg(any) error
}

// tunnel is the connection inside a Control/Session stream, whose messages are
// pieces of what goes over it. One goroutine reads and one writes. It copies what it
// reads straight out of gRPC's buffers, and what it writes into one message.
//
// A Read that waits ends with the stream only: whoever closes a tunnel must end
// the stream too.
type tunnel struct {
	stream  stream
	onClose func(cause error) // called once, with what ended reading if that did

	reader *mem.Reader // of the message that is being read; nil before the first
	began  time.Time
	first  sync.Once
	spoke  chan struct{} // closed when the first message has come
	heard  atomic.Int64  // when a message came last, in nanoseconds since began

	once, shutOnce sync.Once
	closed         chan struct{}
	writing        sync.Mutex
}

func newTunnel(s stream) *tunnel {
	return &tunnel{stream: s, began: time.Now(), spoke: make(chan struct{}), closed: make(chan struct{})}
}

// Read implements net.Conn.
func (t *tunnel) Read(b []byte) (int, error) {
	for t.reader == nil || t.reader.Remaining() == 0 {
		if err := t.receive(); err != nil {
			t.close(err)
			return 0, err
		}
	}
	return t.reader.Read(b)
}

// receive reads a message, of which the reader then has the data only.
func (t *tunnel) receive() error {
	var frame rawcodec.Frame
	if err := t.stream.RecvMsg(&frame); err != nil {
		return err
	}
	t.heard.Store(int64(time.Since(t.began)))
	t.first.Do(func() { close(t.spoke) })
	if t.reader == nil {
		t.reader = frame.Data.Reader()
	} else {
		t.reader.Reset(frame.Data)
	}
	defer frame.Data.Free()
	if t.reader.Remaining() == 0 || t.skipPrefix() {
		return nil
	}
	// Not the form in which BuildKit sends it, but valid all the same, perhaps.
	var message controlapi.BytesMessage
	if err := proto.Unmarshal(frame.Data.Materialize(), &message); err != nil {
		return err
	}
	t.reader.Reset(mem.BufferSlice{mem.SliceBuffer(message.GetData())})
	return nil
}

// dataTag begins the one field of a BytesMessage.
const dataTag = 1<<3 | byte(protowire.BytesType)

// skipPrefix reads up to the data of a message that has nothing else, and reports
// whether it is one.
func (t *tunnel) skipPrefix() bool {
	if tag, err := t.reader.ReadByte(); err != nil || tag != dataTag {
		return false
	}
	size, err := binary.ReadUvarint(t.reader)
	return err == nil && size == uint64(t.reader.Remaining()) //nolint:gosec // not negative
}

// Write implements net.Conn.
func (t *tunnel) Write(b []byte) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	if t.isShut() {
		return 0, net.ErrClosed
	}
	buf := messages.Get(prefix + len(b))
	raw := append((*buf)[:0], dataTag)
	raw = append(binary.AppendUvarint(raw, uint64(len(b))), b...)
	*buf = raw
	if err := t.stream.SendMsg(&rawcodec.Frame{Data: mem.BufferSlice{mem.NewBuffer(buf, messages)}}); err != nil {
		return 0, err
	}
	return len(b), nil
}

// messages are the buffers of messages that are written.
var messages mem.BufferPool = &bufferPool{}

// prefix is the most that stands before the data of a message.
const prefix = 1 + binary.MaxVarintLen64

// bufferPool has buffers for one batch of writes. Unlike gRPC's pools, whose sizes
// do not fit, it does not clear them.
type bufferPool struct{ pool sync.Pool }

// Get implements mem.BufferPool.
func (p *bufferPool) Get(length int) *[]byte {
	if buf, ok := p.pool.Get().(*[]byte); ok && cap(*buf) >= length {
		*buf = (*buf)[:length]
		return buf
	}
	buf := make([]byte, length, max(length, prefix+writeBatch))
	return &buf
}

// Put implements mem.BufferPool.
func (p *bufferPool) Put(buf *[]byte) { p.pool.Put(buf) }

// Close implements net.Conn.
func (t *tunnel) Close() error {
	t.close(net.ErrClosed)
	return nil
}

func (t *tunnel) close(cause error) {
	t.once.Do(func() {
		t.shut()
		if t.onClose != nil {
			t.onClose(cause)
		}
	})
}

// shut refuses what is written from now on.
func (t *tunnel) shut() { t.shutOnce.Do(func() { close(t.closed) }) }

func (t *tunnel) isShut() bool {
	select {
	case <-t.closed:
		return true
	default:
		return false
	}
}

// closeSend tells the other end of a stream that this end has opened that nothing
// more comes.
func (t *tunnel) closeSend(s grpc.ClientStream) {
	t.shut()
	t.writing.Lock()
	defer t.writing.Unlock()
	_ = s.CloseSend()
}

// silent returns for how long nothing has come.
func (t *tunnel) silent() time.Duration { return time.Since(t.began) - time.Duration(t.heard.Load()) }

// LocalAddr implements net.Conn.
func (t *tunnel) LocalAddr() net.Addr { return address{} }

// RemoteAddr implements net.Conn.
func (t *tunnel) RemoteAddr() net.Addr { return address{} }

// SetDeadline implements net.Conn. Streams have no deadlines: health checks end
// the session.
func (t *tunnel) SetDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.Conn; see SetDeadline.
func (t *tunnel) SetReadDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn; see SetDeadline.
func (t *tunnel) SetWriteDeadline(time.Time) error { return nil }

type address struct{}

func (address) Network() string { return "session" }
func (address) String() string  { return "localhost" }

// listener gives a server one connection.
type listener struct {
	conn chan net.Conn
	done chan struct{}
	once sync.Once
}

func listenerOf(conn net.Conn) *listener {
	l := &listener{conn: make(chan net.Conn, 1), done: make(chan struct{})}
	l.conn <- conn
	return l
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conn:
		return conn, nil
	case <-l.done:
		return nil, io.EOF
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (*listener) Addr() net.Addr { return address{} }
