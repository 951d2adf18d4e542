// Package protocodec encodes and decodes protobuf messages as BuildKit's programs do.
//
// The strings of BuildKit's messages need not be UTF-8: a file name or a build argument is
// whatever bytes its owner chose. BuildKit encodes its messages by generated code that does
// not check strings. The protobuf library does check them, and refuses such a message. Messages
// without that generated code, Kiln's own among them, are left to the protobuf library.
package protocodec

import "google.golang.org/protobuf/proto"

// generated is a message with the encoding that vtprotobuf generates.
type generated interface {
	SizeVT() int
	MarshalToSizedBufferVT(data []byte) (int, error)
	UnmarshalVT(data []byte) error
}

// Marshal encodes a message.
func Marshal(m proto.Message) ([]byte, error) {
	vt, ok := m.(generated)
	if !ok {
		return proto.Marshal(m)
	}
	data := make([]byte, vt.SizeVT())
	n, err := vt.MarshalToSizedBufferVT(data)
	if err != nil {
		return nil, err
	}
	return data[len(data)-n:], nil
}

// Unmarshal decodes a message, after it has reset m.
func Unmarshal(data []byte, m proto.Message) error {
	vt, ok := m.(generated)
	if !ok {
		return proto.Unmarshal(data, m)
	}
	proto.Reset(m)
	return vt.UnmarshalVT(data)
}
