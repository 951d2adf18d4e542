package wire

import (
	"github.com/kilnbuild/kiln/pkg/config"
	"github.com/kilnbuild/kiln/pkg/fault"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	"github.com/kilnbuild/kiln/services/cachemanager/internal/policy"
)

// ReadPolicy reads a policy as people write it, YAML with the fields of the contract,
// and makes sure that it holds. Errors are INVALID_ARGUMENT faults of the field "text",
// with name, line and column of what is wrong.
func ReadPolicy(name, text string) (policy.Policy, error) {
	in := &cachemanagerv1.Policy{}
	doc, err := config.Decode(name, text, in)
	if err != nil {
		return policy.Policy{}, fault.Invalid("text", "", err.Error(), "mend what stands at these lines and columns; docs/guides/operator.md has examples")
	}
	p, err := Policy(in)
	if err == nil {
		_, err = policy.Resolve(p)
	}
	return p, doc.Explain(err, "text")
}
