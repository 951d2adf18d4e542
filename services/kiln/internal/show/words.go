// Package show is how commands show what they have: words for people, lines for
// programs, and the flags that choose.
package show

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"
)

// Ago says how long ago a time was: "3m ago".
func Ago(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return "-"
	}
	d := now.Sub(t.AsTime())
	switch {
	case d < time.Second:
		return "now"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm ago", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", d/time.Hour)
	default:
		return fmt.Sprintf("%dd ago", d/(24*time.Hour))
	}
}

// Lasted says how long a duration is: to the millisecond below a second, to a tenth
// of a second below a minute, else to the second, as "1m20s" or "2h5m".
func Lasted(d time.Duration) string {
	tenths := d.Round(100 * time.Millisecond)
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", max(d, 0).Milliseconds())
	case tenths < time.Minute:
		return fmt.Sprintf("%.1fs", tenths.Seconds())
	default:
		text := d.Round(time.Second).String() // as "1m20s" or "2h0m0s"
		if strings.HasSuffix(text, "m0s") {
			text = strings.TrimSuffix(text, "0s")
		}
		if strings.HasSuffix(text, "h0m") {
			text = strings.TrimSuffix(text, "0m")
		}
		return text
	}
}
