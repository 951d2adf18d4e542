package mask

import (
	"bytes"
	"encoding/base64"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func values(texts ...string) [][]byte {
	var all [][]byte
	for _, text := range texts {
		all = append(all, []byte(text))
	}
	return all
}

func TestText(t *testing.T) {
	key := "-----BEGIN KEY-----\r\nAAAAB3NzaC1yc2E\r\nshort\r\n-----END KEY-----\r\n"
	for name, test := range map[string]struct {
		values []string
		text   string
		want   string
	}{
		"as it is":                {[]string{"hunter22"}, "the password is hunter22, yes hunter22!", "the password is ***, yes ***!"},
		"alone":                   {[]string{"hunter22"}, "hunter22", "***"},
		"only a part":             {[]string{"hunter22"}, "hunter2 unter22", "hunter2 unter22"},
		"again from the middle":   {[]string{"hunhunter"}, "hunhunhunter", "hun***"},
		"overlapping values":      {[]string{"abcdef", "efghij"}, "<abcdefghij>", "<***>"},
		"one in the other":        {[]string{"abcdef", "bcdef", "cdefgh"}, "<abcdef> <bcdef> <abcdefgh>", "<***> <***> <***>"},
		"in the beginning of one": {[]string{"bcde", "abcdefgh"}, "<abcde> <abcdefg>", "<a***> <a***fg>"},
		"itself overlapping":      {[]string{"aabaa"}, "<aabaabaa>", "<***>"},
		"side by side":            {[]string{"abcd"}, "<abcdabcd>", "<***>"},
		"shortest":                {[]string{"abcd", "xyz"}, "abcd xyz", "*** xyz"},
		"white space around":      {[]string{" abcd\n", "\n\n\n\n\n"}, "<abcd>\n\n\n\n\n\n", "<***>\n\n\n\n\n\n"},
		"lines":                   {[]string{key}, "B3NzaC1yc2E AAAAB3NzaC1yc2E short -----END KEY-----", "B3NzaC1yc2E *** short ***"},
		"all lines":               {[]string{key}, "<" + strings.TrimSpace(key) + ">", "<***>"},
		"none":                    {nil, "text", "text"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := New(values(test.values...)).Text(test.text); got != test.want {
				t.Errorf("%q became %q, want %q", test.text, got, test.want)
			}
		})
	}
}

func TestFlushEndsTheText(t *testing.T) {
	s := New(values("hunter22")).Stream()
	var got []string
	for _, chunk := range []string{"hun", "ter22", "hunter22", "hunter22"} {
		got = append(got, string(s.Write([]byte(chunk)))+string(s.Flush()))
	}
	if strings.Join(got, " ") != "hun ter22 *** ***" {
		t.Errorf("%q", got)
	}
}

func TestNothingToHide(t *testing.T) {
	m := New(values("abc", "   abc   ", ""))
	if m != nil {
		t.Fatal("a masker of nothing")
	}
	if s := m.Stream(); string(s.Write([]byte("text"))) != "text" || s.Flush() != nil {
		t.Error("a stream of a nil masker changes the text")
	}
}

// In base64, a value leaves at most the letters at its ends, which hold bits of
// its neighbours too.
func TestBase64(t *testing.T) {
	value := "correct horse\xff\xfe\xfb battery staple\n"
	m := New(values(value))
	for name, encoding := range map[string]*base64.Encoding{
		"std": base64.StdEncoding, "raw": base64.RawStdEncoding, "url": base64.URLEncoding, "raw url": base64.RawURLEncoding,
	} {
		for _, before := range []string{"", "u", "us", "user", "user:"} {
			for _, after := range []string{"", "\n", "!", "/path"} {
				text := encoding.EncodeToString([]byte(before + strings.TrimSpace(value) + after))
				got := m.Text(text)
				if rest := len(got) - len(Replacement); !strings.Contains(got, Replacement) || rest > (len(before)+len(after))*4/3+6 {
					t.Errorf("%s of %q and %q around it: %q of %q is left", name, before, after, got, text)
				}
			}
		}
	}
	if got := m.Text(base64.StdEncoding.EncodeToString([]byte(value))); got != "***=" {
		t.Errorf("alone: %q", got)
	}
}

func TestBase64InLines(t *testing.T) {
	value := bytes.Repeat([]byte("0123456789abcdefghijklmnopqrstuvwxyz"), 10)
	m := New([][]byte{value})
	for _, width := range []int{64, 76} {
		text := base64.StdEncoding.EncodeToString(value)
		var wrapped strings.Builder
		for len(text) > 0 {
			n := min(width, len(text))
			wrapped.WriteString(text[:n] + "\n")
			text = text[n:]
		}
		if got := strings.Trim(m.Text(wrapped.String()), "*\n"); got != "" {
			t.Errorf("lines of %d: %q is left", width, got)
		}
	}
}

