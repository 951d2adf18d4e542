package buildkit

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/gitutil"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/kilnbuild/kiln/pkg/fault"
)

// noHostKey stands for the key of an ssh host in a git source of the builder's own:
// llb.Git asks the host for its key when none is set, at an address that nobody has
// checked. ssh takes it for a comment; sourcePolicy puts the key in its place.
const noHostKey = "# the builder's source policy sets the key"

// hostKeyTimeout bounds how long an ssh host may take to show its key.
const hostKeyTimeout = 15 * time.Second

// judgeGit judges the remote of a git source as the daemon reads it. Over HTTP, the
// redirects that git follows are judged too; over ssh, the daemon is held to the key
// that the host showed the builder.
func (p *sourcePolicy) judgeGit(ctx context.Context, source *pb.SourceOp) (map[string]string, error) {
	raw := source.GetAttrs()[pb.AttrFullRemoteURL]
	if raw == "" {
		_, raw, _ = strings.Cut(source.GetIdentifier(), "://")
	}
	if !gitutil.IsGitTransport(raw) {
		raw = "https://" + raw
	}
	remote, err := gitutil.ParseURL(raw)
	if err != nil {
		return nil, fault.New(fault.InvalidArgument, "INVALID_FIELD", "a git source of the build has no URL that can be read", "write it like https://host/group/project.git")
	}
	if err := p.guard.CheckResolved(ctx, remote.Remote); err != nil {
		return nil, err
	}
	switch remote.Scheme {
	case gitutil.HTTPProtocol, gitutil.HTTPSProtocol:
		// What it answers otherwise, the daemon finds out, which may have credentials.
		response, err := p.get(ctx, strings.TrimSuffix(remote.Remote, "/")+"/info/refs?service=git-upload-pack",
			http.Header{"User-Agent": {"git/2.0"}}, probeTimeout)
		if err != nil {
			return nil, refusal(err)
		}
		return nil, response.Body.Close()
	case gitutil.SSHProtocol:
		return p.judgeHostKey(ctx, remote.Host, source.GetAttrs()[pb.AttrKnownSSHHosts])
	default:
		return nil, nil
	}
}

// judgeHostKey asks an ssh host for its key. known is what the source has in the form
// of known_hosts: set by the request, or by the frontend, which has asked the host
// from the daemon.
func (p *sourcePolicy) judgeHostKey(ctx context.Context, host, known string) (map[string]string, error) {
	address := host
	if _, _, err := net.SplitHostPort(host); err != nil {
		address = net.JoinHostPort(strings.Trim(host, "[]"), "22")
	}
	if known == noHostKey {
		known = ""
	}
	keys, algorithms := keysOf(known)
	key, err := p.hostKey(ctx, address, algorithms)
	if err != nil {
		if f := refusal(err); f != nil {
			return nil, f
		}
		return nil, fault.Wrap(err, fault.Unavailable, "SOURCE_NOT_FOUND", "the ssh host "+address+" does not show the builder its key",
			"check the URL, and that the builder can reach the host")
	}
	switch {
	case known == "":
		return map[string]string{pb.AttrKnownSSHHosts: knownhosts.Line([]string{address}, key)}, nil
	case keys[string(key.Marshal())]:
		return nil, nil
	default:
		return nil, fault.New(fault.PermissionDenied, "POLICY_DENIED", "the ssh host "+address+" shows the builder another key than the source has",
			"check whether the host is who it says, and that its name leads to the same host for the builder and for the daemon")
	}
}

// keysOf reads the keys of known_hosts, and the algorithms to ask for them by.
func keysOf(known string) (keys map[string]bool, algorithms []string) {
	keys = make(map[string]bool)
	for rest := []byte(known); ; {
		_, _, key, _, next, err := ssh.ParseKnownHosts(rest)
		if err != nil {
			return keys, algorithms
		}
		keys[string(key.Marshal())] = true
		if key.Type() == ssh.KeyAlgoRSA {
			algorithms = append(algorithms, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256)
		}
		algorithms = append(algorithms, key.Type())
		rest = next
	}
}

var errKeySeen = errors.New("the key is all that was asked for")

// hostKey is the key that an ssh host shows. Nobody logs in.
func (p *sourcePolicy) hostKey(ctx context.Context, address string, algorithms []string) (ssh.PublicKey, error) {
	ctx, cancel := context.WithTimeout(ctx, hostKeyTimeout)
	defer cancel()
	conn, err := p.guard.Dial(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	var seen ssh.PublicKey
	_, _, _, err = ssh.NewClientConn(conn, address, &ssh.ClientConfig{
		HostKeyAlgorithms: algorithms,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			seen = key
			return errKeySeen
		},
	})
	if seen == nil {
		return nil, err
	}
	return seen, nil
}
