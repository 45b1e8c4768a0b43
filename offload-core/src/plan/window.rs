//! Offsets of places within a region, and how large a region a depth needs. The window and staging are both such
//! regions. It does not know what the places hold.
//!
//! # Size
//!
//! A region of depth `d` has room for any `d` consecutive places: the largest sum over cyclic runs, because passes
//! follow one another. Depth 1 is the largest place, the least that works.
//!
//! # Offsets
//!
//! The plain version is a ring: each place begins where the one before ended. It wastes the end of the region when
//! sizes differ, and at the seam between passes: with 4 visits and room for 3 places, the places 0, 1, 2, 0 make the
//! first visit of the next pass wait for the last of this one. So this is a small register allocator instead. Each
//! visit takes the offset for which the nearer of two visits is as far away as can be: the latest earlier one that it
//! overlaps, and, near the end of the pass, the first one of the next pass. Example: 0, 1, 2, 1, where both are 2
//! visits away.
//!
//! Offsets worth trying touch something: an end of the region, or the start or end of a place nearby.
//!
//! Equal offers are decided in several ways, each for the whole pass, and the best outcome is kept. *Low* takes the
//! lowest offset: right when sizes are equal. The others are content with the depth as distance, and then care for
//! the room that is left: *ends* prefers to touch an end of the region, which at depth 2 keeps any two neighbours
//! apart whatever their sizes; *near* prefers to touch the newest place, so that what becomes free next is in one
//! piece. Greedy, so not optimal for mixed sizes at depths above 2; what it costs shows in the predicted pass.

use std::cmp::Reverse;

/// Visits looked at in either direction.
const REACH: usize = 8;

/// Bytes of a region with room for any `depth` consecutive places of any kind; 0 if there are none.
pub(super) fn region_bytes<'a>(kinds: impl Iterator<Item = &'a [u64]>, depth: usize) -> u64 {
    kinds
        .map(|sizes| {
            let run = depth.min(sizes.len());
            let mut sum = sizes[..run].iter().sum::<u64>();
            let mut largest = sum;
            for (index, leaving) in sizes.iter().enumerate() {
                sum = sum - leaving + sizes[(index + run) % sizes.len()];
                largest = largest.max(sum);
            }
            largest
        })
        .max()
        .unwrap_or(0)
}

/// How equal offers are decided.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Tie {
    Low,
    Ends,
    Near,
}

/// Offsets within a region of `region` bytes, made for `depth`, for places of `sizes`, each at most `region`, in the
/// order of use.
///
/// Offsets are multiples of whatever all sizes and `region` are multiples of.
pub(super) fn offsets(sizes: &[u64], region: u64, depth: usize) -> Vec<u64> {
    let mut best = assign(sizes, region, depth, Tie::Low);
    if sizes.windows(2).all(|pair| pair[0] == pair[1]) {
        return best;
    }
    let mut best_distances = distances(sizes, &best, depth);
    for tie in [Tie::Ends, Tie::Near] {
        let other = assign(sizes, region, depth, tie);
        let other_distances = distances(sizes, &other, depth);
        if other_distances > best_distances {
            (best, best_distances) = (other, other_distances);
        }
    }
    best
}

fn overlap(offset: u64, bytes: u64, other_offset: u64, other_bytes: u64) -> bool {
    offset < other_offset + other_bytes && other_offset < offset + bytes
}

fn assign(sizes: &[u64], region: u64, depth: usize, tie: Tie) -> Vec<u64> {
    let count = sizes.len();
    let mut offsets: Vec<u64> = Vec::with_capacity(count);
    for (index, &bytes) in sizes.iter().enumerate() {
        let behind = index.saturating_sub(REACH)..index;
        // Visits of the next pass within reach that already have their places.
        let ahead = 0..(REACH + 1 + index).saturating_sub(count).min(index);
        let last = region - bytes;
        let touching = behind.clone().rev().chain(ahead.clone()).flat_map(|near| {
            let above = offsets[near] + sizes[near];
            let below = offsets[near].checked_sub(bytes);
            [(above <= last).then_some(above), below]
        });
        let newest = index
            .checked_sub(1)
            .map(|near| (offsets[near], offsets[near] + sizes[near]));
        let offers = [Some(0), Some(last)]
            .into_iter()
            .chain(touching)
            .flatten()
            .map(|offset| {
                let clash = |near: &usize| overlap(offset, bytes, offsets[*near], sizes[*near]);
                let back = behind
                    .clone()
                    .rev()
                    .find(&clash)
                    .map_or(REACH + 1, |near| index - near);
                let forth = ahead
                    .clone()
                    .find(&clash)
                    .map_or(REACH + 1, |near| count - index + near);
                let distance = back.min(forth);
                match tie {
                    Tie::Low => (distance, false, Reverse(offset)),
                    Tie::Ends => {
                        let touches = offset == 0 || offset == last;
                        (distance.min(depth), touches, Reverse(offset))
                    }
                    Tie::Near => {
                        let touches = newest
                            .is_none_or(|(start, end)| offset == end || offset + bytes == start);
                        (distance.min(depth), touches, Reverse(offset))
                    }
                }
            });
        let (_, _, Reverse(offset)) = offers.max().expect("offset 0 is always offered");
        offsets.push(offset);
    }
    offsets
}

/// How good offsets are: the shortest distance between overlapping places, and the sum over visits of the distance to
/// the latest earlier one, as far as the depth.
fn distances(sizes: &[u64], offsets: &[u64], depth: usize) -> (usize, usize) {
    let count = sizes.len();
    let (mut shortest, mut sum) = (usize::MAX, 0);
    for index in 0..count {
        let distance = (1..=REACH.min(count))
            .find(|back| {
                let near = (index + count - back) % count;
                overlap(offsets[index], sizes[index], offsets[near], sizes[near])
            })
            .unwrap_or(REACH + 1);
        shortest = shortest.min(distance);
        sum += distance.min(depth);
    }
    (shortest, sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_visits_in_three_places_keep_two_visits_apart_across_the_seam() {
        assert_eq!(offsets(&[256; 4], 768, 3), [0, 256, 512, 256]);
    }

    #[test]
    fn equal_sizes_that_divide_evenly_make_a_ring() {
        assert_eq!(offsets(&[256; 6], 768, 3), [0, 256, 512, 0, 256, 512]);
    }

    #[test]
    fn at_depth_two_neighbours_never_overlap_whatever_their_sizes() {
        let sizes: Vec<u64> = (0..50)
            .map(|index| 256 * (1 + (index * index) % 7))
            .collect();
        let region = region_bytes([sizes.as_slice()].into_iter(), 2);
        let offsets = offsets(&sizes, region, 2);
        assert!(distances(&sizes, &offsets, 2).0 >= 2, "{offsets:?}");
    }

    #[test]
    fn a_region_holds_every_cyclic_run_of_its_depth() {
        let sizes = [5, 1, 1, 4];
        let bytes = |depth| region_bytes([sizes.as_slice()].into_iter(), depth);
        assert_eq!([1, 2, 3, 4, 5].map(bytes), [5, 9, 10, 11, 11]);
        assert_eq!(region_bytes([[].as_slice()].into_iter(), 3), 0);
    }
}
