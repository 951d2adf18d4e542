package show

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/kilnbuild/kiln/pkg/fault"
)

var planDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// CheckPlan returns an error unless text, the value of --plan, is the digest of a plan or empty.
// command is the one that prints digests.
func CheckPlan(text, command string) error {
	if text == "" || planDigest.MatchString(text) {
		return nil
	}
	return fault.Invalid("--plan", text, fmt.Sprintf("%q is not the digest of a plan", text),
		fmt.Sprintf("--plan takes the whole digest, sha256:…, that `%s` prints", command))
}

// AddDuration adds a flag that takes a duration such as 12h or, in days, 7d.
func AddDuration(flags *pflag.FlagSet, value *time.Duration, name, usage string) {
	flags.Var((*duration)(value), name, usage)
}

// duration is a flag's value.
type duration time.Duration

var days = regexp.MustCompile(`^[0-9]{1,5}d$`)

// Set implements pflag.Value.
func (d *duration) Set(text string) error {
	if days.MatchString(text) {
		n, _ := strconv.Atoi(strings.TrimSuffix(text, "d")) // five digits
		*d = duration(time.Duration(n) * 24 * time.Hour)
		return nil
	}
	span, err := time.ParseDuration(text)
	if err != nil {
		return fmt.Errorf("it is no duration; write it like 7d or 12h")
	}
	*d = duration(span)
	return nil
}

// String implements pflag.Value. Zero is "0", which the help leaves out.
func (d *duration) String() string {
	if *d == 0 {
		return "0"
	}
	return time.Duration(*d).String()
}

// Type implements pflag.Value.
func (d *duration) Type() string { return "duration" }
