package wire

import (
	"github.com/kilnbuild/kiln/pkg/config"
	"github.com/kilnbuild/kiln/pkg/fault"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
	"github.com/kilnbuild/kiln/services/janitor/internal/policy"
)

// ReadPolicy reads a policy as people write it, YAML with the fields of the contract, and
// makes sure that it holds. Errors are INVALID_ARGUMENT faults of the field "text", with
// name, line and column of what is wrong.
func ReadPolicy(name, text string) (policy.Policy, error) {
	in := &janitorv1.Policy{}
	doc, err := config.Decode(name, text, in)
	if err != nil {
		return policy.Policy{}, fault.Invalid("text", "", err.Error(), "mend what stands at these lines and columns; docs/guides/operator.md has examples")
	}
	p := Policy(in) // with its disabled rules, which are a part of what was written
	_, err = policy.Resolve(p)
	return p, doc.Explain(err, "text")
}
