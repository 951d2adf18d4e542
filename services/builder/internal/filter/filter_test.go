package filter_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kilnbuild/kiln/pkg/aip"
	"github.com/kilnbuild/kiln/pkg/fault"
	"github.com/kilnbuild/kiln/services/builder/internal/build"
	"github.com/kilnbuild/kiln/services/builder/internal/filter"
)

func is(field aip.Field, op aip.Op, value any) aip.Compare {
	return aip.Compare{Field: field, Op: op, Value: value}
}

func TestParse(t *testing.T) {
	november := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	a, b, c := is(build.FieldProject, aip.Equal, "a"), is(build.FieldProject, aip.Equal, "b"), is(build.FieldProject, aip.Equal, "c")
	for text, want := range map[string]aip.Filter{
		"":                                      nil,
		" \n\t ":                                nil,
		"state = FAILED":                        is(build.FieldState, aip.Equal, build.Failed),
		"state=failed":                          is(build.FieldState, aip.Equal, build.Failed),
		`state = "BUILD_STATE_TIMED_OUT"`:       is(build.FieldState, aip.Equal, build.TimedOut),
		"  state != build_state_queued  ":       is(build.FieldState, aip.NotEqual, build.Queued),
		"origin = gateway":                      is(build.FieldOrigin, aip.Equal, build.OriginGateway),
		"origin != BUILD_ORIGIN_API":            is(build.FieldOrigin, aip.NotEqual, build.OriginAPI),
		`project = "we\"b\\ ü"`:                 is(build.FieldProject, aip.Equal, `we"b\ ü`),
		`caller > 'a'`:                          is(build.FieldCaller, aip.Greater, "a"),
		`daemon <= d_1`:                         is(build.FieldDaemon, aip.LessOrEqual, "d_1"),
		`tag:"localhost:5000/web"`:              is(build.FieldTag, aip.HasPrefix, "localhost:5000/web"),
		`tag:web`:                               is(build.FieldTag, aip.HasPrefix, "web"),
		`tag : ""`:                              is(build.FieldTag, aip.HasPrefix, ""),
		`create_time > "2026-11-01T00:00:00Z"`:  is(build.FieldCreateTime, aip.Greater, november),
		`end_time<="2026-11-01T02:00:00+02:00"`: is(build.FieldEndTime, aip.LessOrEqual, november),
		`end_time != timestamp("2026-11-01T00:00:00.0Z")`: is(build.FieldEndTime, aip.NotEqual, november),
		"project = a AND project = b":                     aip.And{a, b},
		"project = a AND project = b AND project = c":     aip.And{a, b, c},
		"project = a OR project = b OR project = c":       aip.Or{a, b, c},
		// OR binds more strongly than AND: AIP-160.
		"project = a AND project = b OR project = c":                        aip.And{a, aip.Or{b, c}},
		"(project = a AND project = b) OR project = c":                      aip.Or{aip.And{a, b}, c},
		"(((project = a)))":                                                 a,
		"NOT project = a":                                                   aip.Not{Of: a},
		"-project = a AND NOT (project = b OR project=c)":                   aip.And{aip.Not{Of: a}, aip.Not{Of: aip.Or{b, c}}},
		"NOT (-project = a)":                                                aip.Not{Of: aip.Not{Of: a}},
		strings.Repeat("project = a AND ", 250) + "project = a":             aip.And(repeat(a, 251)),
		strings.Repeat("(", 1000) + "project=a" + strings.Repeat(")", 1000): a,
		nested(31): nestedFilter(31, a),
	} {
		got, err := filter.Parse(text)
		if err != nil {
			t.Errorf("%.80q: %v", text, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%.80q (-want +got):\n%s", text, diff)
		}
	}
}

func repeat(f aip.Filter, n int) []aip.Filter {
	var all []aip.Filter
	for range n {
		all = append(all, f)
	}
	return all
}

// nested is a filter of conditions within one another.
func nested(depth int) string {
	return strings.Repeat("-(", depth) + "project = a" + strings.Repeat(")", depth)
}

func nestedFilter(depth int, f aip.Filter) aip.Filter {
	for range depth {
		f = aip.Not{Of: f}
	}
	return f
}

func TestParseRefuses(t *testing.T) {
	for text, says := range map[string]string{
		"state":                             "at character 1: a value stands where a comparison must",
		`"web"`:                             "at character 1: a value stands",
		"7":                                 "at character 1: a value stands",
		"state = ":                          "at character 9: it ends where more must follow",
		"state = FAILED AND":                `at character 16: unexpected "AND"`,
		"state = FAILED AND ":               `at character 16: unexpected "AND"`,
		"AND":                               "at character 1: ",
		"= web":                             "at character 1: ",
		"(state = FAILED":                   "at character 16: ",
		"state = FAILED)":                   "at character 15: ",
		`project = "web`:                    "at character 11: unterminated string",
		"state = FAILED project = web":      "at character 16: a condition follows another",
		"  wéb = 1":                         "at character 3: a comparison does not begin with a field's name",
		`"state" = FAILED`:                  "at character 1: a comparison does not begin",
		"record.id = web":                   "at character 1: a comparison does not begin",
		"FAILED = state":                    "at character 1: a comparison does not begin",
		"project = a AND state = BROKEN":    "at character 25: there is no state of this name",
		"state = unspecified":               "at character 9: there is no state",
		"state = BUILD_ORIGIN_API":          "at character 9: there is no state",
		"origin = FAILED":                   "at character 10: there is no origin",
		"state < FAILED":                    "state has no order",
		"state:FAIL":                        "state has no order",
		"create_time > yesterday":           "at character 15: this is no time",
		`create_time > "2026-11-01"`:        "at character 15: this is no time",
		`create_time:"2026"`:                "a time has no beginning",
		"create_time > 2026-11-01":          `at character 19: unexpected "-11-01"`,
		"create_time > 7":                   "at character 15: a field is compared with something that is no value",
		`project = timestamp("x")`:          "at character 11: a field is compared",
		"project = (a OR b)":                "a field is compared",
		"project = a.b":                     "a field is compared",
		"project = my-web":                  `at character 13: unexpected "-web"`,
		"tag:localhost:5000/web":            `at character 14: unexpected ":5000/web"`,
		"project == web":                    "at character 10: ",
		"regex(project, web)":               "at character 1: there is no condition regex(…)",
		"AND(state, web, project)":          "at character 1: there is no condition AND(…)",
		"OR()":                              "at character 1: there is no condition OR(…)",
		"AND(state, project)":               "a value stands where a comparison must",
		"project = a AND FUZZY(a, b)":       "at character 26: a condition follows another",
		"project = \"\xff\"":                "invalid UTF-8",
		nested(32):                          "more than 32 conditions stand within one another",
		strings.Repeat("(", 4096):           "it ends where more must follow",
		strings.Repeat("f(", 2048):          `at character 2: unexpected "(f(`,
		strings.Repeat("project = a ", 500): "is 6000 bytes long, more than 4096",
	} {
		got, err := filter.Parse(text)
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || e.Kind != fault.InvalidArgument || e.Field != "filter" || e.Remedy == "" || !strings.Contains(e.Message, says) {
			t.Errorf("%.80q is %v, error %v; want one that says %q", text, got, err, says)
		}
	}
}

func TestParseOrder(t *testing.T) {
	for text, want := range map[string][]aip.Order{
		"":                                nil,
		"  ":                              nil,
		"create_time":                     {{Field: build.FieldCreateTime}},
		" end_time   desc ":               {{Field: build.FieldEndTime, Desc: true}},
		"project,state asc,end_time desc": {{Field: build.FieldProject}, {Field: build.FieldState}, {Field: build.FieldEndTime, Desc: true}},
	} {
		got, err := filter.ParseOrder(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q is %v, error %v; want %v", text, got, err, want)
		}
	}
	for text, says := range map[string]string{
		",":                            "at field 1: it is empty",
		"project,":                     "at field 2: it is empty",
		"project, tag":                 "at field 2: builds have no order by this name",
		"Project":                      "at field 1: builds have no order",
		"project desc, project":        "at field 2: it was named before",
		"project down":                 `at field 1: only "asc" or "desc"`,
		"project DESC":                 `at field 1: only "asc" or "desc"`,
		"project desc desc":            `at field 1: only "asc" or "desc"`,
		strings.Repeat("project ", 99): "is 792 bytes long, more than 256",
	} {
		got, err := filter.ParseOrder(text)
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || e.Kind != fault.InvalidArgument || e.Field != "order_by" || e.Remedy == "" || !strings.Contains(e.Message, says) {
			t.Errorf("%.80q is %v, error %v; want one that says %q", text, got, err, says)
		}
	}
}

// FuzzParse holds the parser to a filter that a store can ask, or a fault of the
// caller's, whatever comes.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"", `state = FAILED AND project = "web"`, `-tag:"x" OR NOT (create_time > "2026-11-01T00:00:00Z")`,
		"a(b, c)", "((((", "1.5 < 2", `"\u00e9\x41"`, nested(40),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := filter.Parse(text)
		if err != nil {
			if fault.KindOf(err) != fault.InvalidArgument {
				t.Errorf("%v", err)
			}
			return
		}
		check(t, got, 0)
	})
}

