package lab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// upOffsets are the ports, relative to its base, that `kiln up` listens on.
var upOffsets = []int{0, 1, 2, 3, 10, 11, 12, 20}

// FreeBase returns a port N for `kiln up --listen-base N`: N and all ports
// relative to it are free at this moment. They may be taken later: retry then.
func FreeBase() (int, error) { return freePorts(upOffsets) }

// FreeAddr returns a loopback address whose port is free at this moment.
func FreeAddr() (string, error) {
	port, err := freePorts([]int{0})
	if err != nil {
		return "", err
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), nil
}

// freePorts finds a base below the range from which the kernel takes the source
// ports of connections, so that no client can grab one in between.
func freePorts(offsets []int) (int, error) {
	for range 200 {
		base := 20000 + rand.IntN(12000)
		if bindAll(base, offsets) == nil {
			return base, nil
		}
	}
	return 0, errors.New("lab: no free ports between 20000 and 32000")
}

func bindAll(base int, offsets []int) error {
	for _, o := range offsets {
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(base+o)))
		if err != nil {
			return fmt.Errorf("lab: %w", err)
		}
		defer func() { _ = ln.Close() }()
	}
	return nil
}
