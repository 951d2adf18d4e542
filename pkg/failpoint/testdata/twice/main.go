// Command twice comes by two failpoints, twice.
package main

import (
	"fmt"

	"github.com/kilnbuild/kiln/pkg/failpoint"
)

const second failpoint.Name = "twice.second"

func main() {
	for range 2 {
		fmt.Println("first")
		failpoint.Hit("twice.first")
		fmt.Println("second")
		failpoint.Hit(second)
	}
}
