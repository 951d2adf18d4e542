package stepnet

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/pkg/fault"
)

func TestPickSubnet_AvoidsWhatIsTaken(t *testing.T) {
	first, ok := pickSubnet("kiln-1", nil)
	if !ok || first.Bits() != 24 || !first.Addr().IsPrivate() {
		t.Fatalf("subnet %s, %v", first, ok)
	}
	if again, _ := pickSubnet("kiln-1", nil); again != first {
		t.Errorf("the same name got %s and then %s", first, again)
	}
	if other, _ := pickSubnet("kiln-2", nil); other == first {
		t.Errorf("two names got %s", first)
	}
	one := netip.PrefixFrom(first.Addr().Next(), 32)
	if next, ok := pickSubnet("kiln-1", []netip.Prefix{one}); !ok || next.Overlaps(one) {
		t.Errorf("%s is taken, and it picked %s", one, next)
	}
	ten, twelve := netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12")
	if next, ok := pickSubnet("kiln-1", []netip.Prefix{ten, twelve}); !ok || !netip.MustParsePrefix("192.168.0.0/16").Overlaps(next) {
		t.Errorf("with 10/8 and 172.16/12 taken it picked %s", next)
	}
	if next, ok := pickSubnet("kiln-1", []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1")}); ok {
		t.Errorf("with all taken it picked %s", next)
	}
}

func TestCheck_RefusesWhatCannotWork(t *testing.T) {
	good := Config{Bridge: "kiln0", Subnet: netip.MustParsePrefix("10.213.0.0/24")}
	for name, change := range map[string]func(*Config){
		"no bridge":           func(c *Config) { c.Bridge = "" },
		"a long bridge":       func(c *Config) { c.Bridge = "kiln-0123456789a" },
		"IPv6":                func(c *Config) { c.Subnet = netip.MustParsePrefix("fd00::/64") },
		"a subnet of 2 hosts": func(c *Config) { c.Subnet = netip.MustParsePrefix("10.213.0.0/30") },
		"a loopback resolver": func(c *Config) { c.DNS = []netip.Addr{netip.MustParseAddr("127.0.0.53")} },
		"an IPv6 resolver":    func(c *Config) { c.DNS = []netip.Addr{netip.MustParseAddr("2001:db8::1")} },
	} {
		cfg := good
		change(&cfg)
		if err := cfg.check(); fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	if got := good.Nameservers(); len(got) != 1 || got[0].String() != "10.213.0.1" {
		t.Errorf("name servers %v", got)
	}
}

func TestCNI_IsReadBackAsWritten(t *testing.T) {
	cfg := Config{Bridge: "kiln0", Subnet: netip.MustParsePrefix("10.213.0.0/24")}
	path := filepath.Join(t.TempDir(), "cni.conflist")
	for _, forward := range []bool{false, true} {
		text, err := cfg.CNI("/var/lib/x", forward)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), `"firewall"`) != forward {
			t.Errorf("forward=%v: %s", forward, text)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if bridge, subnet, err := ReadCNI(path); err != nil || bridge != cfg.Bridge || subnet != cfg.Subnet {
			t.Errorf("%s, %s, %v", bridge, subnet, err)
		}
	}
	for name, text := range map[string]string{"no JSON": "x", "no bridge": `{"plugins":[{"type":"ptp"}]}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ReadCNI(path); fault.KindOf(err) != fault.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFindPlugins_SaysWhatToInstall(t *testing.T) {
	empty, full := t.TempDir(), t.TempDir()
	for _, name := range []string{"bridge", "host-local", "loopback"} {
		if err := os.WriteFile(filepath.Join(full, name), nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if dir, err := FindPlugins([]string{empty, full}); err != nil || dir != full {
		t.Errorf("%s, %v", dir, err)
	}
	_, err := FindPlugins([]string{empty})
	if line := fault.Line(err); !strings.Contains(line, "containernetworking-plugins") || !strings.Contains(line, "--step-network host") {
		t.Errorf("it says %s", line)
	}
}

func TestParseAllowed_LeavesIPv6Out(t *testing.T) {
	got, err := ParseAllowed([]string{"10.20.30.40/16", "fd00::/8"})
	if err != nil || len(got) != 1 || got[0].String() != "10.20.0.0/16" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := ParseAllowed([]string{"10.20.0.0"}); fault.KindOf(err) != fault.InvalidArgument {
		t.Errorf("no network: %v", err)
	}
}
