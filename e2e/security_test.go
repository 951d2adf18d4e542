package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/kilnbuild/kiln/e2e/lab"
	"github.com/kilnbuild/kiln/e2e/lab/labtest"
	builderv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/builder/v1"
	cachemanagerv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/cachemanager/v1"
	configv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/config/v1"
	janitorv1 "github.com/kilnbuild/kiln/proto/gen/go/kiln/janitor/v1"
)

// secured is a stack in which each connection has certificates on both sides, the registry
// asks for a password, and the services have a policy, tokens and an audit log.
type secured struct {
	lab      *lab.Lab
	dir      string // of the certificates, the tokens and the rest
	registry *lab.Registry
	daemon   *lab.Buildkitd
	builder  *lab.Service
	caches   *lab.Service
	janitor  *lab.Service
	tokens   map[string]string // by identity
	password string
}

// rules are the policy of the services.
const rules = `rules:
  - identities: [admin]
    methods: ["*"]
  - identities: ["spiffe://lab/kiln/*"] # the services themselves
    methods: ["/kiln.janitor.v1.JanitorService/AcquireLease", "/kiln.janitor.v1.JanitorService/RenewLease", "/kiln.janitor.v1.JanitorService/ReleaseLease", "/kiln.janitor.v1.JanitorService/RecordUse", "/kiln.cachemanager.v1.CacheManagerService/*"]
  - identities: ["spiffe://lab/ci"]
    methods: ["/kiln.builder.v1.BuilderService/*", "/moby.buildkit.v1.*", "/moby.filesync.v1.*", "/grpc.health.v1.Health/Check"]
    projects: [web, "team-*"]
    entitlements: [none]
    registries: ["127.0.0.1:*"]
    frontends: [none]
  - identities: [reader]
    methods: ["/kiln.builder.v1.BuilderService/GetBuild", "/kiln.builder.v1.BuilderService/List*"]
  - identities: [bot]
    methods: ["/kiln.cachemanager.v1.CacheManagerService/GetUsage"]
`

// may is what these rules say, in another way.
func may(identity, method string) bool {
	service, name, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	builder := service == "kiln.builder.v1.BuilderService"
	switch identity {
	case "admin":
		return true
	case "spiffe://lab/ci":
		return builder || strings.HasPrefix(service, "moby.")
	case "reader":
		return builder && (name == "GetBuild" || name == "ListBuilds" || name == "ListDaemons")
	case "bot":
		return service == "kiln.cachemanager.v1.CacheManagerService" && name == "GetUsage"
	}
	return false
}

// forAdministrators are the methods about a whole daemon. The rules let some callers call
// them, and nobody with daemon_admin.
var forAdministrators = map[string]bool{
	"/moby.buildkit.v1.Control/DiskUsage": true, "/moby.buildkit.v1.Control/Prune": true,
}

func runKiln(t *testing.T, args ...string) lab.Output {
	t.Helper()
	return labtest.Must(lab.Exec(labtest.Context(t, 2*time.Minute), lab.Command{Path: labtest.Must(lab.Bin("kiln"))(t), Args: args}))(t)
}

func (s *secured) file(name string) string { return filepath.Join(s.dir, name) }

func (s *secured) serverTLS(name string) *configv1.ServerTLS {
	return &configv1.ServerTLS{CertFile: s.file(name + ".crt"), KeyFile: s.file(name + ".key"), ClientCaFile: s.file("ca.crt")}
}

func (s *secured) clientTLS(name string) *configv1.ClientTLS {
	return &configv1.ClientTLS{CaFile: s.file("ca.crt"), CertFile: s.file(name + ".crt"), KeyFile: s.file(name + ".key")}
}

