//! The smallest arena for which a plan exists. It does not care how fast that plan is.
//!
//! An arena holds remainders, residents, a window as large as the largest streamed place at least, and staging as large
//! as the largest streamed part, or the whole of what has none, and what loading needs, at least. Take a placement of
//! least bytes, let `p` and `s` be its largest streamed place and part. Streaming every further block of at most `p` and
//! `s` raises neither, and removes residents. So the least arena is found among the placements "stream what is at most
//! `p` and `s`", where `p` and `s` are sizes of blocks and parts, or 0. Blocks that no kind visits need no window and are
//! streamed always.
//!
//! Packing does not help here: a packed block that is streamed instead takes no more staging than it took by itself.
//!
//! A window that is asked to be `d` places deep counts as `d` of the largest: the least found is one that does.
//!
//! For each `p` one walk over the blocks by ascending staging covers all `s`: `n` squared steps in all.

use super::Form;
use super::problem::{Placement, Problem};

/// The least arena, and a placement that has it.
#[derive(Debug)]
pub(super) struct Least {
    pub(super) placement: Placement,
    pub(super) arena_bytes: u64,
}

/// The smallest arena for which a plan exists.
pub(super) fn least(problem: &Problem) -> Least {
    let mut free: Vec<usize> = problem
        .free()
        .into_iter()
        .filter(|&block| problem.sizes[block].visited)
        .collect();
    free.sort_by_key(|&block| (problem.sizes[block].piece, block));
    let forced = || {
        problem
            .sizes
            .iter()
            .filter(|sizes| sizes.visited && sizes.forced == Some(Form::Streamed))
    };
    let base_place = forced().map(|sizes| sizes.place).max().unwrap_or(0);
    let base_staging = forced().map(|sizes| sizes.piece).max().unwrap_or(0);
    let mut places: Vec<u64> = free
        .iter()
        .map(|&block| problem.sizes[block].place.max(base_place))
        .chain([base_place])
        .collect();
    places.sort_unstable();
    places.dedup();

    // What a threshold pair adds to all residents: its window and staging, less the blocks streamed. Blocks of equal
    // staging are taken one by one; the last of them gives the pair's value, and the others are placements as well.
    let depth = problem.window_depths[0];
    let cost = |place: u64, staging: u64, saved: u64| {
        depth as i128 * i128::from(place) + i128::from(staging.max(problem.load_staging))
            - i128::from(saved)
    };
    let mut best = (cost(base_place, base_staging, 0), base_place, base_staging);
    for place in places {
        let mut saved = 0;
        for &block in &free {
            let sizes = &problem.sizes[block];
            if sizes.place <= place {
                saved += sizes.place;
                let staging = sizes.piece.max(base_staging);
                best = best.min((cost(place, staging, saved), place, staging));
            }
        }
    }
    let (_, place, staging) = best;
    let forms = problem
        .sizes
        .iter()
        .map(|sizes| match sizes.forced {
            Some(form) => form,
            None if !sizes.visited || (sizes.place <= place && sizes.piece <= staging) => {
                Form::Streamed
            }
            None => Form::Resident,
        })
        .collect();
    let placement = Placement {
        forms,
        window_depth: depth,
        in_parts: true,
        staging_depth: 1,
        decoding: problem.decodings[0],
    };
    Least {
        arena_bytes: problem.arena_bytes(&placement),
        placement,
    }
}
