// Command protodeps writes the third-party .proto files that Kiln's contracts
// import, from the descriptors in the Go modules that the generated code links.
// So the text that buf reads and the Go code that runs are of one version, and
// generating needs no schema registry.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: protodeps DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "protodeps:", err)
		os.Exit(1)
	}
}

func write(dir string) error {
	files := []protoreflect.FileDescriptor{
		validate.File_buf_validate_validate_proto,
		status.File_google_rpc_status_proto,
	}
	for _, file := range files {
		path := filepath.Join(dir, file.Path())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		out, err := os.Create(path)
		if err != nil {
			return err
		}
		if err := (&protoprint.Printer{}).PrintProtoFile(file, out); err != nil {
			return fmt.Errorf("%s: %w", file.Path(), err)
		}
		if err := out.Close(); err != nil {
			return err
		}
	}
	return nil
}
