//! A checked workload with its costs, and what a placement of it comes to. It chooses nothing.

use super::certificate;
use super::cost::{self, KindCosts};
use super::live;
use super::placement;
use super::schedule;
use super::simulate::{self, Timing};
use super::window;
use super::{
    ArenaMap, BlockPlan, Decoding, Form, KindLoad, KindPlan, Operation, Place, Plan, PlanError,
    Rates, Verdict, VisitPlan, Wishes, Workload, padded,
};
use crate::model::Residency;

/// Depths of staging that are tried for whole blocks.
const STAGING_DEPTHS: [usize; 3] = [1, 2, 3];

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
    /// Staging when streamed, or what stays when packed; 0 if it arrives as stored.
    pub(super) staging: u64,
    /// Its largest part, or the whole: staging that will do.
    pub(super) piece: u64,
    /// Whether it may be packed, and would take less than resident.
    pub(super) can_pack: bool,
    /// Whether any kind visits it.
    pub(super) visited: bool,
    /// The form it must have, if there is no choice.
    pub(super) forced: Option<Form>,
}

/// A choice among all there are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Placement {
    /// Per block.
    pub(super) forms: Vec<Form>,
    /// Consecutive visits that the window has room for.
    pub(super) window_depth: usize,
    /// Whether what has parts is staged part by part.
    pub(super) in_parts: bool,
    /// Consecutive visits, or parts, that staging has room for.
    pub(super) staging_depth: usize,
    /// Where blocks are decoded.
    pub(super) decoding: Decoding,
}

impl Placement {
    /// Whether a block of this placement is of `form`.
    pub(super) fn has(&self, form: Form) -> bool {
        self.forms.contains(&form)
    }
}

/// Where what stays of a block lies.
#[derive(Debug, Clone, Copy)]
struct Home {
    remainder: Option<Place>,
    resident: Option<Place>,
    packed: Option<Place>,
}

/// Seconds of a pass: streams that do not wait for one another still share wire and execution units. (And rounding of
/// many small sums must not make a pass look faster than its own stream.)
fn predicted_s(timing: &Timing, work_s: [f64; 3]) -> f64 {
    timing.pass_s.max(certificate::schedule_bound_s(work_s))
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
    /// Padded bytes of each block's parts; of one without parts the whole.
    pub(super) parts: Vec<Vec<u64>>,
    /// Padded least staging.
    pub(super) load_staging: u64,
    /// Depths of the window that may be chosen, ascending.
    pub(super) window_depths: Vec<usize>,
    /// Where blocks may be decoded; at least one.
    pub(super) decodings: Vec<Decoding>,
}

