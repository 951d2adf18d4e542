package main

import (
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	const pass = `{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}` + "\n"
	tests := map[string]struct {
		events string
		well   bool
		says   []string
	}{
		"passed": {
			events: pass + `{"Action":"pass","Package":"p","Elapsed":0.2}` + "\n",
			well:   true,
			says:   []string{"ok   p (1 tests, 0.2s)", "1 passed, 0 failed, 0 skipped"},
		},
		"a failed test shows its output": {
			events: pass + `{"Action":"output","Package":"p","Test":"TestB","Output":"the reason\n"}` + "\n" +
				`{"Action":"fail","Package":"p","Test":"TestB"}` + "\n" + `{"Action":"fail","Package":"p"}` + "\n",
			says: []string{"--- FAIL: p TestB\n    the reason", "FAIL p (2 tests", "1 passed, 1 failed, 0 skipped"},
		},
		"a skipped test is not well": {
			events: pass + `{"Action":"skip","Package":"p","Test":"TestB"}` + "\n",
			says:   []string{"1 passed, 0 failed, 1 skipped"},
		},
		"a package that does not build": {
			events: pass + `{"Action":"build-output","ImportPath":"q","Output":"q.go:1: undefined\n"}` + "\n" + `{"Action":"fail","Package":"q"}` + "\n",
			says:   []string{"q.go:1: undefined", "1 passed, 1 failed, 0 skipped"},
		},
		"a timeout shows the test that ran": {
			events: pass + `{"Action":"output","Package":"p","Test":"TestHangs","Output":"panic: test timed out\n"}` + "\n" + `{"Action":"fail","Package":"p"}` + "\n",
			says:   []string{"panic: test timed out", "1 passed, 1 failed, 0 skipped"},
		},
		"nothing ran": {
			events: `{"Action":"skip","Package":"p"}` + "\n",
			says:   []string{"no test ran", "0 passed, 0 failed, 0 skipped"},
		},
		"what go test says itself": {
			events: "go: no such module\n" + pass,
			well:   true,
			says:   []string{"go: no such module"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			s := newSummary(&out)
			if err := s.read(strings.NewReader(test.events)); err != nil {
				t.Fatal(err)
			}
			if well := s.finish(); well != test.well {
				t.Errorf("well = %v, want %v", well, test.well)
			}
			for _, want := range test.says {
				if !strings.Contains(out.String(), want) {
					t.Errorf("output lacks %q:\n%s", want, out.String())
				}
			}
		})
	}
}
