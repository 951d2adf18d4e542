// Package policyfile reads the policies that commands are given.
package policyfile

import (
	"io"
	"os"

	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/pkg/config"
	"github.com/kilnbuild/kiln/pkg/fault"
)

// Text is the text of a file, or of in for "-".
func Text(in io.Reader, file string) (string, error) {
	data, err := []byte(nil), error(nil)
	if file == "-" {
		data, err = io.ReadAll(in)
	} else {
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return "", fault.Wrap(err, fault.InvalidArgument, "", "the policy cannot be read", "name a file that there is, or - for standard input")
	}
	return string(data), nil
}

// Read reads the policy of a file, or of in for "-", into p. The remedy says where there is
// one that holds.
func Read(in io.Reader, file string, p proto.Message, remedy string) error {
	text, err := Text(in, file)
	if err != nil {
		return err
	}
	if _, err := config.Decode(file, text, p); err != nil {
		return fault.New(fault.InvalidArgument, "", err.Error(), remedy)
	}
	return nil
}
