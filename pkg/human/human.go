// Package human writes figures as people do.
package human

import (
	"fmt"
	"strconv"
	"time"
)

// Size says a number of bytes as people do, in powers of ten.
func Size(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), -1
	for ; value >= 999.5 && unit < 4; unit++ {
		value /= 1000
	}
	return fmt.Sprintf("%.3g %cB", value, "kMGTP"[unit])
}

// Span is a time for people, to two places: "3d 4h", "5m 10s", "1.5s".
func Span(d time.Duration) string {
	const day = 24 * time.Hour
	if d < time.Minute {
		d = max(d, 0).Round(100 * time.Millisecond)
	}
	switch {
	case d < time.Minute:
		return d.String()
	case d < time.Hour:
		return pair(d, time.Minute, "m", time.Second, "s")
	case d < day:
		return pair(d, time.Hour, "h", time.Minute, "m")
	default:
		return pair(d, day, "d", time.Hour, "h")
	}
}

func pair(d, large time.Duration, largeName string, small time.Duration, smallName string) string {
	text := strconv.FormatInt(int64(d/large), 10) + largeName
	if rest := d % large / small; rest > 0 {
		text += " " + strconv.FormatInt(int64(rest), 10) + smallName
	}
	return text
}
