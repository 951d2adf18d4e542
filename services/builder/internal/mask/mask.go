// Package mask is a stand-in until the real one is merged.
package mask

type Masker struct{}

func New([][]byte) *Masker { return nil }

func (*Masker) Text(s string) string { return s }

func (*Masker) Stream() *Stream { return nil }

type Stream struct{}

func (*Stream) Write(b []byte) []byte { return b }
func (*Stream) Flush() []byte         { return nil }
