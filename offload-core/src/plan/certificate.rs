//! Lower bounds for a pass, and a plan's distance from them. It proves; it improves nothing.
//!
//! # Schedule bound
//!
//! Given the form of each block, each pass runs all its uploads on one in-order stream: the wire. Its computes and
//! decodes run on the device's execution units, which do one second's work a second, on whatever streams: a decode at
//! the full rate of memory leaves nothing over for a product, and beside a product each gets its part (measured: decodes
//! ahead on a stream of their own lengthen a compute-bound pass by just their own seconds). In steady state a pass takes
//! as long as the mean distance between the ends of successive passes, and what works for `b` seconds a pass cannot end
//! passes less than `b` apart. So no schedule is faster than
//!
//! ```text
//! max(sum of streamed uploads, sum of computes + sum of decodes of streamed and packed blocks)
//! ```
//!
//! # Placement bound
//!
//! Let the budget be `B`. If everything that may be resident is everything there is, and it fits, the bound is the sum
//! of computes `C`, which no placement goes below. Otherwise every placement streams or packs at least one block `j`:
//! one that may be. Its arena then holds, apart, all remainders, all blocks that must be resident, what was chosen to stay,
//! residents `R` and packed blocks `P`, and for `j`, if any kind visits it, its place in the window, and staging for
//! loading, and for the largest part of `j` unless that may be packed. So
//!
//! ```text
//! sum over R of place(i) + sum over P of encoded(i)
//!     <=  K  =  B - remainders - must be resident - min over j of (place(j) + staging(j))
//! ```
//!
//! The uploads of the kind sum to `U - (seconds that R and P save)`, where `U` streams everything that is not forced to
//! be resident. What they save is at most the value of the knapsack of capacity `K` in which each free block has the
//! smaller weight of `place` and, if it may be packed, `encoded`, and worth its upload seconds in this kind; the 0-1
//! knapsack is at most the fractional one, which is filled by descending worth per byte. Hence the pass takes at least
//! `U - fractional`, by the schedule bound; likewise for decodes, which only `R` saves, with their own optimal filling (so
//! the two are separate relaxations, and their larger one is a bound even if no placement attains both):
//!
//! ```text
//! max(U - fractional(uploads), C + D - fractional(decodes))
//! ```
//!
//! `K` is not negative when a plan exists. Bytes are padded as in the arena. The bound is for a kind alone: a plan for
//! several kinds shares one set of residents among them and may not attain it for each.

use super::problem::{Problem, Sizes};
use super::{Certificate, Form};

/// Seconds of uploads, decodes and computes in a pass of `kind`.
pub(super) fn work_s(problem: &Problem, kind: usize, forms: &[Form]) -> [f64; 3] {
    let costs = &problem.costs[kind];
    let mut work = [0.0, 0.0, costs.compute_s];
    for (index, visit) in problem.workload.kinds[kind].visits.iter().enumerate() {
        let form = forms[visit.block];
        if form == Form::Resident || problem.sizes[visit.block].place == 0 {
            continue;
        }
        work[1] += costs.decode[index];
        if form == Form::Streamed {
            work[0] += costs.least_upload[index];
        }
    }
    work
}

/// No schedule of that work takes less.
pub(super) fn schedule_bound_s([upload, decode, compute]: [f64; 3]) -> f64 {
    upload.max(decode + compute)
}

/// No placement within the budget gives a pass of `kind` that takes less.
pub(super) fn placement_bound_s(problem: &Problem, kind: usize, budget_bytes: u64) -> f64 {
    let costs = &problem.costs[kind];
    let sizes = &problem.sizes;
    let remainders = sizes.iter().map(|one| one.remainder).sum::<u64>();
    let places = |form: Option<Form>| {
        sizes
            .iter()
            .filter(move |one| one.forced == form)
            .map(|one| one.place)
            .sum::<u64>()
    };
    let kept = remainders + places(Some(Form::Resident));
    let must_stream = sizes.iter().any(|one| one.forced == Some(Form::Streamed));
    if !must_stream && kept + places(None) + problem.load_staging <= budget_bytes {
        return costs.compute_s;
    }
    let passage = sizes
        .iter()
        .filter(|one| one.forced != Some(Form::Resident))
        .map(|one| match (one.visited, one.can_pack) {
            (true, true) => one.place + problem.load_staging,
            (true, false) => one.place + one.piece.max(problem.load_staging),
            (false, _) => problem.load_staging,
        })
        .min()
        .unwrap_or(0);
    let capacity = budget_bytes.saturating_sub(kept).saturating_sub(passage);
    // An upload is saved by the smaller of the forms that stay, a decode by being resident.
    let uploads = relaxed_s(
        problem,
        kind,
        capacity,
        &costs.least_upload,
        |one| match one.can_pack {
            true => one.staging.min(one.place),
            false => one.place,
        },
    );
    let decodes = relaxed_s(problem, kind, capacity, &costs.decode, |one| one.place);
    uploads.max(decodes + costs.compute_s)
}

/// Seconds of `seconds`, one per visit, that are left when the blocks that save most per byte stay, each taking
/// `bytes`, up to `capacity`, the last of them in part.
fn relaxed_s(
    problem: &Problem,
    kind: usize,
    capacity: u64,
    seconds: &[f64],
    bytes: impl Fn(&Sizes) -> u64,
) -> f64 {
    let mut worth = vec![0.0; problem.sizes.len()];
    for (visit, seconds) in problem.workload.kinds[kind].visits.iter().zip(seconds) {
        worth[visit.block] += seconds;
    }
    let mut left = 0.0;
    let mut free: Vec<(f64, u64)> = Vec::new();
    for (sizes, worth) in problem.sizes.iter().zip(worth) {
        match sizes.forced {
            Some(Form::Resident) => {}
            Some(_) => left += worth,
            None => free.push((worth, bytes(sizes))),
        }
    }
    free.sort_by(|a, b| (b.0 / b.1 as f64).total_cmp(&(a.0 / a.1 as f64)));
    let mut room = capacity;
    for (worth, place) in free {
        let kept = room.min(place);
        room -= kept;
        left += worth * (1.0 - kept as f64 / place as f64);
    }
    left
}

/// Both bounds, and how far `pass_s` is from them.
pub(super) fn certify(
    problem: &Problem,
    kind: usize,
    forms: &[Form],
    budget_bytes: u64,
    pass_s: f64,
) -> Certificate {
    let schedule_bound_s = schedule_bound_s(work_s(problem, kind, forms));
    // The relaxation sums in another order; rounding must not lift it above what it relaxes.
    let placement_bound_s = placement_bound_s(problem, kind, budget_bytes).min(schedule_bound_s);
    let gap = |bound: f64| match bound > 0.0 {
        true => (pass_s / bound - 1.0).clamp(0.0, f64::MAX),
        false => 0.0,
    };
    Certificate {
        schedule_bound_s,
        placement_bound_s,
        schedule_gap: gap(schedule_bound_s),
        placement_gap: gap(placement_bound_s),
    }
}
