//! Seconds of a pass, by replaying its operations under the cost model. It moves nothing.
//!
//! # Model
//!
//! Three streams, each in order; a decode at use runs on the stream of computes. An operation starts when its stream is
//! free and everything that it waits for has ended; it takes its cost. Submission is never late. Passes of one kind
//! follow one another; before the first upload of pass `p` the upload and decode streams wait for the end of pass
//! `p - 2`, as in the executor.
//!
//! # Steady state
//!
//! All of this is "latest of, plus": a max-plus linear system, whose passes in the end repeat, shifted by a constant,
//! after a transient. Two passes together hold all that later ones depend on. When both repeat those of `c` passes
//! before, shifted by one number, the pass takes that number over `c`: exact. Near a tie of wire and compute the
//! transient may be long; after [`MAX_PASSES`] the mean over the second half is taken, of the slowest stream. It is
//! off by at most the time that the window can hold back, over the passes of that half.
//!
//! Either way the result is a mean distance between ends of one stream, which is in order, so it is at least the sum of
//! that stream's costs. `certificate` relies on this.

use super::cost::KindCosts;
use super::{Decoding, Operation, PassRef, Stage, VisitPlan};

/// Passes simulated at most.
const MAX_PASSES: usize = 64;

/// Repetitions looked for: every 1, 2, .. this many passes.
const MAX_CYCLE: usize = 4;

/// Seconds of a pass.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Timing {
    /// When passes of the kind follow one another.
    pub(super) pass_s: f64,
    /// The first one, with nothing prefetched.
    pub(super) cold_pass_s: f64,
}

/// Operations of a kind with their dependencies as indices, for quick replay.
struct Program {
    /// Per operation in submission order: stream, slot of its end, cost, and where its dependencies stop.
    operations: Vec<(usize, usize, f64, usize)>,
    /// Slots of dependencies; those of the pass before are offset by `slots`.
    after: Vec<usize>,
    slots: usize,
}

impl Program {
    fn new(
        operations: &[Operation],
        visits: &[VisitPlan],
        kind: usize,
        costs: &KindCosts,
        decoding: Decoding,
    ) -> Self {
        // Of each visit its compute, then upload and decode of each part.
        let mut slots = 0;
        let first: Vec<usize> = visits
            .iter()
            .map(|visit| {
                let first = slots;
                slots += 1 + 2 * visit.parts() as usize;
                first
            })
            .collect();
        let slot = |stage: Stage, visit: u32, part: u32| {
            let within = match stage {
                Stage::Compute => 0,
                Stage::Upload => 1 + 2 * part as usize,
                Stage::Decode => 2 + 2 * part as usize,
            };
            first[visit as usize] + within
        };
        let mut after = Vec::new();
        let operations = operations
            .iter()
            .map(|operation| {
                for one in &operation.after {
                    let slot = || slot(one.stage, one.visit, one.part);
                    match one.pass {
                        PassRef::This => after.push(slot()),
                        PassRef::Previous(of) if of == kind => after.push(slots + slot()),
                        PassRef::Previous(_) => {}
                    }
                }
                (
                    decoding.stream(operation.stage),
                    slot(operation.stage, operation.visit, operation.part),
                    costs.of(
                        operation.stage,
                        operation.visit as usize,
                        operation.part as usize,
                        visits[operation.visit as usize].staging.len().max(1),
                    ),
                    after.len(),
                )
            })
            .collect();
        Self {
            operations,
            after,
            slots,
        }
    }

    /// Replays one pass. `ends` holds this pass in its first half and the pass before in the second; `free` is when
    /// each stream becomes free.
    fn pass(&self, ends: &mut [f64], free: &mut [f64; 3]) {
        let mut from = 0;
        for &(stream, slot, cost, to) in &self.operations {
            let mut start = free[stream];
            for &dependency in &self.after[from..to] {
                start = start.max(ends[dependency]);
            }
            from = to;
            free[stream] = start + cost;
            ends[slot] = start + cost;
        }
    }
}

/// Replays passes of one kind until they repeat.
pub(super) fn simulate(
    operations: &[Operation],
    visits: &[VisitPlan],
    kind: usize,
    costs: &KindCosts,
    decoding: Decoding,
) -> Timing {
    if operations.iter().all(|one| one.stage == Stage::Compute) {
        return Timing {
            pass_s: costs.compute_s,
            cold_pass_s: costs.compute_s,
        };
    }
    let program = Program::new(operations, visits, kind, costs, decoding);
    let tolerance = costs.compute_s.max(1e-300) * 1e-12;
    let mut ends = vec![0.0; 2 * program.slots];
    let mut history: Vec<Vec<f64>> = Vec::new();
    let mut free = [0.0_f64; 3];
    let mut markers: Vec<[f64; 3]> = Vec::new();
    let mut cold_pass_s = 0.0;
    for pass in 0..MAX_PASSES {
        if let Some(before_last) = pass.checked_sub(2) {
            let end = markers[before_last].iter().copied().fold(0.0, f64::max);
            free[Stage::Upload as usize] = free[Stage::Upload as usize].max(end);
            free[Stage::Decode as usize] = free[Stage::Decode as usize].max(end);
        }
        program.pass(&mut ends, &mut free);
        if pass == 0 {
            cold_pass_s = free[Stage::Compute as usize];
        }
        markers.push(free);
        for cycle in 1..=MAX_CYCLE {
            if let Some(period) = repeats(&ends, &history, cycle, tolerance) {
                return Timing {
                    pass_s: period / cycle as f64,
                    cold_pass_s,
                };
            }
        }
        if history.len() > MAX_CYCLE {
            history.remove(0);
        }
        history.push(ends.clone());
        ends.copy_within(..program.slots, program.slots);
    }
    let half = MAX_PASSES / 2;
    let pass_s = (0..3)
        .map(|stream| {
            (markers[MAX_PASSES - 1][stream] - markers[half - 1][stream])
                / (MAX_PASSES - half) as f64
        })
        .fold(0.0, f64::max);
    Timing {
        pass_s,
        cold_pass_s,
    }
}

/// The constant by which the last two passes are later than those `cycle` passes before, if there is one.
fn repeats(ends: &[f64], history: &[Vec<f64>], cycle: usize, tolerance: f64) -> Option<f64> {
    // The oldest entry holds no pass before it.
    let index = history
        .len()
        .checked_sub(cycle)
        .filter(|&index| index > 0)?;
    let earlier = &history[index];
    let mut shift: Option<f64> = None;
    for (now, then) in ends.iter().zip(earlier) {
        // Slots without an operation stay 0.
        if *now == 0.0 && *then == 0.0 {
            continue;
        }
        let by = now - then;
        let expected = *shift.get_or_insert(by);
        if (by - expected).abs() > tolerance + expected.abs() * 1e-10 {
            return None;
        }
    }
    shift
}
