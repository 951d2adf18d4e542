package stepnet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	// portsTimeout bounds the wait for the end of namespaces that were removed.
	portsTimeout = 3 * time.Second
	portsEvery   = 20 * time.Millisecond
)

// ensureBridge makes the bridge with the gateway's address. A bridge of an earlier
// process is used again if its address is the same.
func (c Config) ensureBridge() error {
	link, err := netlink.LinkByName(c.Bridge)
	if err == nil && !c.hasGateway(link) {
		if err := netlink.LinkDel(link); err != nil {
			return fmt.Errorf("removing the old bridge: %w", err)
		}
		err = netlink.LinkNotFoundError{}
	}
	if err != nil {
		if _, missing := errors.AsType[netlink.LinkNotFoundError](err); !missing {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = c.Bridge
		attrs.HardwareAddr = c.hardwareAddr()
		link = &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		// Steps have IPv4 only. Without this the bridge would have a link-local address.
		// Where /proc is read-only, the rules alone refuse IPv6.
		_ = os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", c.Bridge, "disable_ipv6"), []byte("1"), 0o600)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("the network interface %s is no bridge", c.Bridge)
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: c.gatewayNet()}); err != nil {
		return fmt.Errorf("giving it the address %s: %w", c.Gateway(), err)
	}
	return netlink.LinkSetUp(link)
}

// hardwareAddr returns a locally administered address. Without one of its own a
// bridge changes its address with its ports, and steps lose their gateway for a moment.
func (c Config) hardwareAddr() net.HardwareAddr {
	sum := sha256.Sum256([]byte(c.Bridge))
	const local = 0x02
	return append(net.HardwareAddr{local}, sum[:5]...)
}

func (c Config) gatewayNet() *net.IPNet {
	return &net.IPNet{IP: c.Gateway().AsSlice(), Mask: net.CIDRMask(c.Subnet.Bits(), 32)}
}

// setBridge sets the bridge up, or down, when nothing passes between steps and the host.
func (c Config) setBridge(up bool) error {
	link, err := netlink.LinkByName(c.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", c.Bridge, err)
	}
	if up {
		return netlink.LinkSetUp(link)
	}
	return netlink.LinkSetDown(link)
}

func (c Config) hasGateway(link netlink.Link) bool {
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return false
	}
	for _, addr := range addrs {
		if addr.IPNet.String() == c.gatewayNet().String() {
			return true
		}
	}
	return false
}

// removeBridge removes the bridge unless something is connected to it, and reports
// whether it is gone.
func (c Config) removeBridge() (bool, error) {
	link, err := netlink.LinkByName(c.Bridge)
	if err != nil {
		_, missing := errors.AsType[netlink.LinkNotFoundError](err)
		if missing {
			err = nil
		}
		return missing, err
	}
	// The kernel removes the interfaces of a namespace some time after its end.
	deadline := time.NewTimer(portsTimeout)
	defer deadline.Stop()
	poll := time.NewTicker(portsEvery)
	defer poll.Stop()
	for {
		connected, err := hasPorts(link)
		if err != nil {
			return false, err
		}
		if !connected {
			return true, netlink.LinkDel(link)
		}
		select {
		case <-deadline.C:
			return false, nil
		case <-poll.C:
		}
	}
}

func hasPorts(bridge netlink.Link) (bool, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(links, func(port netlink.Link) bool {
		return port.Attrs().MasterIndex == bridge.Attrs().Index
	}), nil
}

// isolatePorts makes each port of the bridge an isolated one, as soon as it is
// there: steps that run at the same time reach the gateway, and not one another.
func (n *Network) isolatePorts(ctx context.Context) error {
	bridge, err := netlink.LinkByName(n.cfg.Bridge)
	if err != nil {
		return err
	}
	updates := make(chan netlink.LinkUpdate, 256)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{ListExisting: true}); err != nil {
		return fmt.Errorf("watching for network interfaces: %w", err)
	}
	isolated := map[int]bool{} // Setting it is an update, too.
	for {
		select {
		case <-ctx.Done():
			return nil
		case update, ok := <-updates:
			if !ok {
				return errors.New("the kernel no longer says which network interfaces there are")
			}
			index := update.Attrs().Index
			if update.Attrs().MasterIndex != bridge.Attrs().Index {
				delete(isolated, index)
				continue
			}
			if isolated[index] {
				continue
			}
			isolated[index] = true
			if err := netlink.LinkSetIsolated(update.Link, true); err != nil {
				delete(isolated, index)
				n.log.WarnContext(ctx, "cannot isolate a step from the other steps; it may have ended", "interface", update.Attrs().Name, "error", err)
			}
		}
	}
}
