//! A checked workload with its costs, and what a placement of it comes to. It chooses nothing.

use super::certificate;
use super::cost::{self, KindCosts};
use super::live;
use super::placement;
use super::schedule;
use super::simulate::{self, Timing};
use super::window;
use super::{
    ArenaMap, BlockPlan, Form, KindPlan, Operation, Place, Plan, PlanError, Rates, Verdict,
    VisitPlan, Workload, padded,
};
use crate::model::Residency;

/// A pass that computes for longer than it copies or decodes, and stalls for at most this part of its time, is bound by
/// compute.
const HIDDEN: f64 = 0.01;

/// Stalls below this part of a pass come from adding up in another order.
const ROUNDING: f64 = 1e-9;

/// What is known of a block before anything is chosen, in padded bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Remainder.
    pub(super) remainder: u64,
    /// Place or resident; 0 if there is nothing to stream.
    pub(super) place: u64,
    /// Staging when streamed.
    pub(super) staging: u64,
    /// Whether any kind visits it.
    pub(super) visited: bool,
    /// The form it must have, if there is no choice.
    pub(super) forced: Option<Form>,
}

/// A choice among all there are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Placement {
    /// Per block: whether it is streamed.
    pub(super) streamed: Vec<bool>,
    /// Consecutive visits that the window has room for.
    pub(super) window_depth: usize,
    /// Consecutive visits that staging has room for.
    pub(super) staging_depth: usize,
}

/// What a placement comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Evaluation {
    /// Predicted steady pass, mean over kinds by weight.
    pub(super) seconds: f64,
    /// Bytes of the arena.
    pub(super) arena_bytes: u64,
}

/// A workload that was checked, and what follows from it alone.
#[derive(Debug)]
pub(super) struct Problem<'a> {
    pub(super) workload: &'a Workload,
    pub(super) costs: Vec<KindCosts>,
    pub(super) sizes: Vec<Sizes>,
    /// Padded least staging.
    pub(super) load_staging: u64,
    /// Depths of the window that may be chosen, ascending.
    pub(super) window_depths: Vec<usize>,
}

impl<'a> Problem<'a> {
    pub(super) fn new(workload: &'a Workload, rates: &Rates) -> Result<Self, PlanError> {
        let costs = cost::costs(workload, rates)?;
        let mut visited = vec![false; workload.blocks.len()];
        for visit in workload.kinds.iter().flat_map(|kind| &kind.visits) {
            visited[visit.block] = true;
        }
        let sizes = workload
            .blocks
            .iter()
            .zip(visited)
            .map(|(block, visited)| {
                let streams = block.place_bytes > 0;
                Sizes {
                    remainder: padded(block.remainder_bytes),
                    place: padded(block.place_bytes),
                    staging: if streams {
                        padded(block.staging_bytes)
                    } else {
                        0
                    },
                    visited,
                    forced: match block.residency {
                        _ if !streams => Some(Form::Resident),
                        Residency::Always => Some(Form::Resident),
                        Residency::Never => Some(Form::Streamed),
                        Residency::Planned => None,
                    },
                }
            })
            .collect();
        Ok(Self {
            workload,
            costs,
            sizes,
            load_staging: padded(workload.load_staging_bytes),
            window_depths: placement::WINDOW_DEPTHS.to_vec(),
        })
    }

    /// The same with a window of this depth and no other.
    pub(super) fn with_window_depth(self, depth: usize) -> Self {
        Self {
            window_depths: vec![depth],
            ..self
        }
    }

    /// Blocks whose form is to be chosen, in the order of their first visits; those never visited come last.
    pub(super) fn free(&self) -> Vec<usize> {
        let mut seen = vec![false; self.sizes.len()];
        let visits = self.workload.kinds.iter().flat_map(|kind| &kind.visits);
        visits
            .map(|visit| visit.block)
            .chain(0..self.sizes.len())
            .filter(|&block| {
                self.sizes[block].forced.is_none() && !std::mem::replace(&mut seen[block], true)
            })
            .collect()
    }

    /// Per block: whether it is streamed in any case.
    pub(super) fn forced_streamed(&self) -> Vec<bool> {
        self.sizes
            .iter()
            .map(|sizes| sizes.forced == Some(Form::Streamed))
            .collect()
    }

