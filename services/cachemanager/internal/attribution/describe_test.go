package attribution

import "testing"

// Descriptions and names as buildkitd v0.34 gave them.
func TestDescribes(t *testing.T) {
	for _, c := range []struct {
		description, step string
		want              bool
	}{
		{"[4/7] WORKDIR /w", "[4/7] WORKDIR /w", true},
		{"[4/7] WORKDIR /w", "[4/7] WORKDIR /", false},
		{"mount / from exec /bin/sh -c make", "[2/3] RUN make", true},
		{"mount / from exec /bin/sh -c make", "[build 2/3] RUN --network=none --mount=type=cache,target=/c make", true},
		{"mount / from exec /bin/sh -c make install", "[2/3] RUN make", false},
		{"mount / from exec /bin/sh -c cd x && make", "[2/3] RUN make", false},
		{"mount / from exec /bin/bash -eo pipefail -c make", "[2/3] RUN make", true},
		{"mount /out from exec make", "make", true}, // LLB without a Dockerfile
		{`cached mount /c from exec /bin/sh -c make with id "//c"`, "[2/3] RUN --mount=type=cache,target=/c make", true},
		{`mount / from exec /bin/sh -c echo "$X" ${Y} $Z >/one`, `[2/7] RUN echo "val" a b $Z >/one`, true},
		{`mount / from exec /bin/sh -c echo "$X" ${Y} $Z >/one`, `[2/7] RUN echo "val" a b $Z >/two`, false},
		{"mount / from exec /bin/sh -c echo 'three  x'    && echo \"q\" >/three", `[5/7] RUN echo 'three  x'    && echo "q" >/three`, true},
		{"mount / from exec /bin/sh -c echo hi\necho ho\n", "[3/7] RUN <<EOF (echo hi...)", true},
		{"mount / from exec /bin/sh -c echo ho\necho hi\n", "[3/7] RUN <<EOF (echo hi...)", false},
		{"mount / from exec /bin/busybox true a b", `[7/7] RUN ["/bin/busybox", "true", "a b"]`, true},
		{"mount / from exec /bin/busybox true a", `[7/7] RUN ["/bin/busybox", "true", "a b"]`, false},
		{"local source for context", "[internal] load build context", true},
		{"local source for context", "[internal] load .dockerignore", true},
		{"local source for dockerfile", "[internal] load build definition from Dockerfile", true},
		{"local source for context", "[internal] load build definition from Dockerfile", false},
		{`cached mount /c from exec /bin/sh -c make with id "//c"`, "[2/3] RUN --mount=type=cache,target=/d make", false},
		{"", "", false},
		{"pulled from r/base:1", "[1/7] FROM r/base:1", false},
	} {
		if got := describes(c.description, c.step); got != c.want {
			t.Errorf("%q, %q: %t", c.description, c.step, got)
		}
	}
}

// Neither comes from Kiln.
func FuzzDescribes(f *testing.F) {
	f.Add("mount / from exec /bin/sh -c $X$Y", "[1/2] RUN a")
	f.Fuzz(func(_ *testing.T, description, step string) { describes(description, step) })
}
