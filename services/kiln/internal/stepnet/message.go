package stepnet

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
)

// isStep reports whether an address is one that is answered. The host answers packets
// for the gateway's address that come from anywhere.
func (f *forwarder) isStep(from net.Addr) bool {
	at, err := netip.ParseAddrPort(from.String())
	return err == nil && f.steps.Contains(at.Addr().Unmap())
}

// Parts of a message of DNS (RFC 1035, section 4.1).
const (
	headerBytes = 12
	flagsAt     = 2
	questionsAt = 4
	// notQuery are the bits of an answer and of all kinds of requests but a query.
	notQuery = 0xf800
	// ixfr and axfr are the types of questions for a whole zone.
	ixfr, axfr = 251, 252
)

// isQuestion reports whether a message asks for the records of one name. Name servers
// may take updates (RFC 2136) of this host, and give it whole zones.
func isQuestion(message []byte) bool {
	if len(message) < headerBytes || binary.BigEndian.Uint16(message[flagsAt:])&notQuery != 0 ||
		binary.BigEndian.Uint16(message[questionsAt:]) != 1 {
		return false
	}
	rest := message[headerBytes:]
	for len(rest) > 0 && rest[0] != 0 {
		label := int(rest[0])
		if label > 63 || len(rest) <= label { // a name in a question is whole
			return false
		}
		rest = rest[1+label:]
	}
	if len(rest) < 1+4 { // its end, a type and a class
		return false
	}
	kind := binary.BigEndian.Uint16(rest[1:])
	return kind != ixfr && kind != axfr
}

// readMessage reads a message from a stream, where its length is before it.
func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, message)
	return message, err
}

func writeMessage(w io.Writer, message []byte) error {
	framed := binary.BigEndian.AppendUint16(nil, uint16(len(message))) //nolint:gosec // at most maxMessage
	_, err := w.Write(append(framed, message...))
	return err
}
