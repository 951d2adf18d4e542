package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit"
	"github.com/kilnbuild/kiln/services/builder/internal/buildkit/relay"
	"github.com/kilnbuild/kiln/services/builder/internal/mask"
)

// sessionRoute is a session as the calls that name it see it. Through a session, a daemon
// reads its client's files, secrets and credentials, so no caller may use that of
// another. A session belongs to the identity that names it first, in a Session call
// or in a build, while any call names it. Callers without an identity are all one.
//
// Of graphs that the daemon itself reads, from a frontend or a file, the gateway sees
// nothing: there, only the randomness of ids protects a session.
type sessionRoute struct {
	id      string
	owner   owner         // its identity has the right to it
	calls   int           // that name it; guarded by routes.mu
	came    chan struct{} // closed when the client has opened it
	secrets *mask.Set     // that the client has given to daemons, in any of its sessions

	mu     sync.Mutex
	client *relay.Client // nil while the client has not opened it
	key    string        // under which daemons keep its local files
	links  map[string]*relay.Link
	wanted map[string]*upstream // where builds were placed that name it; both by the daemon's name
}

// clientSecrets are the secrets of all sessions of one client: the targets of a bake each
// have a session, and steps in common. What other clients' builds have in common with
// these, mask.Steps knows.
type clientSecrets struct {
	set      *mask.Set
	sessions int
}

// secretsFor counts a session of a client, and returns the client's secrets. mu is held.
func (t *routes) secretsFor(of owner) *mask.Set {
	s := t.secrets[of]
	if s == nil {
		s = &clientSecrets{set: buildkit.NewSecrets()}
		t.secrets[of] = s
	}
	s.sessions++
	return s.set
}

// claim takes sessions for a call of an identity, all or none of them, until release
// is called. A session of another identity is told in BuildKit's words for one that
// does not exist.
func (t *routes) claim(of owner, ids []string) (claimed []*sessionRoute, release func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range ids {
		if s := t.sessions[id]; s != nil && s.owner.identity != of.identity {
			return nil, nil, noSession(id)
		}
	}
	for _, id := range ids {
		s := t.sessions[id]
		if s == nil {
			s = &sessionRoute{came: make(chan struct{}), id: id, owner: of, secrets: t.secretsFor(of)}
			t.sessions[id] = s
		}
		s.calls++
		claimed = append(claimed, s)
	}
	return claimed, func() { t.release(claimed) }, nil
}

func (t *routes) release(claimed []*sessionRoute) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range claimed {
		if s.calls--; s.calls > 0 {
			continue
		}
		delete(t.sessions, s.id)
		if its := t.secrets[s.owner]; its.sessions > 1 {
			its.sessions--
		} else {
			delete(t.secrets, s.owner)
		}
	}
}

// noSession is what BuildKit says of a session that it does not know; see
// session/manager.go.
func noSession(id string) error {
	return fault.New(fault.NotFound, "NOT_FOUND", "no active session for "+id, "name only sessions that the same caller opens")
}

// openWithin bounds how long a daemon may take to accept a session.
const openWithin = 10 * time.Second

// arrive notes that the client has opened the session, and opens it at the daemons
// where builds wait for it. It returns false when the session is open already.
func (s *sessionRoute) arrive(ctx context.Context, client *relay.Client, key string) (first bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		return false, nil
	}
	s.client, s.key, s.links = client, key, make(map[string]*relay.Link)
	if !closed(s.came) {
		close(s.came)
	}
	var errs []error
	for _, up := range s.wanted {
		errs = append(errs, s.open(ctx, up))
	}
	return true, errors.Join(errs...)
}

// settle waits until the client has read what was sent to it in its session.
func (s *sessionRoute) settle() {
	s.mu.Lock()
	client := s.client
	s.mu.Unlock()
	if client != nil {
		client.Settle(settleWithin)
	}
}

