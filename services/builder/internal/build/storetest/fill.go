package storetest

import (
	"fmt"
	"reflect"
	"time"

	"github.com/kilnbuild/kiln/services/builder/internal/build"
)

// full is a record in which every exported field has a value of its own, those
// that are added later too.
func full(id string) build.Record {
	var rec build.Record
	n := 0
	fill(reflect.ValueOf(&rec).Elem(), &n)
	rec.ID, rec.State, rec.LastSeq = id, build.Running, 0
	return rec
}

// fill sets all that v holds to values that differ from zero and one another.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.String:
		v.SetString(fmt.Sprintf("text %d, <&> “ü”\n", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(uint64(*n)) //nolint:gosec // a small count
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(start.Add(time.Duration(*n) * time.Second)))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(v.Field(i), n)
			}
		}
	default:
		panic("storetest: a record holds a " + v.Type().String() + ", which fill does not know")
	}
}
