package stepnet

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// closed lists the IPv4 networks that are not the internet, by IANA's registry of
// special-purpose addresses, and the metadata services with public addresses.
var closed = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
	"192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
	"168.63.129.16/32", // Azure's wire server
)

func prefixes(texts ...string) []netip.Prefix {
	parsed := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		parsed = append(parsed, netip.MustParsePrefix(text))
	}
	return parsed
}

// ruleset is the packet filter: the rules of each chain, in their order. It is as if
// nft had been given:
//
//	chain input {                           # to the host itself, by whatever address
//	  iifname BRIDGE meta nfproto ipv6 drop
//	  iifname BRIDGE ip saddr != SUBNET drop
//	  iifname BRIDGE ip daddr GATEWAY udp/tcp dport 53 accept   # the DNS forwarder
//	  iifname BRIDGE ip daddr GATEWAY reject
//	  iifname BRIDGE ip daddr DENIED reject
//	  iifname BRIDGE ip daddr ALLOWED accept
//	  iifname BRIDGE reject
//	}
//	chain forward {                         # to others
//	  oifname BRIDGE ct state established,related accept
//	  oifname BRIDGE drop
//	  iifname BRIDGE meta nfproto ipv6 drop
//	  iifname BRIDGE ip saddr != SUBNET drop
//	  iifname BRIDGE ip daddr DNS udp/tcp dport 53 accept
//	  iifname BRIDGE ip daddr DENIED reject
//	  iifname BRIDGE ip daddr ALLOWED accept
//	  iifname BRIDGE ct status dnat reject  # a published port of this host
//	  iifname BRIDGE ip daddr CLOSED reject
//	}
//	chain postrouting { ip saddr SUBNET oifname != BRIDGE masquerade }
//
// The table is Kiln's own. A drop in it is final; an accept is not: the host's other
// rules hold, too.
type ruleset struct{ input, forward, postrouting [][]expr.Any }

func (c Config) rules() ruleset {
	in, out := ifname(expr.MetaKeyIIFNAME, c.Bridge, expr.CmpOpEq), ifname(expr.MetaKeyOIFNAME, c.Bridge, expr.CmpOpEq)
	gateway := netip.PrefixFrom(c.Gateway(), 32)
	var r ruleset
	for _, chain := range []*[][]expr.Any{&r.input, &r.forward} {
		if chain == &r.forward {
			*chain = append(*chain, rule(out, establishedState(), accept()), rule(out, drop()))
		}
		*chain = append(*chain, rule(in, ipv6(), drop()), rule(in, source(c.Subnet, expr.CmpOpNeq), drop()))
	}
	if len(c.DNS) == 0 {
		r.input = append(r.input, dns(in, gateway)...)
	}
	r.input = append(r.input, rule(in, destination(gateway), reject()))
	for _, server := range c.DNS {
		r.input = append(r.input, dns(in, netip.PrefixFrom(server, 32))...)
		r.forward = append(r.forward, dns(in, netip.PrefixFrom(server, 32))...)
	}
	for _, network := range c.Deny {
		r.input = append(r.input, rule(in, destination(network), reject()))
		r.forward = append(r.forward, rule(in, destination(network), reject()))
	}
	for _, network := range c.Allow {
		r.input = append(r.input, rule(in, destination(network), accept()))
		r.forward = append(r.forward, rule(in, destination(network), accept()))
	}
	r.input = append(r.input, rule(in, reject()))
	r.forward = append(r.forward, rule(in, translated(), reject()))
	for _, network := range closed {
		r.forward = append(r.forward, rule(in, destination(network), reject()))
	}
	away := ifname(expr.MetaKeyOIFNAME, c.Bridge, expr.CmpOpNeq)
	r.postrouting = [][]expr.Any{rule(source(c.Subnet, expr.CmpOpEq), away, masquerade())}
	return r
}