impl<'a> Problem<'a> {
    pub(super) fn new(
        workload: &'a Workload,
        rates: &Rates,
        wishes: Wishes,
    ) -> Result<Self, PlanError> {
        let costs = cost::costs(workload, rates)?;
        let mut visited = vec![false; workload.blocks.len()];
        for visit in workload.kinds.iter().flat_map(|kind| &kind.visits) {
            visited[visit.block] = true;
        }
        let sizes: Vec<Sizes> = workload
            .blocks
            .iter()
            .zip(visited)
            .map(|(block, visited)| {
                let streams = block.place_bytes > 0;
                let place = padded(block.place_bytes);
                let staging = match streams {
                    true => padded(block.staging_bytes),
                    false => 0,
                };
                let forced = match block.residency {
                    _ if !streams => Some(Form::Resident),
                    Residency::Always => Some(Form::Resident),
                    Residency::Never => Some(Form::Streamed),
                    Residency::Planned => None,
                };
                let parts = block.parts.iter().map(|&bytes| padded(bytes));
                let is_smaller = staging > 0 && staging < place;
                Sizes {
                    remainder: padded(block.remainder_bytes),
                    place,
                    staging,
                    piece: parts.max().unwrap_or(staging).min(staging),
                    can_pack: visited && is_smaller && forced.is_none() && !wishes.unpacked,
                    visited,
                    forced,
                }
            })
            .collect();
        let parts = workload.blocks.iter().zip(&sizes).map(|(block, sizes)| {
            let parts = block.parts.iter().map(|&bytes| padded(bytes));
            match block.parts.is_empty() {
                true => vec![sizes.staging],
                false => parts.collect(),
            }
        });
        let parts = parts.collect();
        let window_depths = match wishes.blocks_ahead {
            None => placement::WINDOW_DEPTHS.to_vec(),
            Some(blocks) => {
                // A window deeper than all visits is as deep as they are.
                let visits = workload.kinds.iter().map(|kind| kind.visits.len()).max();
                let depth = (blocks as usize).saturating_add(1);
                vec![depth.min(visits.unwrap_or(0).max(1))]
            }
        };
        let is_decoded = |one: &Sizes| one.staging > 0 && one.forced != Some(Form::Resident);
        let decodings = match (wishes.decoding, wishes.blocks_ahead) {
            _ if !sizes.iter().any(is_decoded) => vec![Decoding::Ahead],
            (Some(decoding), _) => vec![decoding],
            (None, Some(_)) => vec![Decoding::Ahead],
            // Of two alike the first is kept: ahead, decoding is not late where the host is.
            (None, None) => vec![Decoding::Ahead, Decoding::AtUse],
        };
        Ok(Self {
            workload,
            costs,
            sizes,
            parts,
            load_staging: padded(workload.load_staging_bytes),
            window_depths,
            decodings,
        })
    }

    /// Ways to stage: whether in parts, and how deep. Decoded ahead, a part is free again as soon as it is decoded. Decoded
    /// at use it waits for its visit, so that there has to be room for all parts of a block to hide behind the one before.
    pub(super) fn stagings(&self, decoding: Decoding) -> Vec<(bool, usize)> {
        let of_free = |one: &&Sizes| one.staging > 0 && one.forced != Some(Form::Resident);
        if !self.sizes.iter().any(|one| of_free(&one)) {
            return vec![(false, 1)];
        }
        let mut ways: Vec<_> = STAGING_DEPTHS.map(|depth| (false, depth)).to_vec();
        let streamed = self.sizes.iter().zip(&self.parts);
        let streamed = streamed.filter(|(one, _)| of_free(one));
        let most = streamed.map(|(_, parts)| parts.len()).max().unwrap_or(1);
        if most > 1 {
            let depths = match decoding {
                Decoding::Ahead => [1, 2, 3],
                Decoding::AtUse => [1, most, most + 1],
            };
            ways.extend(depths.map(|depth| (true, depth)));
        }
        ways
    }

    /// Pairs of where blocks are decoded and how deep the window then may be. What is decoded at use takes one place
    /// after another, whatever their number: only blocks that arrive as stored need more.
    pub(super) fn passages(&self) -> impl Iterator<Item = (Decoding, usize)> + '_ {
        let streams_stored =
            (self.sizes.iter()).any(|one| one.staging == 0 && one.forced != Some(Form::Resident));
        self.decodings.iter().flat_map(move |&decoding| {
            let depths = match decoding {
                Decoding::AtUse if !streams_stored => &self.window_depths[..1],
                _ => &self.window_depths,
            };
            depths.iter().map(move |&depth| (decoding, depth))
        })
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

    /// Per block: the form it must have, else resident.
    pub(super) fn forced(&self) -> Vec<Form> {
        self.sizes
            .iter()
            .map(|sizes| sizes.forced.unwrap_or(Form::Resident))
            .collect()
    }

    /// Bytes of what stays.
    pub(super) fn resident_bytes(&self, forms: &[Form]) -> u64 {
        self.sizes
            .iter()
            .zip(forms)
            .map(|(sizes, form)| {
                sizes.remainder
                    + match form {
                        Form::Resident => sizes.place,
                        Form::Packed => sizes.staging,
                        Form::Streamed => 0,
                    }
            })
            .sum()
    }

