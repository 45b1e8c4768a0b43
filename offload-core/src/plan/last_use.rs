//! Who used a byte range last. It orders nothing by itself; `schedule` turns its answers into fences.
//!
//! The plain version scans earlier visits backwards until one overlaps: quadratic when overlaps are far apart or
//! absent. Here the region is cut into segments that each remember their latest user; using a range repaints its
//! segments, and equal neighbours merge, so that about as many segments remain as there are places side by side.

use super::Place;

/// Latest user per byte, kept apart for two classes of users.
#[derive(Debug, Clone)]
pub(super) struct LastUse {
    /// Start of a segment, and the latest visit of either class; a segment ends where the next begins.
    segments: Vec<(u64, [Option<u32>; 2])>,
}

impl LastUse {
    pub(super) fn new() -> Self {
        Self {
            segments: vec![(0, [None; 2])],
        }
    }

    /// Index of the segment that holds `byte`.
    fn at(&self, byte: u64) -> usize {
        self.segments.partition_point(|&(start, _)| start <= byte) - 1
    }

    /// Makes a segment begin at `byte`; its index.
    fn cut(&mut self, byte: u64) -> usize {
        let index = self.at(byte);
        if self.segments[index].0 == byte {
            return index;
        }
        let users = self.segments[index].1;
        self.segments.insert(index + 1, (byte, users));
        index + 1
    }

    /// Notes that `visit` of `class` uses `place`.
    pub(super) fn note(&mut self, place: &Place, class: usize, visit: u32) {
        if place.bytes == 0 {
            return;
        }
        let first = self.cut(place.offset);
        let after = self.cut(place.end());
        for (_, users) in &mut self.segments[first..after] {
            users[class] = Some(visit);
        }
        // Only the painted segments and the two beside them can have become equal to a neighbour.
        let from = first.max(1);
        let mut kept = from;
        for index in from..=after {
            if self.segments[index].1 != self.segments[kept - 1].1 {
                self.segments[kept] = self.segments[index];
                kept += 1;
            }
        }
        self.segments.drain(kept..=after);
    }

    /// The latest visit of each class that used a byte of `place`.
    pub(super) fn latest(&self, place: &Place) -> [Option<u32>; 2] {
        let mut latest = [None; 2];
        if place.bytes == 0 {
            return latest;
        }
        for &(start, users) in &self.segments[self.at(place.offset)..] {
            if start >= place.end() {
                break;
            }
            latest = [latest[0].max(users[0]), latest[1].max(users[1])];
        }
        latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_user_is_what_a_backward_scan_finds() {
        let mut state = 7_u64;
        let mut next = move |below: u64| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) % below
        };
        for _ in 0..200 {
            let mut map = LastUse::new();
            let mut used: Vec<(Place, usize)> = Vec::new();
            for visit in 0..40 {
                let place = Place {
                    offset: next(20) * 256,
                    bytes: next(8) * 256,
                };
                let expected = [0, 1].map(|class| {
                    used.iter()
                        .rposition(|(other, of)| *of == class && other.overlaps(&place))
                        .map(|index| index as u32)
                });
                if place.bytes > 0 {
                    assert_eq!(map.latest(&place), expected, "{place:?}");
                }
                let class = next(2) as usize;
                map.note(&place, class, visit);
                used.push((place, class));
                if place.bytes == 0 {
                    used.last_mut().unwrap().0.offset = u64::MAX;
                }
            }
        }
    }
}
