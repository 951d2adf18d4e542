package relay

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc/metadata"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// The metadata of a Session call; see session/session.go of BuildKit.
const (
	keyID            = "x-docker-expose-session-uuid"
	keyName          = "x-docker-expose-session-name"
	keySharedKey     = "x-docker-expose-session-sharedkey"
	keySharedEncoded = "x-docker-expose-session-sharedkey-encoded"
	keyMethod        = "x-docker-expose-session-grpc-method"
	keyHealthTimeout = "x-buildkit-session-health-custom-timeout"
)

// Bounds of what a client offers. BuildKit's clients offer about 20 methods and
// ids of 25 letters.
const (
	maxID        = 128
	maxName      = 256
	maxSharedKey = 4096
	maxMethods   = 256
	maxMethod    = 256
	maxTimeout   = 20
)

// offer is what a client says of its session.
type offer struct {
	id, name, sharedKey, healthTimeout string
	methods                            []string
}

// offerOf reads the metadata of a Session call.
func offerOf(ctx context.Context) (offer, error) {
	in, _ := metadata.FromIncomingContext(ctx)
	var o offer
	for _, one := range []struct {
		key  string
		max  int
		into *string
	}{
		{keyID, maxID, &o.id}, {keyName, maxName, &o.name},
		{keySharedKey, maxSharedKey, &o.sharedKey}, {keyHealthTimeout, maxTimeout, &o.healthTimeout},
	} {
		values := in.Get(one.key)
		if len(values) > 1 {
			return offer{}, malformed(one.key, "", fmt.Sprintf("is given %d times", len(values)), "send it once")
		}
		if len(values) == 1 {
			*one.into = values[0]
		}
		if len(*one.into) > one.max {
			return offer{}, malformed(one.key, "", fmt.Sprintf("has %d bytes", len(*one.into)), fmt.Sprintf("send at most %d", one.max))
		}
	}
	if !validID(o.id) {
		return offer{}, malformed(keyID, o.id, "is not an id of a session", "send letters, digits and any of -._")
	}
	if encoded, _ := strconv.ParseBool(strings.Join(in.Get(keySharedEncoded), "")); encoded {
		if key, err := url.QueryUnescape(o.sharedKey); err == nil {
			o.sharedKey = key
		}
	}
	o.methods = in.Get(keyMethod)
	return o, checkMethods(o.methods)
}

func checkMethods(methods []string) error {
	if len(methods) > maxMethods {
		return malformed(keyMethod, "", fmt.Sprintf("is given %d times", len(methods)), fmt.Sprintf("offer at most %d methods", maxMethods))
	}
	for _, method := range methods {
		if len(method) > maxMethod || !validMethod(method) {
			return malformed(keyMethod, method[:min(len(method), maxMethod)], "is not a gRPC method", "send /service/method")
		}
	}
	return nil
}

// validID reports whether an id names a session to the daemon too, which takes what
// stands before a colon for something else.
func validID(id string) bool {
	return id != "" && strings.IndexFunc(id, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._", r)
	}) < 0
}

func validMethod(method string) bool {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	return strings.HasPrefix(method, "/") && service != "" && name != "" &&
		strings.IndexFunc(method, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

func malformed(key, value, message, remedy string) error {
	return fault.Invalid(key, value, message, remedy)
}

// metadata returns what the builder says of the session to a daemon. The key for
// local files is the builder's.
func (o offer) metadata(sharedKey string) metadata.MD {
	md := metadata.MD{keyID: {o.id}, keySharedKey: {sharedKey}, keyMethod: o.methods}
	if o.name != "" {
		md.Set(keyName, o.name)
	}
	if o.healthTimeout != "" {
		md.Set(keyHealthTimeout, o.healthTimeout)
	}
	return md
}