    /// Bytes that visits take of the window, one after another.
    fn in_window(&self, placement: &Placement, kind: &KindLoad) -> Vec<u64> {
        let blocks = kind.visits.iter().map(|visit| visit.block);
        let moved = blocks.filter(|&block| placement.forms[block] != Form::Resident);
        let places = moved.map(|block| self.sizes[block].place);
        places.filter(|&bytes| bytes > 0).collect()
    }

    /// Bytes that visits take of staging, one after another, or part by part.
    fn in_staging(&self, placement: &Placement, kind: &KindLoad) -> Vec<u64> {
        let blocks = kind.visits.iter().map(|visit| visit.block);
        let streamed = blocks.filter(|&block| placement.forms[block] == Form::Streamed);
        let decoded = streamed.filter(|&block| self.sizes[block].staging > 0);
        decoded
            .flat_map(|block| match placement.in_parts {
                true => self.parts[block].clone(),
                false => vec![self.sizes[block].staging],
            })
            .collect()
    }

    /// Bytes of residents, window and staging.
    fn region_bytes(&self, placement: &Placement) -> [u64; 3] {
        let of = |pick: fn(&Self, &Placement, &KindLoad) -> Vec<u64>, depth| {
            let kinds = self.workload.kinds.iter();
            let kinds: Vec<Vec<u64>> = kinds.map(|kind| pick(self, placement, kind)).collect();
            window::region_bytes(kinds.iter().map(Vec::as_slice), depth)
        };
        [
            self.resident_bytes(&placement.forms),
            of(Self::in_window, placement.window_depth),
            of(Self::in_staging, placement.staging_depth).max(self.load_staging),
        ]
    }

    /// Bytes of the arena.
    pub(super) fn arena_bytes(&self, placement: &Placement) -> u64 {
        self.region_bytes(placement).iter().sum()
    }

    /// No schedule of a placement takes less, mean over kinds by weight.
    pub(super) fn schedule_bound_s(&self, forms: &[Form]) -> f64 {
        (0..self.costs.len())
            .map(|kind| {
                let work_s = certificate::work_s(self, kind, forms);
                self.costs[kind].weight * certificate::schedule_bound_s(work_s)
            })
            .sum()
    }

