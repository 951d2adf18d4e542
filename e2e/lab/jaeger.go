package lab

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Jaeger is a real one, with its collector of OTLP and its store in memory.
type Jaeger struct {
	*Process
	// OTLP is host:port for spans by gRPC, and Addr that of its API.
	OTLP, Addr string
}

// StartJaeger starts one.
func (l *Lab) StartJaeger(ctx context.Context) (*Jaeger, error) {
	path, err := Bin("jaeger")
	if err != nil {
		return nil, err
	}
	dir, err := l.subdir("jaeger")
	if err != nil {
		return nil, err
	}
	var addrs [3]string
	for i := range addrs {
		if addrs[i], err = FreeAddr(); err != nil {
			return nil, err
		}
	}
	file := filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf(`service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines: {traces: {receivers: [otlp], processors: [batch], exporters: [jaeger_storage_exporter]}}
  telemetry: {metrics: {level: none}}
extensions:
  jaeger_storage: {backends: {memory: {memory: {max_traces: 10000}}}}
  jaeger_query: {storage: {traces: memory}, http: {endpoint: %q}, grpc: {endpoint: %q}}
receivers: {otlp: {protocols: {grpc: {endpoint: %q}}}}
processors: {batch: {timeout: 100ms}}
exporters: {jaeger_storage_exporter: {trace_storage: memory}}
`, addrs[0], addrs[1], addrs[2])
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	j := &Jaeger{Addr: addrs[0], OTLP: addrs[2]}
	if j.Process, err = l.Run(Command{Name: "jaeger", Path: path, Args: []string{"--config", file}}); err != nil {
		return nil, err
	}
	return j, poll(ctx, j.Process, "waiting for Jaeger", func(ctx context.Context) error { return getOK(ctx, "http://"+j.Addr+"/api/services") })
}

// Span is a part of a trace, by the service that it is of.
type Span struct {
	ID, Parent, Service, Name string
	Start                     time.Time
	Took                      time.Duration
}

// Traces are those that have a span of a service with a name, the newest first.
func (j *Jaeger) Traces(ctx context.Context, service, name string) ([][]Span, error) {
	ref := fmt.Sprintf("http://%s/api/traces?limit=20&service=%s&operation=%s", j.Addr, url.QueryEscape(service), url.QueryEscape(name))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ref, nil)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	req.Close = true
	res, err := (&http.Client{Timeout: startTimeout}).Do(req)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(res.Body, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return readTraces(text)
}

func readTraces(text []byte) (all [][]Span, err error) {
	var body struct {
		Data []struct {
			Spans []struct {
				SpanID, OperationName, ProcessID string
				References                       []struct{ SpanID string }
				StartTime, Duration              int64 // microseconds
			}
			Processes map[string]struct{ ServiceName string }
		}
	}
	if err := json.Unmarshal(text, &body); err != nil {
		return nil, fmt.Errorf("lab: Jaeger's answer: %w", err)
	}
	for _, trace := range body.Data {
		var spans []Span
		for _, s := range trace.Spans {
			span := Span{
				ID: s.SpanID, Service: trace.Processes[s.ProcessID].ServiceName, Name: s.OperationName,
				Start: time.UnixMicro(s.StartTime), Took: time.Duration(s.Duration) * time.Microsecond,
			}
			if len(s.References) > 0 {
				span.Parent = s.References[0].SpanID
			}
			spans = append(spans, span)
		}
		slices.SortFunc(spans, func(a, b Span) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(b.Took, a.Took)) })
		all = append(all, spans)
	}
	slices.SortFunc(all, func(a, b []Span) int { return b[0].Start.Compare(a[0].Start) })
	return all, nil
}

// Services are the services of a trace, each once, in order.
func Services(spans []Span) (all []string) {
	for _, s := range spans {
		all = append(all, s.Service)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// colours of services in a picture.
var colours = []string{"#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#76b7b2", "#e15759"}

// DrawTrace draws a trace as SVG, a line for each span, at most so many.
func DrawTrace(title string, spans []Span, most int) string {
	const row, left, width = 18, 420, 560
	start, end := spans[0].Start, spans[0].Start
	depth := map[string]int{}
	for _, s := range spans {
		depth[s.ID] = depth[s.Parent] + 1
		if at := s.Start.Add(s.Took); at.After(end) {
			end = at
		}
	}
	services := Services(spans)
	total := max(end.Sub(start), time.Microsecond)
	shown := spans[:min(len(spans), most)]
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", left+width+90, (len(shown)+4)*row)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/><text x="8" y="16" font-size="13" font-weight="bold">%s: %d spans, %s</text>`+"\n",
		html.EscapeString(title), len(spans), total.Round(time.Millisecond/10))
	for i, name := range services {
		fmt.Fprintf(&b, `<rect x="%d" y="26" width="10" height="10" fill="%s"/><text x="%d" y="35">%s</text>`+"\n", 8+i*140, colours[i%len(colours)], 22+i*140, html.EscapeString(name))
	}
	for i, s := range shown {
		y := (i + 3) * row
		x := left + int(float64(width)*float64(s.Start.Sub(start))/float64(total))
		w := max(2, int(float64(width)*float64(s.Took)/float64(total)))
		name := s.Name
		if most := 62 - 2*depth[s.ID]; len(name) > most {
			name = name[:max(8, most)] + "…"
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text><rect x="%d" y="%d" width="%d" height="11" fill="%s"/><text x="%d" y="%d" fill="#666">%s</text>`+"\n",
			8+6*depth[s.ID], y, html.EscapeString(name), x, y-10, w, colours[slices.Index(services, s.Service)%len(colours)], x+w+4, y, s.Took.Round(10*time.Microsecond))
	}
	if len(spans) > len(shown) {
		fmt.Fprintf(&b, `<text x="8" y="%d" fill="#666">and %d more</text>`+"\n", (len(shown)+3)*row, len(spans)-len(shown))
	}
	return b.String() + "</svg>\n"
}