// startSecured makes the certificates with `kiln certs`, and starts all of it.
func startSecured(t *testing.T) *secured {
	t.Helper()
	l := labtest.New(t)
	s := &secured{lab: l, dir: filepath.Join(l.Dir, "pki"), tokens: map[string]string{}, password: canarySecret(t)}
	runKiln(t, "certs", "init", "--dir", s.dir)
	for name, uri := range map[string]string{"builder": "spiffe://lab/kiln/builder", "cachemanager": "spiffe://lab/kiln/cachemanager", "janitor": "spiffe://lab/kiln/janitor", "buildkitd": "", "registry": ""} {
		args := []string{"certs", "issue", name, "--dir", s.dir, "--host", "localhost", "--host", "127.0.0.1"}
		if uri != "" {
			args = append(args, "--uri", uri)
		}
		runKiln(t, args...)
	}
	runKiln(t, "certs", "issue", "ci", "--dir", s.dir, "--uri", "spiffe://lab/ci")
	for _, name := range []string{"admin", "reader", "stranger"} {
		runKiln(t, "certs", "issue", name, "--dir", s.dir)
	}
	for _, name := range []string{"bot", "reader", "stranger"} {
		s.tokens[name] = strings.TrimSpace(runKiln(t, "token", "new", name, "--file", s.file("tokens.yaml")).Stdout)
	}
	hash := string(labtest.Must(bcrypt.GenerateFromPassword([]byte(s.password), bcrypt.MinCost))(t))
	labtest.Write(t, s.dir, map[string]string{"policy.yaml": rules, "htpasswd": "kiln:" + hash + "\n", "password": s.password + "\n"})

	ctx := labtest.Context(t, 3*time.Minute)
	s.registry = labtest.Must(l.StartRegistry(ctx, lab.RegistryOptions{Closed: true, YAML: fmt.Sprintf("  tls:\n    certificate: %s\n    key: %s\nauth:\n  htpasswd:\n    realm: lab\n    path: %s\n",
		s.file("registry.crt"), s.file("registry.key"), s.file("htpasswd"))}))(t)
	s.daemon = labtest.Must(l.StartBuildkitd(ctx, lab.BuildkitdOptions{
		TLS: s.serverTLS("buildkitd"), TOML: fmt.Sprintf("[registry.%q]\n  http = false\n  ca = [%q]\n", s.registry.Addr, s.file("ca.crt")),
	}))(t)
	server := func(name string) *configv1.ServerConfig {
		return &configv1.ServerConfig{Tls: s.serverTLS(name), PolicyFile: s.file("policy.yaml"), TokensFile: s.file("tokens.yaml"), AuditFile: s.file(name + ".audit")}
	}
	janitor := server("janitor")
	janitor.TokensFile = "" // certificates only
	s.janitor = labtest.Must(l.StartJanitor(ctx, &configv1.JanitorConfig{Server: janitor, Registry: &configv1.RegistryConfig{
		Address: s.registry.Addr, StorageRoot: s.registry.Storage, CaFile: s.file("ca.crt"), Username: "kiln", PasswordFile: s.file("password"),
	}}, lab.ServiceOptions{}))(t)
	daemon := &configv1.DaemonConfig{Name: "lab", Address: s.daemon.TCP, Tls: s.clientTLS("builder")}
	s.caches = labtest.Must(l.StartCacheManager(ctx, &configv1.CacheManagerConfig{Server: server("cachemanager"), Daemons: []*configv1.DaemonConfig{
		{Name: "lab", Address: s.daemon.TCP, Tls: s.clientTLS("cachemanager")},
	}}, lab.ServiceOptions{}))(t)
	s.builder = labtest.Must(l.StartBuilder(ctx, &configv1.BuilderConfig{
		Server: server("builder"), Daemons: []*configv1.DaemonConfig{daemon}, CacheRepository: s.registry.Addr + "/cache",
		Registries:   []*configv1.RegistryLogin{{Host: s.registry.Addr, Username: "kiln", PasswordFile: s.file("password")}},
		CacheManager: &configv1.CacheManagerClient{Address: s.caches.Addr, Tls: s.clientTLS("builder")},
		Janitor:      &configv1.JanitorClient{Address: s.janitor.Addr, Tls: s.clientTLS("builder")},
	}, lab.ServiceOptions{}))(t)
	return s
}

// credential is what a caller shows.
type credential struct {
	certificate *tls.Certificate
	token       string
}

func (s *secured) certificate(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	pair := labtest.Must(tls.LoadX509KeyPair(s.file(name+".crt"), s.file(name+".key")))(t)
	return &pair
}

// expired is a certificate of the stack's own authority that has ended.
func (s *secured) expired(t *testing.T, name string) *tls.Certificate {
	t.Helper()
	return s.holding(t, name, -2*time.Hour, -time.Hour)
}

