package growth_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kilnbuild/kiln/pkg/growth"
)

var now = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// every makes samples of the last hours, a quarter of an hour apart.
func every(hours int, bytes func(hour float64) float64) (all []growth.Sample) {
	for i := 4 * hours; i >= 0; i-- {
		ago := float64(i) / 4
		all = append(all, growth.Sample{Time: now.Add(-time.Duration(ago * float64(time.Hour))), Bytes: int64(bytes(float64(hours) - ago))})
	}
	return all
}

func TestForecast(t *testing.T) {
	const free = int64(10_000_000_000)
	steady := func(h float64) float64 { return 1e9 + 1e8*h } // 2.4 GB a day
	for name, test := range map[string]struct {
		samples []growth.Sample
		free    int64
		perDay  int64
		full    time.Duration // from now; 0: not foreseeable
	}{
		"steady":            {every(24, steady), free, 2_400_000_000, 100 * time.Hour},
		"unknown disk":      {every(24, steady), -1, 2_400_000_000, 0},
		"older than a week": {append([]growth.Sample{{Time: now.Add(-8 * 24 * time.Hour), Bytes: 1e15}}, every(24, steady)...), free, 2_400_000_000, 100 * time.Hour},
		"one fall": {every(24, func(h float64) float64 {
			if h > 20 {
				return 1e8 * (h - 20)
			}
			return steady(h)
		}), free, 2_400_000_000, 100 * time.Hour},
		"flat":     {every(24, func(float64) float64 { return 5e9 }), free, 0, 0},
		"shrinks":  {every(24, func(h float64) float64 { return 9e9 - 1e8*h }), free, -2_400_000_000, 0},
		"hardly":   {every(24, func(h float64) float64 { return 1e9 + h*1000 }), free, 24_000, 0},
		"for days": {every(7*24, steady), free, 2_400_000_000, 100 * time.Hour},
	} {
		f, ok := growth.Of(test.samples, test.free, now)
		if !ok || f.BytesPerDay < test.perDay-1000 || f.BytesPerDay > test.perDay+1000 {
			t.Errorf("%s: %+v %t, want %d bytes a day", name, f, ok, test.perDay)
		}
		if f.Full.IsZero() != (test.full == 0) || test.full != 0 && f.Full.Sub(now.Add(test.full)).Abs() > time.Minute {
			t.Errorf("%s: full at %s", name, f.Full)
		}
	}
	for name, samples := range map[string][]growth.Sample{"none": nil, "too short": every(1, steady)[1:], "too few": every(1, steady)[:1]} {
		if f, ok := growth.Of(samples, free, now); ok {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

// A straight line is found whatever a fifth of the samples say.
func TestForecastIsRobust(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slope := rapid.Int64Range(-1e9, 1e9).Draw(t, "bytes an hour")
		samples := every(24, func(h float64) float64 { return 1e12 + float64(slope)*h })
		for i := range samples {
			if i%5 == 0 {
				samples[i].Bytes = rapid.Int64Range(0, 1e13).Draw(t, "wrong")
			}
		}
		f, ok := growth.Of(samples, -1, now)
		if want := 24 * slope; !ok || f.BytesPerDay > want+1e11 || f.BytesPerDay < want-1e11 {
			t.Fatalf("%+v, want %d", f, want)
		}
	})
}