    /// Bytes of residents and remainders.
    pub(super) fn resident_bytes(&self, streamed: &[bool]) -> u64 {
        self.sizes
            .iter()
            .zip(streamed)
            .map(|(sizes, &streamed)| sizes.remainder + if streamed { 0 } else { sizes.place })
            .sum()
    }

    /// Bytes of residents, window and staging.
    fn region_bytes(&self, placement: &Placement) -> [u64; 3] {
        let of = |size: fn(&Sizes) -> u64, depth| {
            let kinds: Vec<Vec<u64>> = self
                .workload
                .kinds
                .iter()
                .map(|kind| {
                    kind.visits
                        .iter()
                        .filter(|visit| placement.streamed[visit.block])
                        .map(|visit| size(&self.sizes[visit.block]))
                        .filter(|&bytes| bytes > 0)
                        .collect()
                })
                .collect();
            window::region_bytes(kinds.iter().map(Vec::as_slice), depth)
        };
        [
            self.resident_bytes(&placement.streamed),
            of(|sizes| sizes.place, placement.window_depth),
            of(|sizes| sizes.staging, placement.staging_depth).max(self.load_staging),
        ]
    }

    /// Bytes of the arena.
    pub(super) fn arena_bytes(&self, placement: &Placement) -> u64 {
        self.region_bytes(placement).iter().sum()
    }

    /// No schedule of a placement takes less, mean over kinds by weight.
    pub(super) fn schedule_bound_s(&self, streamed: &[bool]) -> f64 {
        (0..self.costs.len())
            .map(|kind| {
                self.costs[kind].weight
                    * certificate::busy_s(self, kind, streamed)
                        .iter()
                        .copied()
                        .fold(0.0, f64::max)
            })
            .sum()
    }

    /// Where the parts of the arena lie, and the places of every visit.
    fn lay_out(&self, placement: &Placement) -> (ArenaMap, Vec<Vec<VisitPlan>>) {
        let [resident, window, staging] = self.region_bytes(placement);
        let arena = ArenaMap {
            resident: Place {
                offset: 0,
                bytes: resident,
            },
            window: Place {
                offset: resident,
                bytes: window,
            },
            staging: Place {
                offset: resident + window,
                bytes: staging,
            },
        };
        let visits = self
            .workload
            .kinds
            .iter()
            .map(|kind| {
                let padded: Vec<Sizes> = kind
                    .visits
                    .iter()
                    .map(|visit| self.sizes[visit.block])
                    .collect();
                let streamed: Vec<bool> = kind
                    .visits
                    .iter()
                    .map(|visit| placement.streamed[visit.block])
                    .collect();
                let pick = |size: fn(&Sizes) -> u64| -> Vec<u64> {
                    padded
                        .iter()
                        .zip(&streamed)
                        .filter(|&(sizes, &streamed)| streamed && size(sizes) > 0)
                        .map(|(sizes, _)| size(sizes))
                        .collect()
                };
                let mut places =
                    window::offsets(&pick(|sizes| sizes.place), window, placement.window_depth)
                        .into_iter();
                let mut stagings = window::offsets(
                    &pick(|sizes| sizes.staging),
                    staging,
                    placement.staging_depth,
                )
                .into_iter();
                let next = |region: &Place, bytes: u64, offsets: &mut std::vec::IntoIter<u64>| {
                    (bytes > 0).then(|| Place {
                        offset: region.offset
                            + offsets.next().expect("as many offsets as sizes picked"),
                        bytes,
                    })
                };
                kind.visits
                    .iter()
                    .zip(&streamed)
                    .map(|(visit, &streamed)| {
                        let block = &self.workload.blocks[visit.block];
                        let streams = streamed && block.place_bytes > 0;
                        let [place, staging] = if streams {
                            [block.place_bytes, block.staging_bytes]
                        } else {
                            [0, 0]
                        };
                        VisitPlan {
                            block: visit.block,
                            place: next(&arena.window, place, &mut places),
                            staging: next(&arena.staging, staging, &mut stagings),
                        }
                    })
                    .collect()
            })
            .collect();
        (arena, visits)
    }

