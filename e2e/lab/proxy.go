package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Proxy passes TCP connections on, and can delay, hold and cut them.
type Proxy struct {
	// Addr is where it listens, host:port.
	Addr string

	network, target string
	delay           atomic.Int64 // Nanoseconds, per piece and direction.
	bytes           atomic.Int64
	ln              net.Listener
	wg              sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	held   chan struct{} // Open while held.
	closed bool
}

// StartProxy listens on a free port and passes every connection on to target,
// "host:port" or "unix:///path".
func (l *Lab) StartProxy(target string) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	p := &Proxy{Addr: ln.Addr().String(), network: "tcp", target: target, ln: ln, conns: map[net.Conn]struct{}{}}
	if path, ok := strings.CutPrefix(target, "unix://"); ok {
		p.network, p.target = "unix", path
	}
	p.wg.Go(p.accept)
	l.OnClose("proxy", func(context.Context) error { return p.Close() })
	return p, nil
}

// SetDelay holds each piece of data back for d, in both directions. 0: not at all.
func (p *Proxy) SetDelay(d time.Duration) { p.delay.Store(int64(d)) }

// Bytes returns how many bytes have passed, in both directions.
func (p *Proxy) Bytes() int64 { return p.bytes.Load() }

// Hold lets nothing through, without an error to either side, until Release: a
// network that drops packets.
func (p *Proxy) Hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held == nil {
		p.held = make(chan struct{})
	}
}

// Release ends Hold.
func (p *Proxy) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held != nil {
		close(p.held)
		p.held = nil
	}
}

// Cut closes all connections; new ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// Close ends the proxy and all connections, and waits for the end.
func (p *Proxy) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	err := p.ln.Close()
	p.Release()
	p.Cut()
	p.wg.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("lab: %w", err)
	}
	return nil
}

func (p *Proxy) accept() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := net.DialTimeout(p.network, p.target, 10*time.Second)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	if !p.track(client, server) {
		return
	}
	defer p.forget(client, server)
	var wg sync.WaitGroup
	wg.Go(func() { p.pipe(server, client) })
	wg.Go(func() { p.pipe(client, server) })
	wg.Wait()
}

func (p *Proxy) track(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		p.conns[c] = struct{}{}
	}
	return !p.closed
}

func (p *Proxy) forget(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}

// pipe passes on one direction until either side ends.
func (p *Proxy) pipe(to, from net.Conn) {
	defer func() { _ = to.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.wait()
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
			p.bytes.Add(int64(n))
		}
		if err != nil {
			return
		}
	}
}

func (p *Proxy) wait() {
	p.mu.Lock()
	held := p.held
	p.mu.Unlock()
	if held != nil {
		<-held
	}
	if d := p.delay.Load(); d > 0 {
		<-time.After(time.Duration(d))
	}
}