// holding is a certificate of a caller that holds from and to so long from now.
func (s *secured) holding(t *testing.T, name string, from, to time.Duration) *tls.Certificate {
	t.Helper()
	ca := labtest.Must(tls.LoadX509KeyPair(s.file("ca.crt"), s.file("ca.key")))(t)
	key := labtest.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	der := labtest.Must(x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Leaf, &key.PublicKey, ca.PrivateKey))(t)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// dial connects to a service with a credential. Nothing is tried twice.
func (s *secured) dial(t *testing.T, addr string, c credential) *grpc.ClientConn {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(labtest.Must(os.ReadFile(s.file("ca.crt")))(t))
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	if c.certificate != nil {
		// Whatever the server says it takes.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.certificate, nil }
	}
	conn := labtest.Must(lab.Dial(addr, grpc.WithTransportCredentials(credentials.NewTLS(config))))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// method is one of the contracts.
type method struct {
	full string
	desc protoreflect.MethodDescriptor
}

func methodsOf(files ...protoreflect.FileDescriptor) (all []method) {
	for _, file := range files {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				all = append(all, method{fmt.Sprintf("/%s/%s", service.FullName(), m.Name()), m})
			}
		}
	}
	return all
}

// call sends an empty request and gives the code of the first answer.
func call(ctx context.Context, conn *grpc.ClientConn, m method, token string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, m.full)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(dynamicpb.NewMessage(m.desc.Input())); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(dynamicpb.NewMessage(m.desc.Output())); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// Each kind of certificate and token, with each method of each service: it is let in, told
// that it has no identity, or told that it may not, just as the policy says, and one that is
// of nobody gets no further than the handshake.
func TestS7_EveryCredentialAtEveryMethod(t *testing.T) {
	s := startSecured(t)
	other := t.TempDir()
	runKiln(t, "certs", "init", "--dir", other)
	runKiln(t, "certs", "issue", "admin", "--dir", other)
	foreign := labtest.Must(tls.LoadX509KeyPair(filepath.Join(other, "admin.crt"), filepath.Join(other, "admin.key")))(t)
	ended := canarySecret(t)
	addToken(t, s.file("tokens.yaml"), "admin", ended, time.Now().Add(-time.Minute))
	time.Sleep(1100 * time.Millisecond) // until the services look again

	const none, handshake = "", "no handshake"
	cases := map[string]struct {
		credential
		identity string
	}{
		"nothing":                         {credential{}, none},
		"a certificate of another CA":     {credential{certificate: &foreign}, handshake},
		"an expired certificate":          {credential{certificate: s.expired(t, "admin")}, handshake},
		"a certificate with another name": {credential{certificate: s.certificate(t, "stranger")}, "stranger"},
		"the right certificate":           {credential{certificate: s.certificate(t, "ci")}, "spiffe://lab/ci"},
		"one for reading":                 {credential{certificate: s.certificate(t, "reader")}, "reader"},
		"a token that is not known":       {credential{token: "kiln_none"}, none},
		"an ended token":                  {credential{token: ended}, none},
		"a token of another name":         {credential{token: s.tokens["stranger"]}, "stranger"},
		"a token for reading":             {credential{token: s.tokens["reader"]}, "reader"},
		"a token for one method":          {credential{token: s.tokens["bot"]}, "bot"},
		"a certificate beside a token":    {credential{s.certificate(t, "reader"), s.tokens["bot"]}, "reader"},
	}
	services := map[string]struct {
		service *lab.Service
		methods []method
		tokens  bool
	}{
		"builder":       {s.builder, methodsOf(builderv1.File_kiln_builder_v1_builder_service_proto, controlapi.File_github_com_moby_buildkit_api_services_control_control_proto), true},
		"cache manager": {s.caches, methodsOf(cachemanagerv1.File_kiln_cachemanager_v1_cache_manager_service_proto), true},
		"janitor":       {s.janitor, methodsOf(janitorv1.File_kiln_janitor_v1_janitor_service_proto), false},
	}
	allowed, refused := 0, 0
	for name, c := range cases {
		for of, to := range services {
			conn := s.dial(t, to.service.Addr, c.credential)
			identity := c.identity
			if !to.tokens && c.certificate == nil {
				identity = handshake
			}
			for _, m := range to.methods {
				err := call(t.Context(), conn, m, c.token)
				code := status.Code(err)
				switch {
				case identity == handshake:
					if refused++; code != codes.Unavailable {
						t.Errorf("%s, %s of the %s: %v, want no connection", name, m.full, of, err)
					}
				case identity == none:
					if refused++; code != codes.Unauthenticated {
						t.Errorf("%s, %s: %v, want UNAUTHENTICATED", name, m.full, err)
					}
				case !may(identity, m.full):
					if refused++; code != codes.PermissionDenied || !strings.Contains(status.Convert(err).Message(), "may not call") {
						t.Errorf("%s, %s: %v, want PERMISSION_DENIED", name, m.full, err)
					}
				case forAdministrators[m.full]:
					if refused++; code != codes.PermissionDenied || !strings.Contains(status.Convert(err).Message(), "daemon_admin") {
						t.Errorf("%s, %s: %v, want PERMISSION_DENIED that names daemon_admin", name, m.full, err)
					}
				default:
					if allowed++; code == codes.Unauthenticated || code == codes.PermissionDenied || code == codes.Unavailable {
						t.Errorf("%s, %s: %v, want it to be let in", name, m.full, err)
					}
				}
			}
		}
	}
	if allowed < 20 || refused < 400 {
		t.Errorf("%d calls were let in and %d were not", allowed, refused)
	}
	s.refusesOthersAsClient(t)
}

