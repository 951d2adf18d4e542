// Package growth says how something grows, such as a cache or a registry, and when its disk
// is full if it goes on so.
package growth

import (
	"slices"
	"time"
)

// Sample is what there was at one time.
type Sample struct {
	Time  time.Time
	Bytes int64
}

// Forecast is how it grows.
type Forecast struct {
	BytesPerDay int64         // less than 0: it shrinks
	Watched     time.Duration // how long it was
	Full        time.Time     // when the disk is full; zero: not foreseeable
}

const (
	// Window is how far back samples are looked at: a week has all days of work.
	Window = 7 * 24 * time.Hour
	// A forecast from less than this would be one of the weather.
	minWatched = time.Hour
	minSamples = 6
	// maxSamples bounds the work, which is the square of it.
	maxSamples = 300
	// foreseeable is how far ahead a full disk is told.
	foreseeable = 10 * 365 * 24 * time.Hour
)

const day = 24 * time.Hour

// Of makes a forecast of samples in the order of their times; false when they are too
// few, or too close together. free is what is free on the disk, in bytes; less than 0: not
// known.
//
// The growth is the median of the slopes between all pairs of samples (Theil, 1950; Sen,
// 1968). A cache grows slowly and falls at once when it is pruned: a line of least
// squares follows each fall, the median does not.
func Of(samples []Sample, free int64, now time.Time) (Forecast, bool) {
	samples = slices.DeleteFunc(slices.Clone(samples), func(s Sample) bool { return now.Sub(s.Time) > Window })
	if len(samples) < minSamples || samples[len(samples)-1].Time.Sub(samples[0].Time) < minWatched {
		return Forecast{}, false
	}
	f := Forecast{BytesPerDay: int64(slope(thin(samples))), Watched: samples[len(samples)-1].Time.Sub(samples[0].Time)}
	if free >= 0 && f.BytesPerDay > 0 {
		if left := float64(free) / float64(f.BytesPerDay) * float64(day); left < float64(foreseeable) {
			f.Full = now.Add(time.Duration(left))
		}
	}
	return f, true
}

// thin takes samples out evenly, the first and the last not among them.
func thin(samples []Sample) []Sample {
	if len(samples) <= maxSamples {
		return samples
	}
	kept := make([]Sample, maxSamples)
	for i := range kept {
		kept[i] = samples[i*(len(samples)-1)/(maxSamples-1)]
	}
	return kept
}

// slope is the median slope of all pairs, in bytes a day.
func slope(samples []Sample) float64 {
	var all []float64
	for i, a := range samples {
		for _, b := range samples[i+1:] {
			if span := b.Time.Sub(a.Time); span > 0 {
				all = append(all, float64(b.Bytes-a.Bytes)/(float64(span)/float64(day)))
			}
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}
