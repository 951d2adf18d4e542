// Package pagetoken seals the page tokens of lists (AIP-158), for a caller, a method and
// a query each.
package pagetoken

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/auth"
	"github.com/kilnbuild/kiln/pkg/statedir"
)

// KeyBytes is the size of the key of Tokens.
const KeyBytes = 32

// Tokens seals page tokens (AIP-158): what a token holds cannot be read or changed by
// who has it, and it is of one method, one query and one caller.
type Tokens struct{ aead cipher.AEAD }

// NewTokens returns Tokens with a key of KeyBytes. Whoever has the key can read the
// tokens; with another key they are none.
func NewTokens(key []byte) (*Tokens, error) {
	if len(key) != KeyBytes {
		return nil, fmt.Errorf("a key of page tokens has %d bytes, not %d", len(key), KeyBytes)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	return &Tokens{aead}, err
}

// OpenTokens returns Tokens with the key of a state directory, so that a restart of the
// service does not end a list that a caller goes through.
func OpenTokens(stateDir string) (*Tokens, error) {
	key, err := statedir.Key(stateDir, "pages.key", KeyBytes)
	if err != nil {
		return nil, err
	}
	return NewTokens(key)
}

// EphemeralTokens returns Tokens with a key of their own, which ends with the process.
func EphemeralTokens() *Tokens {
	key := make([]byte, KeyBytes)
	_, _ = rand.Read(key) // Never fails.
	t, err := NewTokens(key)
	if err != nil {
		panic("pagetoken: " + err.Error()) // The key has the right size.
	}
	return t
}

// Paged is a request for a page.
type Paged interface {
	proto.Message
	GetPageToken() string
}

// The fields of a Paged request that differ between pages of one list.
const (
	fieldPageToken protoreflect.Name = "page_token"
	fieldPageSize  protoreflect.Name = "page_size"
)

// List is a list that a caller goes through page by page.
type List struct {
	aead  cipher.AEAD
	of    []byte // who asks for what
	token string // that came
}

// Query returns the list that a request asks for: its tokens are good for the same
// caller and a request whose fields, but for page_size and page_token, are the same.
func (t *Tokens) Query(ctx context.Context, req Paged) (List, error) {
	other := proto.CloneOf(req).ProtoReflect()
	fields := other.Descriptor().Fields()
	for _, name := range []protoreflect.Name{fieldPageToken, fieldPageSize} {
		if f := fields.ByName(name); f != nil {
			other.Clear(f)
		}
	}
	query, err := proto.MarshalOptions{Deterministic: true}.Marshal(other.Interface())
	if err != nil {
		return List{}, fmt.Errorf("encoding the query of a page: %w", err)
	}
	return t.list(ctx, req, query), nil
}

// Kept returns the list that a request begins, or goes on with by its token alone: the
// token says what is listed, and other fields are ignored. Its tokens are good for the
// same caller and method.
func (t *Tokens) Kept(ctx context.Context, req Paged) List { return t.list(ctx, req, nil) }

func (t *Tokens) list(ctx context.Context, req Paged, query []byte) List {
	method := req.ProtoReflect().Descriptor().FullName()
	of := sha256.Sum256(fmt.Appendf(nil, "%q %q %q", method, auth.FromContext(ctx).Name, query))
	return List{aead: t.aead, of: of[:], token: req.GetPageToken()}
}

// Read reads the token of the request into place, which stays as it is for the first
// page. A token that is not of this list is an INVALID_ARGUMENT fault.
func (l List) Read(place any) error {
	if l.token == "" {
		return nil
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(l.token)
	if err != nil {
		return aip.NotOfTheList()
	}
	text, err := l.aead.Open(nil, nil, sealed, l.of)
	if err != nil || json.Unmarshal(text, place) != nil {
		return aip.NotOfTheList()
	}
	return nil
}

// Offset reads the token of a list that is counted from its beginning.
func (l List) Offset() (from int, err error) {
	err = l.Read(&from)
	return max(0, from), err
}

// Token returns the token of the page that begins at a place.
func (l List) Token(place any) string {
	text, err := json.Marshal(place)
	if err != nil {
		panic(fmt.Sprintf("pagetoken: a %T cannot be the place of a page: %v", place, err))
	}
	return base64.RawURLEncoding.EncodeToString(l.aead.Seal(nil, nil, text, l.of))
}

// OffsetToken returns the token of the page that begins at an offset that Page
// returned; empty for 0, after which there is none.
func (l List) OffsetToken(next int) string {
	if next == 0 {
		return ""
	}
	return l.Token(next)
}