// addToken adds a token with an end to a file, as `kiln token new` does.
func addToken(t *testing.T, file, identity, token string, end time.Time) {
	t.Helper()
	f := labtest.Must(os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0))(t)
	defer func() { _ = f.Close() }()
	labtest.Must(fmt.Fprintf(f, "  - {identity: %s, sha256: %x, expire_time: %s}\n", identity, sha256Of(token), end.UTC().Format(time.RFC3339)))(t)
}

// refusesOthersAsClient holds that a client, too, looks at whom it has: a server with another
// name, or of another authority, gets no call.
func (s *secured) refusesOthersAsClient(t *testing.T) {
	t.Helper()
	other := t.TempDir()
	runKiln(t, "certs", "init", "--dir", other)
	for name, flags := range map[string][]string{
		"another name":      {"--tls-ca", s.file("ca.crt"), "--tls-server-name", "elsewhere.example.org"},
		"another authority": {"--tls-ca", filepath.Join(other, "ca.crt")},
	} {
		args := append([]string{"builds", "ls", "--builder", s.builder.Addr, "--tls-cert", s.file("admin.crt"), "--tls-key", s.file("admin.key")}, flags...)
		out, err := lab.Exec(labtest.Context(t, time.Minute), lab.Command{Path: labtest.Must(lab.Bin("kiln"))(t), Args: args})
		if err == nil || !strings.Contains(out.Stderr, "cannot reach the builder") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What the rule of a caller says of projects, registries and the rest holds for builds by RPC
// and by BuildKit's own protocol; what is not of its projects it does not see; a build with
// all that is allowed pushes to the registry as the builder's user, and each change is in the
// audit log. No token, password or key is in any log, audit log, metric or store.
func TestS7_SecuredBuilds(t *testing.T) {
	s := startSecured(t)
	admin := builderv1.NewBuilderServiceClient(s.dial(t, s.builder.Addr, credential{certificate: s.certificate(t, "admin")}))
	ci := builderv1.NewBuilderServiceClient(s.dial(t, s.builder.Addr, credential{certificate: s.certificate(t, "ci")}))
	spec := func(project string, change func(*builderv1.BuildSpec)) *builderv1.BuildSpec {
		b := inline(map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}, s.registry.Addr+"/"+project+":1")
		b.Project = project
		b.Cache = registryCache()
		if change != nil {
			change(b)
		}
		return b
	}
	run := func(api builderv1.BuilderServiceClient, b *builderv1.BuildSpec) (id string, err error) {
		stream, err := api.Build(labtest.Context(t, 2*time.Minute), &builderv1.BuildRequest{Spec: b})
		for err == nil {
			var res *builderv1.BuildResponse
			if res, err = stream.Recv(); err != nil {
				break
			}
			if e := res.GetEvent().GetStarted(); e != nil {
				id = e.GetBuildId()
			}
			if o := res.GetEvent().GetOutcome(); o != nil && o.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
				t.Errorf("a build of %s ended: %v", b.GetProject(), o)
			}
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return id, err
	}
	if _, err := run(ci, spec("web", nil)); err != nil {
		t.Fatal(err)
	}
	secret := labtest.Must(run(admin, spec("payroll", nil)))(t)

	for name, change := range map[string]func(*builderv1.BuildSpec){
		"project":    func(b *builderv1.BuildSpec) { b.Project = "payroll" },
		"repository": func(b *builderv1.BuildSpec) { b.Outputs = push("registry.example.org/web:1") },
	} {
		_, err := run(ci, spec("web", change))
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ci.GetBuild(t.Context(), &builderv1.GetBuildRequest{BuildId: secret}); status.Code(err) != codes.NotFound {
		t.Errorf("a build of another project: %v", err)
	}
	listed := labtest.Must(ci.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{}))(t)
	if len(listed.GetBuilds()) != 1 || listed.GetBuilds()[0].GetProject() != "web" {
		t.Errorf("the list has %v", listed.GetBuilds())
	}

	// By BuildKit's protocol.
	dir := filepath.Join(s.lab.Dir, "context")
	labtest.Write(t, dir, map[string]string{"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"})
	auth := base64Of("kiln:" + s.password)
	labtest.Write(t, filepath.Join(s.lab.Dir, "docker"), map[string]string{"config.json": fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, s.registry.Addr, auth)})
	for project, ok := range map[string]bool{"team-a": true, "payroll": false} {
		out, err := lab.Exec(labtest.Context(t, 2*time.Minute), lab.Command{
			Path: labtest.Must(lab.Bin("kiln"))(t), Env: []string{"DOCKER_CONFIG=" + filepath.Join(s.lab.Dir, "docker")},
			Args: []string{
				"build", dir, dir, s.registry.Addr + "/" + project + ":2", "--push", "--project", project, "--progress", "plain", "--builder", s.builder.Addr,
				"--tls-ca", s.file("ca.crt"), "--tls-cert", s.file("ci.crt"), "--tls-key", s.file("ci.key"),
			},
		})
		if (err == nil) != ok || !ok && !strings.Contains(out.Stderr, `may not use the project "payroll"`) {
			t.Errorf("kiln build of %s: %v", project, err)
		}
	}
	checkAudit(t, s.file("builder.audit"))
	s.secretsAreNowhere(t, auth)
}

