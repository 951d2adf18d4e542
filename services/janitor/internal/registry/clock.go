package registry

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/kilnbuild/kiln/pkg/clock"
)

// Clock is the registry's clock, by the Date of its answers.
func (c *Client) Clock() clock.Source { return clock.NewSource("registry "+c.Address(), c.time) }

// time asks for the time. Whether the registry wants credentials does not matter.
func (c *Client) time(ctx context.Context) (time.Time, error) {
	resp, err := c.get(ctx, c.transport, http.MethodGet, "/v2/")
	if err != nil {
		return time.Time{}, c.explain(ctx, err, "tell the time")
	}
	if err := drain(resp); err != nil {
		return time.Time{}, c.explain(ctx, err, "tell the time")
	}
	says, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return time.Time{}, fmt.Errorf("the registry at %s sends no Date", c.Address())
	}
	// A cache that answers for the registry says how old its answer is.
	if age, err := strconv.Atoi(resp.Header.Get("Age")); err == nil && age > 0 {
		says = says.Add(time.Duration(age) * time.Second)
	}
	return says, nil
}
