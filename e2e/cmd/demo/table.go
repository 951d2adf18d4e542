package main

import (
	"fmt"
	"io"
	"strings"
)

// printTable shows the figures beside the guide's and buildctl's.
func printTable(w io.Writer, f *figures) {
	fmt.Fprintf(w, "\n%-36s %8s %12s %12s %16s\n", "", "guide", "kiln", "buildctl", "off, by kiln")
	for _, row := range []struct {
		what                  string
		guide, kiln, buildctl float64
		promised, reduction   float64
		off                   bool
	}{
		{"from nothing", guideCold, f.Cold, f.buildctlCold, 0, 0, false},
		{"again, unchanged", guideWarm, f.Warm, f.BuildctlWarm, promisedWarm, f.WarmReduction, true},
		{"registry cache, daemon with nothing", guideRegistry, f.Registry, f.buildctlRegistry, promisedRegistry, f.RegistryReduction, true},
	} {
		off := ""
		if row.off {
			off = fmt.Sprintf("%.1f %% (>%.0f)", 100*row.reduction, 100*row.promised)
		}
		fmt.Fprintf(w, "%-36s %6.2f s %10.3f s %10.3f s %16s\n", row.what, row.guide, row.kiln, row.buildctl, off)
	}
}

// list shows times in seconds.
func list(times []float64) string {
	var b strings.Builder
	for _, t := range times {
		fmt.Fprintf(&b, "%7.3f s", t)
	}
	return b.String()
}