// simple masks a text in the plainest way.
func simple(secrets [][]byte, text []byte) []byte {
	hidden := make([]bool, len(text))
	for _, secret := range secrets {
		for _, form := range forms(secret) {
			for at := range text {
				if bytes.HasPrefix(text[at:], form) {
					for i := range form {
						hidden[at+i] = true
					}
				}
			}
		}
	}
	var out []byte
	for i, b := range text {
		switch {
		case !hidden[i]:
			out = append(out, b)
		case i == 0 || !hidden[i-1]:
			out = append(out, Replacement...)
		}
	}
	return out
}

// stream masks a text in chunks of the given sizes.
func stream(m *Masker, text []byte, sizes []int) []byte {
	s, out := m.Stream(), []byte{}
	for _, size := range sizes {
		size = min(size, len(text))
		out = append(out, s.Write(bytes.Clone(text[:size]))...)
		text = text[size:]
	}
	out = append(out, s.Write(text)...)
	return append(out, s.Flush()...)
}

// For any values, any text and any chunks, the output is what the plainest way
// makes of the whole, and holds no value.
func TestAnyTextInAnyChunks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		letters := rapid.SampledFrom([]byte("aab \n"))
		if rapid.Bool().Draw(t, "stars") {
			letters = rapid.SampledFrom([]byte("a*"))
		}
		secrets := rapid.SliceOfN(rapid.SliceOfN(letters, 0, 24), 0, 5).Draw(t, "values")
		text := rapid.SliceOfN(letters, 0, 80).Draw(t, "text")
		for _, secret := range secrets { // or most texts would hold none
			if rapid.Bool().Draw(t, "insert") {
				at := rapid.IntRange(0, len(text)).Draw(t, "at")
				if rapid.Bool().Draw(t, "encode") {
					secret = base64.StdEncoding.AppendEncode(nil, secret)
				}
				text = append(append(bytes.Clone(text[:at]), secret...), text[at:]...)
			}
		}
		sizes := rapid.SliceOfN(rapid.IntRange(0, 9), 0, 20).Draw(t, "chunks")
		m, want := New(secrets), simple(secrets, text)
		if got := stream(m, text, sizes); !bytes.Equal(got, want) {
			t.Fatalf("in chunks: %q, want %q", got, want)
		}
		if got := m.Text(string(text)); got != string(want) {
			t.Fatalf("whole: %q, want %q", got, want)
		}
		for _, secret := range secrets {
			secret = bytes.TrimSpace(secret)
			// A value with stars may come to be beside a replacement; that tells nothing.
			if len(secret) >= MinValue && !bytes.Contains(secret, []byte("*")) && bytes.Contains(want, secret) {
				t.Fatalf("%q holds %q", want, secret)
			}
		}
	})
}

func FuzzStream(f *testing.F) {
	f.Add([]byte("hunter22"), []byte("line one is long\nline two\n"), []byte("a hunter22 line one is long"), uint8(3))
	f.Add([]byte("aabaa"), []byte("abaab"), []byte("aabaabaabaaab"), uint8(1))
	f.Fuzz(func(t *testing.T, first, second, text []byte, size uint8) {
		if len(first) > 200 || len(second) > 200 || len(text) > 2000 {
			return
		}
		secrets := [][]byte{first, second}
		if got, want := stream(New(secrets), text, slices.Repeat([]int{int(size)}, 100)), simple(secrets, text); !bytes.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}

// A value that repeats itself, in a text that almost does, byte by byte: what is
// slow in the plain way.
func TestTimeIsLinear(t *testing.T) {
	value := append(bytes.Repeat([]byte("a"), 400<<10), 'b')
	text := bytes.Repeat([]byte("a"), 2<<20)
	start := time.Now()
	s := New([][]byte{value, []byte("aaaaaaaac")}).Stream()
	for i := range text {
		s.Write(text[i : i+1])
	}
	if s.Flush(); time.Since(start) > 10*time.Second {
		t.Errorf("it took %s", time.Since(start))
	}
}

// A pass over text without secrets, and the memory for one large value.
func BenchmarkMasker(b *testing.B) {
	text := bytes.Repeat([]byte("#8 0.412 fetch https://deb.example.org/pool/main/c/curl\n"), 1000)
	m := New(values("hunter22", "ghp_0123456789abcdefghijklmnopqrstuvwxyz", "another secret value"))
	b.Run("text", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			s := m.Stream()
			s.Write(text)
			s.Flush()
		}
	})
	for name, size := range map[string]int{"new 16 KiB": MaxEncoded, "new 500 KiB": 500 << 10} {
		value := make([]byte, size)
		for i := range value {
			value[i] = byte(i*i>>7 + i)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				New([][]byte{value})
			}
		})
	}
}