// check fails the test when a filter is not what stores are promised.
func check(t *testing.T, filter aip.Filter, depth int) {
	t.Helper()
	if depth > 32 {
		t.Fatal("it is too deep")
	}
	switch f := filter.(type) {
	case nil:
		if depth > 0 {
			t.Error("nothing stands for a condition")
		}
	case aip.And:
		for _, f := range f {
			check(t, f, depth+1)
		}
	case aip.Or:
		for _, f := range f {
			check(t, f, depth+1)
		}
	case aip.Not:
		check(t, f.Of, depth+1)
	case aip.Compare:
		want := map[aip.Field]any{build.FieldState: build.Queued, build.FieldOrigin: build.OriginAPI, build.FieldCreateTime: time.Time{}, build.FieldEndTime: time.Time{}}[f.Field]
		if want == nil {
			want = ""
		}
		if reflect.TypeOf(f.Value) != reflect.TypeOf(want) {
			t.Errorf("%s is compared with %T", f.Field, f.Value)
		}
	}
}

func FuzzParseOrder(f *testing.F) {
	f.Add("project, create_time desc")
	f.Add(",")
	f.Fuzz(func(t *testing.T, text string) {
		got, err := filter.ParseOrder(text)
		if err != nil && fault.KindOf(err) != fault.InvalidArgument || len(got) > 4 {
			t.Errorf("%v, error %v", got, err)
		}
	})
}
