package synckey

import "testing"

func open(t *testing.T, dir string) Keys {
	t.Helper()
	keys, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func TestKeys_StayForTheSameInputsAndStateDirectory(t *testing.T) {
	dir := t.TempDir()
	before, after, elsewhere := open(t, dir), open(t, dir), open(t, t.TempDir())
	if a, b := before.Client("ann", "web", "key"), after.Client("ann", "web", "key"); a != b {
		t.Errorf("after a restart %s became %s", a, b)
	}
	if before.Client("ann", "web", "key") == elsewhere.Client("ann", "web", "key") {
		t.Error("another builder derives the same key")
	}
}

func TestKeys_DifferInEveryInput(t *testing.T) {
	keys := open(t, t.TempDir())
	seen := map[string][]string{}
	for _, in := range [][]string{{"ann", "web", "key"}, {"eve", "web", "key"}, {"ann", "api", "key"}, {"ann", "web", "other"}, {"annweb", "", "key"}, {"", "annweb", "key"}} {
		for _, key := range []string{keys.Client(in[0], in[1], in[2]), keys.Build(in[0], in[1], in[2])} {
			if seen[key] != nil {
				t.Errorf("%q and %q have one key", seen[key], in)
			}
			seen[key] = in
		}
	}
}
