package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Request says what to try.
type Request struct {
	// Hosts are addresses whose every TCP port is tried. The default gateway is added.
	Hosts []string `json:"hosts"`
	// UDP are addresses, host:port, that answer whatever they get. The gateway's is
	// added for each port.
	UDP []string `json:"udp"`
	// Abstract are names of abstract unix sockets on which somebody listens.
	Abstract []string `json:"abstract"`
	// Connect are addresses, host:port, of private services.
	Connect []string `json:"connect"`
	// Name is to be resolved and Web to be read.
	Name string `json:"name"`
	Web  string `json:"web"`
}

// Report says what was reached.
type Report struct {
	// Gateway is the default gateway.
	Gateway string `json:"gateway"`
	// Tried is the number of ports tried, and Reached those that answered: they
	// took the connection or, on another host, refused it.
	Tried   int      `json:"tried"`
	Reached []string `json:"reached"`
	// Resolved and Read are the answers for Name and Web, or the error.
	Resolved string `json:"resolved"`
	Read     string `json:"read"`
}

const (
	// scanners and scanTimeout bound a scan: the kernel limits how many refusals it
	// sends, so that most tries wait for the timeout.
	scanners    = 4096
	scanTimeout = 200 * time.Millisecond
	callTimeout = 5 * time.Second
)

func try(request Request) Report {
	report := Report{Gateway: gateway()}
	hosts := append(slices.Clone(request.Hosts), report.Gateway)
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	report.Tried, report.Reached = scan(hosts)
	// On a busy host the scan may miss a port that answers late. It is not to miss those
	// that are known: the steps' name server, and the services of the host.
	for _, address := range append([]string{net.JoinHostPort(report.Gateway, "53")}, request.Connect...) {
		if !slices.Contains(report.Reached, address) && answers(address, callTimeout) {
			report.Reached = append(report.Reached, address)
		}
	}
	for _, address := range request.UDP {
		_, port, _ := net.SplitHostPort(address)
		for _, target := range []string{address, net.JoinHostPort(report.Gateway, port)} {
			if echoes(target) {
				report.Reached = append(report.Reached, "udp "+target)
			}
		}
	}
	for _, name := range request.Abstract {
		if conn, err := net.DialTimeout("unix", "@"+name, callTimeout); err == nil {
			conn.Close()
			report.Reached = append(report.Reached, "@"+name)
		}
	}
	report.Resolved, report.Read = resolve(request.Name), read(request.Web)
	return report
}

// gateway returns the gateway of the default route, empty when there is none.
func gateway() string {
	file, err := os.Open("/proc/net/route")
	if err != nil {
		return ""
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 3 || fields[1] != "00000000" {
			continue
		}
		raw, err := hex.DecodeString(fields[2])
		if err == nil && len(raw) == 4 {
			var b [4]byte
			binary.LittleEndian.PutUint32(b[:], binary.BigEndian.Uint32(raw))
			return netip.AddrFrom4(b).String()
		}
	}
	return ""
}

func scan(hosts []string) (tried int, reached []string) {
	targets := make(chan string, scanners)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range scanners {
		wg.Go(func() {
			for target := range targets {
				if answers(target, scanTimeout) {
					mu.Lock()
					reached = append(reached, target)
					mu.Unlock()
				}
			}
		})
	}
	for port := 1; port <= 65535; port++ {
		for _, host := range hosts {
			targets <- net.JoinHostPort(host, strconv.Itoa(port))
			tried++
		}
	}
	close(targets)
	wg.Wait()
	slices.Sort(reached)
	return tried, reached
}

// answers reports whether a host answers at a TCP port. A step's own loopback
// refuses connections: there only a connection counts.
func answers(address string, timeout time.Duration) bool {
	conn, err := net.DialTimeout("tcp", address, timeout)
	if err == nil {
		conn.Close()
		return true
	}
	host, _, _ := net.SplitHostPort(address)
	ip, parseErr := netip.ParseAddr(host)
	own := parseErr == nil && ip.IsLoopback()
	return errors.Is(err, syscall.ECONNREFUSED) && !own
}

func echoes(address string) bool {
	conn, err := net.DialTimeout("udp", address, callTimeout)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("hello")); err != nil {
		return false
	}
	n, err := conn.Read(make([]byte, 16))
	return err == nil && n > 0
}

func resolve(name string) string {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupHost(ctx, name)
	if err != nil {
		return err.Error()
	}
	return strings.Join(addrs, ",")
}

func read(url string) string {
	client := http.Client{Timeout: callTimeout}
	response, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err != nil {
		return err.Error()
	}
	return string(text)
}