    /// Where the parts of the arena lie, what stays of each block, and the places of every visit.
    fn lay_out(&self, placement: &Placement) -> (ArenaMap, Vec<Home>, Vec<Vec<VisitPlan>>) {
        let homes = self.homes(&placement.forms);
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
                let (windows, staged) = (
                    self.in_window(placement, kind),
                    self.in_staging(placement, kind),
                );
                let mut places =
                    window::offsets(&windows, window, placement.window_depth).into_iter();
                let mut stagings =
                    window::offsets(&staged, staging, placement.staging_depth).into_iter();
                let next = |region: &Place, bytes: u64, offsets: &mut std::vec::IntoIter<u64>| {
                    (bytes > 0).then(|| Place {
                        offset: region.offset
                            + offsets.next().expect("as many offsets as sizes picked"),
                        bytes,
                    })
                };
                kind.visits
                    .iter()
                    .map(|visit| {
                        let block = &self.workload.blocks[visit.block];
                        let [place, staging] = match placement.forms[visit.block] {
                            _ if block.place_bytes == 0 => [0, 0],
                            Form::Resident => [0, 0],
                            Form::Packed => [block.place_bytes, 0],
                            Form::Streamed => [block.place_bytes, block.staging_bytes],
                        };
                        let parts = match placement.in_parts && !block.parts.is_empty() {
                            true if staging > 0 => &block.parts[..],
                            _ => &[staging],
                        };
                        let mut stage = |&bytes: &u64| next(&arena.staging, bytes, &mut stagings);
                        VisitPlan {
                            block: visit.block,
                            place: next(&arena.window, place, &mut places),
                            staging: parts.iter().filter_map(&mut stage).collect(),
                            packed: homes[visit.block].packed,
                        }
                    })
                    .collect()
            })
            .collect();
        (arena, homes, visits)
    }

    /// Times of every kind on streams that share nothing.
    fn timings(
        &self,
        operations: &[Vec<Operation>],
        visits: &[Vec<VisitPlan>],
        placement: &Placement,
    ) -> Vec<Timing> {
        operations
            .iter()
            .zip(visits)
            .enumerate()
            .map(|(kind, (operations, visits))| {
                let costs = &self.costs[kind];
                simulate::simulate(operations, visits, kind, costs, placement.decoding)
            })
            .collect()
    }

    /// What a placement comes to: the one way in which candidates are compared, whatever forms they use.
    pub(super) fn evaluate(&self, placement: &Placement) -> Evaluation {
        let (arena, _, visits) = self.lay_out(placement);
        let operations = schedule::operations(&visits, placement.decoding);
        let timings = self.timings(&operations, &visits, placement);
        Evaluation {
            seconds: timings
                .iter()
                .enumerate()
                .map(|(kind, timing)| {
                    let work_s = certificate::work_s(self, kind, &placement.forms);
                    self.costs[kind].weight * predicted_s(timing, work_s)
                })
                .sum(),
            arena_bytes: arena.staging.end(),
        }
    }

    /// The plan of a placement that fits `budget_bytes`.
    pub(super) fn plan(&self, placement: &Placement, budget_bytes: u64) -> Plan {
        let (arena, homes, visits) = self.lay_out(placement);
        let operations = schedule::operations(&visits, placement.decoding);
        let timings = self.timings(&operations, &visits, placement);
        let live_bytes = live::most_live_bytes(&visits, &operations, placement.decoding);
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
            blocks: self.block_plans(&placement.forms, homes),
            kinds,
            arena,
            decoding: placement.decoding,
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
        let work_s = certificate::work_s(self, kind, &placement.forms);
        let [upload_s, decode_s, compute_s] = work_s;
        let predicted_pass_s = predicted_s(&timing, work_s);
        let certificate =
            certificate::certify(self, kind, &placement.forms, budget_bytes, predicted_pass_s);
        // The compute stream does not wait for what it decodes itself.
        let own_s = match placement.decoding {
            Decoding::Ahead => compute_s,
            Decoding::AtUse => compute_s + decode_s,
        };
        let predicted_stall_s = match timing.pass_s.max(upload_s) - own_s {
            stall_s if stall_s <= ROUNDING * predicted_pass_s => 0.0,
            stall_s => stall_s,
        };
        let hidden =
            compute_s + decode_s >= upload_s && predicted_stall_s <= HIDDEN * predicted_pass_s;
        let verdict = if visits.iter().all(|visit| visit.place.is_none()) {
            Verdict::Resident
        } else if hidden && compute_s > 0.0 && compute_s >= decode_s {
            Verdict::ComputeBound
        } else if decode_s > upload_s || hidden && decode_s > 0.0 {
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
                .filter(|(_, plan)| plan.is_uploaded())
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

    /// Where what stays of each block lies.
    fn homes(&self, forms: &[Form]) -> Vec<Home> {
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
            .zip(forms)
            .map(|(block, &form)| {
                let [resident, packed] = match form {
                    Form::Resident => [block.place_bytes, 0],
                    Form::Packed => [0, block.staging_bytes],
                    Form::Streamed => [0, 0],
                };
                Home {
                    remainder: next(block.remainder_bytes),
                    resident: next(resident),
                    packed: next(packed),
                }
            })
            .collect()
    }

    fn block_plans(&self, forms: &[Form], homes: Vec<Home>) -> Vec<BlockPlan> {
        self.workload
            .blocks
            .iter()
            .zip(forms)
            .zip(homes)
            .map(|((block, &form), home)| BlockPlan {
                block: block.name.clone(),
                form,
                tier: block.tier,
                remainder: home.remainder,
                resident: home.resident,
                packed: home.packed,
            })
            .collect()
    }
}
