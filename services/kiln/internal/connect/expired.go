package connect

import (
	"crypto/tls"
	"fmt"
	"time"
)

// expired is the diagnosis of a broken connection of a caller whose own certificate has
// expired, or is not valid yet. The server says so only after the client has begun to send,
// and a client whose sending fails first does not read it.
func (f *Flags) expired(now time.Time) (diagnosis, bool) {
	if f.Cert == "" || f.Key == "" {
		return diagnosis{}, false
	}
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil || pair.Leaf == nil {
		return diagnosis{}, false
	}
	const remedy = "renew it (kiln certs rotate), and compare the clocks"
	switch {
	case now.After(pair.Leaf.NotAfter):
		return diagnosis{fmt.Sprintf("your certificate has expired: %s was valid until %s", f.Cert, pair.Leaf.NotAfter.Format(time.RFC3339)), remedy}, true
	case now.Before(pair.Leaf.NotBefore):
		return diagnosis{fmt.Sprintf("your certificate is not valid yet: %s is from %s", f.Cert, pair.Leaf.NotBefore.Format(time.RFC3339)), remedy}, true
	}
	return diagnosis{}, false
}
