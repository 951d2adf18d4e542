package connect

import "strings"

// diagnosis is what a broken connection means: what is wrong in words, and what to do.
type diagnosis struct{ what, remedy string }

// broke is the diagnosis of a connection that ends without a reason.
var broke = diagnosis{"it broke the connection", "check that it runs, and speaks TLS or not as you do, and try again"}

// symptoms are parts of the messages of gRPC, Go's TLS and the kernel, the more
// special ones first. {service} is the name of the service, {flag} its flag.
var symptoms = []struct {
	sign string
	diagnosis
}{
	{"certificate has expired or is not yet valid", diagnosis{
		"its certificate has expired, or one of the two clocks is wrong", "renew it where the {service} runs (kiln certs rotate), and compare the clocks",
	}},
	{"signed by unknown authority", diagnosis{
		"its certificate is of an authority that you do not trust", "name the file of that authority with --tls-ca",
	}},
	{"certificate is valid for", diagnosis{"its certificate is of another name", "use a name that it holds, or give one with --tls-server-name"}},
	{"doesn't contain any IP SANs", diagnosis{"its certificate holds no IP address", "use its name, or give the name with --tls-server-name"}},
	{"tls: certificate required", diagnosis{"it asks for your certificate, and you show none", "give --tls-cert and --tls-key, or a token with --token-file"}},
	{"tls: bad certificate", diagnosis{"it refuses your certificate", "use one of its authority, with --tls-cert and --tls-key (kiln certs issue)"}},
	{"tls: expired certificate", diagnosis{"your certificate has expired", "renew it (kiln certs rotate)"}},
	{"tls: unknown certificate", diagnosis{"it refuses your certificate", "use one of its authority, with --tls-cert and --tls-key (kiln certs issue)"}},
	{"first record does not look like a TLS handshake", diagnosis{"it speaks plain text, and you speak TLS", "leave out --tls-ca and the other --tls flags, or name its TLS port"}},
	{"server gave HTTP response to HTTPS client", diagnosis{"it speaks plain text, and you speak TLS", "leave out --tls-ca and the other --tls flags, or name its TLS port"}},
	{"frame too large", diagnosis{"an HTTP/1 server answers there, and not the {service}", "name the gRPC port of the {service}, and not that of its metrics"}},
	{"malformed HTTP", diagnosis{"a server answers there that is not the {service}", "name the gRPC port of the {service} with --{flag}"}},
	{"no application protocol", diagnosis{"a TLS server answers there that does not speak gRPC", "name the gRPC port of the {service} with --{flag}"}},
	{"missing selected ALPN property", diagnosis{"a TLS server answers there that does not speak gRPC", "name the gRPC port of the {service} with --{flag}"}},
	{"error reading server preface", diagnosis{
		"it closes the connection at once: it may speak TLS, or not be the {service}", "give --tls-ca (and --tls-cert, --tls-key), or name another address with --{flag}",
	}},
	{"before server preface received", diagnosis{
		"it closes the connection at once: it may speak TLS, or not be the {service}", "give --tls-ca (and --tls-cert, --tls-key), or name another address with --{flag}",
	}},
	{"connection refused", diagnosis{"nothing listens there", "start it (`kiln up`, or its systemd unit), or name another with --{flag} or --profile"}},
	{"no such host", diagnosis{"the name of the host is not known", "correct the name in --{flag}"}},
	{"no such file or directory", diagnosis{"the socket is not there", "start it, or name another address with --{flag} or --profile"}},
	{"permission denied", diagnosis{"you may not use the socket", "become a member of the group that owns it, or use sudo"}},
	{"no route to host", diagnosis{"the network has no way to it", "check the address and the network"}},
	{"network is unreachable", diagnosis{"the network has no way to it", "check the address and the network"}},
	{"keepalive ping failed", diagnosis{"the connection was lost: no answer came for 40 seconds", "check the network and that it runs, and try again"}},
	{"keepalive timeout", diagnosis{"the connection was lost: no answer came for 40 seconds", "check the network and that it runs, and try again"}},
	{"i/o timeout", diagnosis{"it does not answer", "check the address, the network and firewalls"}},
	{"connection timed out", diagnosis{"it does not answer", "check the address, the network and firewalls"}},
	{"deadline exceeded", diagnosis{"it does not answer in time", "check that it is not overloaded, and the network"}},
	{"connection reset", broke},
	{"broken pipe", broke},
	{"error reading from server", diagnosis{"it broke the connection: it was stopped or restarted", "try again when it runs"}},
	{"closing transport", diagnosis{"it broke the connection: it was stopped or restarted", "try again when it runs"}},
	{"graceful_stop", diagnosis{"it is being stopped or restarted", "try again when it runs"}},
	{"EOF", broke},
}

// diagnose says what the message of a broken connection means.
func (s Service) diagnose(text string) diagnosis {
	name, flag, _ := s.names()
	fill := strings.NewReplacer("{service}", name, "{flag}", flag).Replace
	for _, symptom := range symptoms {
		if strings.Contains(text, symptom.sign) {
			return diagnosis{fill(symptom.what), fill(symptom.remedy)}
		}
	}
	return diagnosis{
		Innermost(text),
		fill("check that it runs (`kiln up` starts one) and speaks TLS or not as you do, or name another with --{flag}"),
	}
}
