// Package portowner finds out which process listens on a TCP address of this
// machine.
package portowner

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Owner is a process that listens on an address.
type Owner struct {
	// PID is the process id. 0: the process is not visible to this user.
	PID int
	// Command is its command line, shortened. Empty when PID is 0.
	Command string
}

// String is "pid 12 (nginx -g …)", or says that the owner is not visible.
func (o Owner) String() string {
	if o.PID == 0 {
		return "a process that this user cannot see"
	}
	return fmt.Sprintf("pid %d (%s)", o.PID, o.Command)
}

// longestCommand is how much of a command line is worth showing.
const longestCommand = 80

// Find returns who listens on addr, or on all addresses with its port. Not found
// is no error: the owner may have ended, or live in another network namespace.
func Find(addr netip.AddrPort) (Owner, bool) { return find("/proc", addr) }

func find(proc string, addr netip.AddrPort) (Owner, bool) {
	var inodes []string
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		inodes = append(inodes, listeners(filepath.Join(proc, table), addr)...)
	}
	if len(inodes) == 0 {
		return Owner{}, false
	}
	return holder(proc, inodes), true
}

// listeners returns the socket inodes of a table that listen on addr.
func listeners(table string, addr netip.AddrPort) []string {
	file, err := os.Open(table)
	if err != nil {
		return nil // A kernel without IPv6 has no tcp6.
	}
	defer file.Close()
	const stateListen = "0A"
	var inodes []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != stateListen {
			continue
		}
		local, ok := parse(fields[1])
		if !ok || local.Port() != addr.Port() {
			continue
		}
		if local.Addr() == addr.Addr().Unmap() || local.Addr().IsUnspecified() || addr.Addr().IsUnspecified() {
			inodes = append(inodes, fields[9])
		}
	}
	return inodes
}

// parse reads an address as the kernel writes it: the port in hexadecimal, the
// address as 32-bit words in the byte order of the (little-endian) machine.
func parse(text string) (netip.AddrPort, bool) {
	host, port, _ := strings.Cut(text, ":")
	raw, err := hex.DecodeString(host)
	if err != nil || len(raw)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(raw, 4) {
		slices.Reverse(word)
	}
	ip, ok := netip.AddrFromSlice(raw)
	number, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip.Unmap(), uint16(number)), true
}

// holder returns the first process that has one of the sockets open.
func holder(proc string, inodes []string) Owner {
	descriptors, err := filepath.Glob(filepath.Join(proc, "[0-9]*", "fd", "*"))
	if err != nil {
		return Owner{}
	}
	for _, descriptor := range descriptors {
		target, err := os.Readlink(descriptor)
		if err != nil {
			continue
		}
		inode, isSocket := strings.CutPrefix(target, "socket:[")
		if !isSocket || !slices.Contains(inodes, strings.TrimSuffix(inode, "]")) {
			continue
		}
		dir := filepath.Dir(filepath.Dir(descriptor))
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			return Owner{PID: pid, Command: command(dir)}
		}
	}
	return Owner{}
}

// command returns the command line of a process directory, or its name when
// there is none (kernel threads, zombies).
func command(dir string) string {
	raw, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	line := strings.TrimSpace(strings.ReplaceAll(string(raw), "\x00", " "))
	if err != nil || line == "" {
		name, _ := os.ReadFile(filepath.Join(dir, "comm"))
		line = strings.TrimSpace(string(name))
	}
	if runes := []rune(line); len(runes) > longestCommand {
		line = string(runes[:longestCommand-1]) + "…"
	}
	return line
}
