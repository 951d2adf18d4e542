package contextstore

import (
	"fmt"
	"strings"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/disk"
)

// maxShown is how many bytes of a name that a caller chose are shown.
const maxShown = 200

func shown(name string) string {
	if len(name) > maxShown {
		name = name[:maxShown] + "…"
	}
	return name
}

// invalid refuses an archive as a whole.
func invalid(message, remedy string) *fault.Error {
	return fault.New(fault.InvalidArgument, "ARCHIVE_INVALID", message, remedy)
}

// refused refuses an archive for one of its entries: "entry "x" " and what.
func refused(name, what, remedy string) *fault.Error {
	err := invalid(fmt.Sprintf("the archive's entry %q %s", shown(name), what), remedy)
	err.Metadata = map[string]string{"entry": strings.ToValidUTF8(shown(name), "?")}
	return err
}

// over refuses an archive for a bound of the configuration.
func over(key, message string) *fault.Error {
	err := fault.New(fault.ResourceExhausted, "LIMIT_REACHED", message,
		"leave out of the context what the build does not read, or have the builder's contexts."+key+" raised")
	err.Metadata = map[string]string{"limit": "contexts." + key}
	return err
}

func absent(digest string) *fault.Error {
	err := fault.New(fault.NotFound, "NOT_FOUND", fmt.Sprintf("there is no stored context %s", shown(digest)),
		"upload it: contexts that were not used for a while are removed")
	err.Value = digest
	return err
}

func mismatch(want, got string) *fault.Error {
	return fault.New(fault.InvalidArgument, "DIGEST_MISMATCH",
		fmt.Sprintf("the archive's bytes are %s, and %s was announced", got, want),
		"send the bytes that the digest was made of, as they are, or leave the digest out")
}

// onDisk explains an error of the store's own files.
func onDisk(err error) error { return disk.Explain("context store", err) }
