package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// slow is how long a top-level test takes to be named although it passed: it
// shows that a long suite is alive, and where its time goes.
const slow = 5 * time.Second

// event is one line of `go test -json` (see `go doc test2json`).
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
	Elapsed    float64
}

// summary counts the tests of a stream of events and prints failures.
type summary struct {
	out                     io.Writer
	passed, failed, skipped int
	broken                  int // packages that failed beside their tests: no build, panic, timeout
	output                  map[string][]string
	perPackage              map[string]int
	failedIn                map[string]int
	complaints              []string
}

func newSummary(out io.Writer) *summary {
	return &summary{out: out, output: map[string][]string{}, perPackage: map[string]int{}, failedIn: map[string]int{}}
}

func (s *summary) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			s.line(line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) line(line string) {
	var e event
	if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
		fmt.Fprint(s.out, line) // not an event: go test itself has something to say
		return
	}
	switch e.Action {
	case "output":
		key := e.Package + "\x00" + e.Test
		s.output[key] = append(s.output[key], e.Output)
	case "build-output":
		fmt.Fprint(s.out, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.endPackage(e)
		} else {
			s.endTest(e)
		}
	}
}

func (s *summary) endTest(e event) {
	key := e.Package + "\x00" + e.Test
	name := e.Package + " " + e.Test
	took := time.Duration(e.Elapsed * float64(time.Second))
	s.perPackage[e.Package]++
	switch e.Action {
	case "pass":
		s.passed++
		if took >= slow && !strings.Contains(e.Test, "/") {
			fmt.Fprintf(s.out, "    pass %s (%s)\n", name, took)
		}
	case "fail":
		s.failed++
		s.failedIn[e.Package]++
		s.complain("--- FAIL: "+name, s.output[key])
	case "skip":
		s.skipped++
		s.complain("--- SKIP: "+name, s.output[key])
	}
	delete(s.output, key)
}

func (s *summary) endPackage(e event) {
	key := e.Package + "\x00"
	switch {
	case e.Action == "fail":
		if s.failedIn[e.Package] == 0 {
			s.broken++
			s.complain("--- FAIL: "+e.Package, s.rest(e.Package))
		}
		fmt.Fprintf(s.out, "FAIL %s (%d tests, %.1fs)\n", e.Package, s.perPackage[e.Package], e.Elapsed)
	case s.perPackage[e.Package] > 0:
		fmt.Fprintf(s.out, "ok   %s (%d tests, %.1fs)\n", e.Package, s.perPackage[e.Package], e.Elapsed)
	}
	delete(s.output, key)
}

// rest is what a package wrote that belongs to no finished test: of a panic or a
// timeout, the test that was running holds the reason.
func (s *summary) rest(pkg string) []string {
	var all []string
	for key, lines := range s.output {
		if strings.HasPrefix(key, pkg+"\x00") {
			all = append(all, lines...)
		}
	}
	return all
}

func (s *summary) complain(title string, output []string) {
	fmt.Fprintln(s.out, title)
	for _, line := range output {
		fmt.Fprint(s.out, "    ", line)
	}
	s.complaints = append(s.complaints, title)
}

// finish prints the end of the summary and says whether all is well.
func (s *summary) finish() bool {
	if len(s.complaints) > 0 {
		fmt.Fprintln(s.out, "\nNot passed:")
		for _, title := range s.complaints {
			fmt.Fprintln(s.out, "  "+strings.TrimPrefix(title, "--- "))
		}
	}
	ran := s.passed + s.failed
	if ran == 0 {
		fmt.Fprintln(s.out, "no test ran")
	}
	fmt.Fprintf(s.out, "%d passed, %d failed, %d skipped\n", s.passed, s.failed+s.broken, s.skipped)
	return ran > 0 && s.failed == 0 && s.broken == 0 && s.skipped == 0
}
