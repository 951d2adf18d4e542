package guard

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

// connect makes a tunnel to the host of a CONNECT request.
func (p *proxy) connect(w http.ResponseWriter, r *http.Request) {
	// What goes through is most often TLS; it is never known to be.
	if err := p.guard.CheckURL("https://" + r.Host + "/"); err != nil {
		p.fail(w, r, err)
		return
	}
	upstream, err := p.guard.Dial(r.Context(), "tcp", withPort(r.Host))
	if err != nil {
		p.fail(w, r, err)
		return
	}
	defer upstream.Close()
	if own, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && own.String() == upstream.RemoteAddr().String() {
		http.Error(w, "the tunnel would lead to this proxy itself", http.StatusLoopDetected)
		return
	}
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "the connection cannot become a tunnel", http.StatusInternalServerError)
		return
	}
	defer client.Close()
	p.observe(r.Context(), Allowed)
	_ = client.SetDeadline(time.Now().Add(tunnelIdle))
	if _, err := io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	// What has been read is taken from the server's reader, and the rest not: that
	// one ends the request's context when it sees the client's end.
	sent := io.LimitReader(buffered, int64(buffered.Reader.Buffered()))
	tunnel(r.Context(), client, io.MultiReader(sent, client), upstream)
}

// withPort is a host with a port, that of https when it names none.
func withPort(host string) string {
	if _, _, err := net.SplitHostPort(host); err == nil {
		return host
	}
	return net.JoinHostPort(host, "443")
}

// tunnel copies both ways until both sides have ended, one has failed, nothing
// came for long, or ctx ends. sent is what the client has sent, and sends.
func tunnel(ctx context.Context, client net.Conn, sent io.Reader, upstream net.Conn) {
	cut := func() {
		_ = client.Close()
		_ = upstream.Close()
	}
	defer context.AfterFunc(ctx, cut)()
	var both sync.WaitGroup
	for _, way := range []struct {
		from io.Reader
		to   net.Conn
	}{{sent, upstream}, {upstream, client}} {
		both.Go(func() {
			_ = lifecycle.Protect(ctx, func(context.Context) error { // a panic is reported
				ended := false
				defer func() {
					if !ended {
						cut()
					}
				}()
				ended = pump(way.from, way.to, client, upstream)
				return nil
			})
		})
	}
	both.Wait()
}

// pump copies one way, and says whether it came to the end that the sender set.
// Each byte gives both sides more time.
func pump(from io.Reader, to, client, upstream net.Conn) bool {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return false
			}
			deadline := time.Now().Add(tunnelIdle)
			_ = client.SetDeadline(deadline)
			_ = upstream.SetDeadline(deadline)
		}
		if err == io.EOF {
			half, ok := to.(interface{ CloseWrite() error })
			return ok && half.CloseWrite() == nil
		}
		if err != nil {
			return false
		}
	}
}