// leave notes that the client's session has ended. It may be opened again.
func (s *sessionRoute) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client, s.links = nil, nil
}

// at opens the session at the daemon of a build that names it, or has it opened there
// when the client's Session call comes, which may be later than the build.
func (s *sessionRoute) at(ctx context.Context, up *upstream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.wanted == nil {
		s.wanted = make(map[string]*upstream)
	}
	s.wanted[up.Name()] = up
	if s.client == nil || closed(s.client.Done()) {
		return nil // the daemon says so when it needs the session
	}
	return s.open(ctx, up)
}

func (s *sessionRoute) open(ctx context.Context, up *upstream) error {
	if l := s.links[up.Name()]; l != nil && !closed(l.Done()) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	l, err := s.client.Open(ctx, up.Conn(), relay.OpenOptions{
		SharedKey: s.key, OnSecret: func(_ string, value []byte) { buildkit.AddSecret(s.secrets, value) },
	})
	if err != nil {
		return err
	}
	s.links[up.Name()] = l
	return nil
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// secretsOf returns the secrets of a session among those that a build names.
func secretsOf(sessions []*sessionRoute, id string) *mask.Set {
	for _, s := range sessions {
		if s.id == id {
			return s.secrets
		}
	}
	return new(mask.Set)
}

// awaitOpened waits until the client has opened the sessions that its build is to use
// from the start. A client opens them beside its Solve, which may overtake them when
// there are many, and a daemon looks for a session for five seconds only. If a session
// does not come, the daemon says so when it needs it.
func awaitOpened(ctx context.Context, sessions []*sessionRoute, ids []string) {
	ctx, cancel := context.WithTimeout(ctx, comeWithin)
	defer cancel()
	for _, s := range sessions {
		if slices.Contains(ids, s.id) {
			select {
			case <-s.came:
			case <-ctx.Done():
				return
			}
		}
	}
}

// openAt opens the sessions that a build names at its daemon.
func openAt(ctx context.Context, sessions []*sessionRoute, up *upstream) error {
	for _, s := range sessions {
		if err := s.at(ctx, up); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, openWithin)
	defer cancel()
	for _, s := range sessions {
		if l := s.link(up); l != nil {
			l.Began(ctx)
		}
	}
	return nil
}

// link is the session at a daemon, nil while it is not opened there.
func (s *sessionRoute) link(up *upstream) *relay.Link {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.links[up.Name()]
}

// session ends a client's session in the builder. It is opened at a daemon when a
// build that names it gets one, so it may wait as long as the build does.
func (g *Gateway) session(c *call) error {
	ctx := c.Context()
	done, ok := g.routes.open(c.owner)
	if !ok {
		return fault.New(fault.ResourceExhausted, "LIMIT_REACHED",
			fmt.Sprintf("%d sessions of the caller are open, the limit", maxSessions), "end some of them first")
	}
	defer done()
	client, err := relay.Accept(ctx, c.ServerStream, relay.Options{})
	if err != nil {
		return err
	}
	defer client.Close()
	claimed, release, err := g.routes.claim(c.owner, []string{client.ID()})
	if err != nil {
		return err
	}
	defer release()
	s := claimed[0]
	first, err := s.arrive(ctx, client, g.syncKey(c.owner.identity, project(ctx), client.SharedKey()))
	if !first {
		return fault.New(fault.AlreadyExists, "ALREADY_EXISTS", "the session "+client.ID()+" is open", "give each session an id of its own")
	}
	defer s.leave()
	if err != nil {
		return err
	}
	<-client.Done()
	return leaving(client.Err())
}

// leaving is how a session ends. A client that no longer answers has left: nobody
// gets the error, and it is no failure to log as one.
func leaving(err error) error {
	if own, ok := errors.AsType[*fault.Error](err); ok && own.Kind == fault.Unavailable {
		return fault.New(fault.Canceled, "CANCELLED", own.Message, own.Remedy)
	}
	return err
}