// The builder's user of the registry is lent for what the rules of a caller name: its
// builds read and push there, and nothing of another project.
func TestUsersOfRegistries_AreLentPerRepository(t *testing.T) {
	s := startSecured(t)
	runKiln(t, "certs", "issue", "narrow", "--dir", s.dir)
	rule := fmt.Sprintf("  - identities: [narrow]\n    methods: [\"/kiln.builder.v1.BuilderService/*\"]\n    projects: [web]\n    registries: [%q]\n", s.registry.Addr+"/web")
	labtest.Write(t, s.dir, map[string]string{"policy.yaml": rules + rule})
	admin := builderv1.NewBuilderServiceClient(s.dial(t, s.builder.Addr, credential{certificate: s.certificate(t, "admin")}))
	narrow := builderv1.NewBuilderServiceClient(s.dial(t, s.builder.Addr, credential{certificate: s.certificate(t, "narrow")}))
	labtest.Eventually(t, 30*time.Second, "the new rule is in force", func() bool {
		_, err := narrow.ListBuilds(t.Context(), &builderv1.ListBuildsRequest{})
		return err == nil
	})
	run := func(api builderv1.BuilderServiceClient, project, from, to string) *builderv1.Outcome {
		t.Helper()
		b := inline(map[string]string{"Dockerfile": "FROM " + from + "\nCOPY Dockerfile /" + filepath.Base(to) + "\n"}, s.registry.Addr+"/"+to)
		b.Project, b.Pull = project, true
		stream := labtest.Must(api.Build(labtest.Context(t, 2*time.Minute), &builderv1.BuildRequest{Spec: b}))(t)
		for {
			res, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if outcome := res.GetEvent().GetOutcome(); outcome != nil {
				return outcome
			}
		}
	}
	for _, project := range []string{"web", "payroll"} {
		if o := run(admin, project, "scratch", project+":1"); o.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
			t.Fatal(o)
		}
	}
	if o := run(narrow, "web", s.registry.Addr+"/web:1", "web:2"); o.GetState() != builderv1.BuildState_BUILD_STATE_SUCCEEDED {
		t.Errorf("a build of its own image: %v", o)
	}
	// The daemon has the image, and the registry's session of the other builds.
	o := run(narrow, "web", s.registry.Addr+"/payroll:1", "web:3")
	if codes.Code(o.GetError().GetCode()) != codes.PermissionDenied { //nolint:gosec // a code
		t.Errorf("a build of another project's image: %v", o)
	}
}

