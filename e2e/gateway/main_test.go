// Package gateway_test tests BuildKit's API of the builder with unmodified clients and
// a real daemon.
package gateway_test

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