// installRules replaces the table, in one transaction: packets meet the old rules or
// the new ones.
func (c Config) installRules() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	rules := c.rules()
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: c.table()}
	conn.AddTable(table) // So that there is one to delete.
	conn.DelTable(table)
	conn.AddTable(table)
	for _, chain := range []struct {
		spec  nftables.Chain
		rules [][]expr.Any
	}{
		{nftables.Chain{Name: "input", Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Type: nftables.ChainTypeFilter}, rules.input},
		{nftables.Chain{Name: "forward", Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Type: nftables.ChainTypeFilter}, rules.forward},
		{nftables.Chain{Name: "postrouting", Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource, Type: nftables.ChainTypeNAT}, rules.postrouting},
	} {
		spec := chain.spec
		spec.Table = table
		added := conn.AddChain(&spec)
		for _, exprs := range chain.rules {
			conn.AddRule(&nftables.Rule{Table: table, Chain: added, Exprs: exprs})
		}
	}
	return conn.Flush()
}

// rulesInForce reports whether the table has as many rules as were installed.
func (c Config) rulesInForce() (bool, error) {
	conn, err := nftables.New()
	if err != nil {
		return false, err
	}
	want := c.rules()
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: c.table()}
	for chain, rules := range map[string]int{"input": len(want.input), "forward": len(want.forward), "postrouting": len(want.postrouting)} {
		found, err := conn.GetRules(table, &nftables.Chain{Name: chain, Table: table})
		if err != nil || len(found) != rules {
			return false, err
		}
	}
	return true, nil
}

func (c Config) removeRules() error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: c.table()}
	conn.AddTable(table) // So that there is one to delete.
	conn.DelTable(table)
	return conn.Flush()
}

// The parts of rules. They use one register of the kernel's virtual machine.

func rule(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, part := range parts {
		all = append(all, part...)
	}
	return all
}

func compare(op expr.CmpOp, data ...byte) expr.Any { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func ifname(key expr.MetaKey, name string, op expr.CmpOp) []expr.Any {
	padded := make([]byte, maxBridgeName+1)
	copy(padded, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, compare(op, padded...)}
}

func protocol(family byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, compare(expr.CmpOpEq, family)}
}

func ipv6() []expr.Any { return protocol(unix.NFPROTO_IPV6) }

// Offsets of the addresses in the header of IPv4.
const sourceOffset, destinationOffset = 12, 16

func address(offset uint32, network netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := make([]byte, 4)
	for bit := range network.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	base := network.Masked().Addr().As4()
	return rule(protocol(unix.NFPROTO_IPV4), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		compare(op, base[:]...),
	})
}

func source(network netip.Prefix, op expr.CmpOp) []expr.Any {
	return address(sourceOffset, network, op)
}

func destination(network netip.Prefix) []expr.Any {
	return address(destinationOffset, network, expr.CmpOpEq)
}

// dns accepts queries to a name server, by UDP and TCP.
func dns(in []expr.Any, server netip.Prefix) [][]expr.Any {
	var rules [][]expr.Any
	for _, transport := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		rules = append(rules, rule(in, destination(server), []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, compare(expr.CmpOpEq, transport),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, compare(expr.CmpOpEq, 0, dnsPort),
		}, accept()))
	}
	return rules
}

func conntrack(key expr.CtKey, mask byte) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(uint32(mask)), Xor: make([]byte, 4)},
		compare(expr.CmpOpNeq, 0, 0, 0, 0),
	}
}

func establishedState() []expr.Any {
	return conntrack(expr.CtKeySTATE, byte(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED))
}

// statusDNAT is IPS_DST_NAT of the kernel: the connection's destination was rewritten.
const statusDNAT = 1 << 5

func translated() []expr.Any { return conntrack(expr.CtKeySTATUS, statusDNAT) }

func accept() []expr.Any     { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any       { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// reject answers, so that a step that tries fails at once.
func reject() []expr.Any {
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
}
