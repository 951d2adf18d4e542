package stepnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/pkg/lifecycle"
)

const (
	dnsPort = 53
	// maxMessage is the largest message of DNS.
	maxMessage = 65535
	// upstreamTimeout bounds the wait for one name server.
	upstreamTimeout = 3 * time.Second
	// streamTimeout bounds a query by TCP.
	streamTimeout = 15 * time.Second
	// maxQueries and maxStreams bound what is under way; further queries wait in
	// the kernel, which drops what does not fit.
	maxQueries, maxStreams = 256, 32
)

// forwarder passes DNS queries of steps on to name servers, as they are, if they are
// questions: what the servers take from this host besides is not for steps.
type forwarder struct {
	packets   net.PacketConn
	streams   net.Listener
	steps     netip.Prefix // addresses that are answered
	upstreams func() []netip.AddrPort
}

// listenDNS opens port 53 of an address for UDP and TCP.
func listenDNS(
	ctx context.Context, addr netip.Addr, steps netip.Prefix, upstreams func() []netip.AddrPort,
) (*forwarder, error) {
	return listenDNSAt(ctx, netip.AddrPortFrom(addr, dnsPort), steps, upstreams)
}

func listenDNSAt(
	ctx context.Context, at netip.AddrPort, steps netip.Prefix, upstreams func() []netip.AddrPort,
) (*forwarder, error) {
	var config net.ListenConfig
	streams, err := config.Listen(ctx, "tcp4", at.String())
	if err != nil {
		return nil, cannotListen(err, at)
	}
	packets, err := config.ListenPacket(ctx, "udp4", streams.Addr().String())
	if err != nil {
		return nil, errors.Join(cannotListen(err, at), streams.Close())
	}
	return &forwarder{packets: packets, streams: streams, steps: steps, upstreams: upstreams}, nil
}

func cannotListen(err error, at netip.AddrPort) error {
	return fault.Wrap(err, fault.FailedPrecondition, "", fmt.Sprintf("cannot answer DNS queries of steps at %s", at),
		"stop the DNS server that listens on all addresses of this host, or name the servers that steps ask with --step-dns")
}

// close closes the ports. It may be called more than once.
func (f *forwarder) close() error {
	var failures []error
	for _, err := range []error{f.packets.Close(), f.streams.Close()} {
		if !errors.Is(err, net.ErrClosed) {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

// run answers until ctx ends.
func (f *forwarder) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = f.close() })
	defer stop()
	return lifecycle.Run(ctx,
		lifecycle.Task{Name: "UDP", Run: f.servePackets},
		lifecycle.Task{Name: "TCP", Run: f.serveStreams})
}

func (f *forwarder) servePackets(ctx context.Context) error {
	slots := make(chan struct{}, maxQueries)
	buffer := make([]byte, maxMessage)
	for {
		size, from, err := f.packets.ReadFrom(buffer)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // The end of ctx closes the port.
		}
		if err != nil {
			return err
		}
		if !f.isStep(from) || !isQuestion(buffer[:size]) {
			continue
		}
		query := append([]byte(nil), buffer[:size]...)
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			if answer := f.ask(ctx, query); answer != nil {
				_, _ = f.packets.WriteTo(answer, from) // The step asks again.
			}
		}()
	}
}

// ask returns the answer of the first name server that gives one, nil when none does.
func (f *forwarder) ask(ctx context.Context, query []byte) []byte {
	for _, server := range f.upstreams() {
		if answer, err := exchange(ctx, server, query); err == nil {
			return answer
		}
	}
	return nil
}

func exchange(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(upstreamTimeout)); err != nil {
		return nil, err
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	answer := make([]byte, maxMessage)
	for {
		size, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		if size >= 12 && binary.BigEndian.Uint16(answer) == binary.BigEndian.Uint16(query) {
			return answer[:size], nil
		}
	}
}

func (f *forwarder) serveStreams(ctx context.Context) error {
	slots := make(chan struct{}, maxStreams)
	for {
		slots <- struct{}{}
		conn, err := f.streams.Accept()
		if ctx.Err() != nil {
			return nil //nolint:nilerr // The end of ctx closes the port.
		}
		if err != nil {
			return err
		}
		go func() {
			defer func() { <-slots }()
			f.serve(ctx, conn)
		}()
	}
}

// serve answers the queries of a connection of a step, one after the other.
func (f *forwarder) serve(ctx context.Context, step net.Conn) {
	defer step.Close()
	if !f.isStep(step.RemoteAddr()) || step.SetDeadline(time.Now().Add(streamTimeout)) != nil {
		return
	}
	for {
		query, err := readMessage(step)
		if err != nil || !isQuestion(query) {
			return
		}
		answer := f.askByStream(ctx, query)
		if answer == nil || writeMessage(step, answer) != nil {
			return
		}
	}
}

// askByStream returns the answer of the first name server that gives one by TCP.
func (f *forwarder) askByStream(ctx context.Context, query []byte) []byte {
	for _, server := range f.upstreams() {
		if answer, err := exchangeByStream(ctx, server, query); err == nil {
			return answer
		}
	}
	return nil
}

func exchangeByStream(ctx context.Context, server netip.AddrPort, query []byte) ([]byte, error) {
	dialer := net.Dialer{Timeout: upstreamTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(upstreamTimeout)); err != nil {
		return nil, err
	}
	if err := writeMessage(conn, query); err != nil {
		return nil, err
	}
	return readMessage(conn)
}
