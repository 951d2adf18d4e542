// Command stepprobe tries to reach, from a RUN step of a build, what a step must not
// reach, and reports what it reached. As "stepprobe serve" it is the internet of the
// tests: a name server and a web server.
//
//	stepprobe try REQUEST.json   # writes one line, "REPORT " and a Report in JSON
//	stepprobe serve ADDRESS      # answers every name with ADDRESS
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: stepprobe try REQUEST.json | stepprobe serve ADDRESS")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(verb, arg string) error {
	if verb == "serve" {
		return serve(arg)
	}
	text, err := os.ReadFile(arg)
	if err != nil {
		return err
	}
	var request Request
	if err := json.Unmarshal(text, &request); err != nil {
		return err
	}
	report, err := json.Marshal(try(request))
	fmt.Printf("REPORT %s\n", report)
	return err
}
