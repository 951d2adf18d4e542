package notify_test

import (
	"errors"
	"net/http"
	"testing"
	"time"
)

// A pull of a blob that could not be kept is kept when the registry sends it again.
func TestBlobPull_IsKeptWhenSentAgain(t *testing.T) {
	l, k := listener()
	body := event("pull", "application/octet-stream", "a", "", "docker", time.Now().Format(time.RFC3339Nano))
	k.err = errors.New("no space")
	if got := post(l, "secret", body); got != http.StatusServiceUnavailable {
		t.Fatalf("not kept: %d", got)
	}
	k.uses, k.err = nil, nil
	if got := post(l, "secret", body); got != http.StatusOK || len(k.uses) != 1 {
		t.Errorf("sent again: %d, uses %+v", got, k.uses)
	}
}
