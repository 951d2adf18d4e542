package up

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestCheckFresh_RefusesBeforeTheDataDirectoryIsMade(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	taken := addresses{builder: listener.Addr().String()}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string]Options{
		"port": {Buildkitd: program, Registry: program}, "binary": {Buildkitd: "/not/there"}, "network": {StepNetwork: "none"},
	} {
		opts.DataDir = filepath.Join(t.TempDir(), "data")
		r := &runner{opts: opts, addrs: taken}
		if err := r.checkFresh(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := os.Stat(opts.DataDir); !os.IsNotExist(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