// checkAudit holds that an audit log has the calls that change something, and no others.
func checkAudit(t *testing.T, file string) {
	t.Helper()
	seen := map[string]int{}
	scanner := bufio.NewScanner(bytes.NewReader(labtest.Must(os.ReadFile(file))(t)))
	for scanner.Scan() {
		var line struct {
			Event, Method, Identity, Code, Peer, Ref, Session string
			Of                                                string `json:"project"`
			Project                                           string `json:"spec.project"`
		}
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			t.Fatalf("%v in %s", err, scanner.Text())
		}
		if line.Peer == "" {
			t.Errorf("no peer in %s", scanner.Text())
		}
		if strings.HasSuffix(line.Method, "Control/Solve") {
			if line.Ref == "" || line.Session == "" {
				t.Errorf("no ref or session in %s", scanner.Text())
			}
			seen[strings.TrimSpace("Solve "+line.Event+" "+line.Of+" "+line.Code)]++
		}
		seen[strings.Join([]string{line.Method[strings.LastIndex(line.Method, "/")+1:], line.Identity, line.Code, line.Project}, " ")]++
	}
	for want, n := range map[string]int{
		"Build spiffe://lab/ci OK web": 1, "Build admin OK payroll": 1, "Build spiffe://lab/ci PermissionDenied payroll": 1,
		"Build spiffe://lab/ci PermissionDenied web": 1, "Solve spiffe://lab/ci OK ": 1,
		"Solve begin team-a": 1, "Solve end team-a OK": 1, "Solve begin payroll": 1, "Solve end payroll PermissionDenied": 1,
	} {
		if seen[want] < n {
			t.Errorf("the audit log has %d of %q, want %d: %v", seen[want], want, n, seen)
		}
	}
	for line := range seen {
		if strings.HasPrefix(line, "GetBuild") || strings.HasPrefix(line, "ListBuilds") {
			t.Errorf("the audit log has %q, which changes nothing", line)
		}
	}
}

// secretsAreNowhere looks for tokens, passwords and keys in all that the stack has written.
func (s *secured) secretsAreNowhere(t *testing.T, more ...string) {
	t.Helper()
	secrets := append([]string{s.password}, more...)
	for _, token := range s.tokens {
		secrets = append(secrets, token)
	}
	for _, name := range []string{"ca", "builder", "registry"} {
		block, _ := pem.Decode(labtest.Must(os.ReadFile(s.file(name + ".key")))(t))
		secrets = append(secrets, string(block.Bytes), base64Of(string(block.Bytes))[:60])
	}
	own := map[string]bool{s.file("password"): true, filepath.Join(s.lab.Dir, "docker", "config.json"): true}
	looked := 0
	err := filepath.Walk(s.lab.Dir, func(path string, info os.FileInfo, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || !info.Mode().IsRegular() || own[path] || strings.HasSuffix(path, ".key") {
			return err
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		looked++
		for _, secret := range secrets {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%s holds a secret", path)
			}
		}
		return err
	})
	if err != nil || looked < 50 {
		t.Errorf("%d files: %v", looked, err)
	}
	for _, service := range []*lab.Service{s.builder, s.caches, s.janitor} {
		text := scrape(t, service)
		for _, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("the metrics of %s hold a secret", service.Name)
			}
		}
	}
}

func base64Of(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

func sha256Of(text string) [sha256.Size]byte { return sha256.Sum256([]byte(text)) }
