package client_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
)

// BenchmarkUploadDir is how fast a directory leaves, to a server that does
// nothing with it.
func BenchmarkUploadDir(b *testing.B) {
	dir := write(b, map[string]string{"big": ""})
	const size = 256 << 20
	if err := os.Truncate(filepath.Join(dir, "big"), size); err != nil {
		b.Fatal(err)
	}
	c, _ := dial(b, &script{upload: func(stream builderv1.BuilderService_UploadContextServer) error {
		for {
			if _, err := stream.Recv(); errors.Is(err, io.EOF) {
				return stream.SendAndClose(&builderv1.UploadContextResponse{})
			} else if err != nil {
				return err
			}
		}
	}})
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.UploadDir(b.Context(), "web", dir); err != nil {
			b.Fatal(err)
		}
	}
}