    /// Predicted times of every kind.
    fn timings(&self, operations: &[Vec<Operation>]) -> Vec<Timing> {
        operations
            .iter()
            .enumerate()
            .map(|(kind, operations)| simulate::simulate(operations, kind, &self.costs[kind]))
            .collect()
    }

    /// What a placement comes to: the one way in which candidates are compared, whatever forms they use.
    pub(super) fn evaluate(&self, placement: &Placement) -> Evaluation {
        let (arena, visits) = self.lay_out(placement);
        let timings = self.timings(&schedule::operations(&visits));
        Evaluation {
            seconds: timings
                .iter()
                .zip(&self.costs)
                .map(|(timing, costs)| timing.pass_s * costs.weight)
                .sum(),
            arena_bytes: arena.staging.end(),
        }
    }

    /// The plan of a placement that fits `budget_bytes`.
    pub(super) fn plan(&self, placement: &Placement, budget_bytes: u64) -> Plan {
        let (arena, visits) = self.lay_out(placement);
        let operations = schedule::operations(&visits);
        let timings = self.timings(&operations);
        let live_bytes = live::most_live_bytes(&visits, &operations);
        let kinds = visits
            .into_iter()
            .zip(operations)
            .zip(timings)
            .enumerate()
            .map(|(kind, ((visits, operations), timing))| {
                self.kind_plan(kind, visits, operations, timing, placement, budget_bytes)
            })
            .collect();
        Plan {
            blocks: self.block_plans(&placement.streamed),
            kinds,
            arena,
            budget_bytes,
            arena_bytes: arena.staging.end(),
            high_water_bytes: arena.resident.bytes + arena.staging.bytes + live_bytes,
        }
    }

    fn kind_plan(
        &self,
        kind: usize,
        visits: Vec<VisitPlan>,
        operations: Vec<Operation>,
        timing: Timing,
        placement: &Placement,
        budget_bytes: u64,
    ) -> KindPlan {
        let load = &self.workload.kinds[kind];
        let [upload_s, decode_s, compute_s] = certificate::busy_s(self, kind, &placement.streamed);
        let certificate =
            certificate::certify(self, kind, &placement.streamed, budget_bytes, timing.pass_s);
        // Rounding of many small sums must not make a pass look faster than its own stream.
        let predicted_pass_s = timing.pass_s.max(certificate.schedule_bound_s);
        let predicted_stall_s = match predicted_pass_s - compute_s {
            stall_s if stall_s <= ROUNDING * predicted_pass_s => 0.0,
            stall_s => stall_s,
        };
        let hidden =
            compute_s >= upload_s.max(decode_s) && predicted_stall_s <= HIDDEN * predicted_pass_s;
        let verdict = if visits.iter().all(|visit| visit.place.is_none()) {
            Verdict::Resident
        } else if hidden && compute_s > 0.0 {
            Verdict::ComputeBound
        } else if decode_s > upload_s {
            Verdict::DecodeBound
        } else {
            Verdict::WireBound
        };
        KindPlan {
            name: load.name.clone(),
            wire_bytes_per_pass: load
                .visits
                .iter()
                .zip(&visits)
                .filter(|(_, plan)| plan.place.is_some())
                .map(|(visit, _)| visit.wire_bytes)
                .sum(),
            visits,
            operations,
            predicted_pass_s,
            predicted_stall_s,
            predicted_cold_pass_s: timing.cold_pass_s,
            certificate,
            verdict,
        }
    }

    fn block_plans(&self, streamed: &[bool]) -> Vec<BlockPlan> {
        let mut offset = 0;
        let mut next = |bytes: u64| {
            (bytes > 0).then(|| {
                let place = Place { offset, bytes };
                offset += padded(bytes);
                place
            })
        };
        self.workload
            .blocks
            .iter()
            .zip(streamed)
            .map(|(block, &streamed)| BlockPlan {
                block: block.name.clone(),
                form: if streamed {
                    Form::Streamed
                } else {
                    Form::Resident
                },
                tier: block.tier,
                remainder: next(block.remainder_bytes),
                resident: next(if streamed { 0 } else { block.place_bytes }),
            })
            .collect()
    }
}
