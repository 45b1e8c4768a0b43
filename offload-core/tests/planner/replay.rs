//! An executor on paper, written from the contract and not from the planner.
//!
//! Three in-order streams run several passes, of any kinds, with some visits skipped. The only order between two
//! operations is: the same stream, a dependency of the plan, or the executor's rules that uploads and decodes of pass
//! `p` wait for the end of pass `p - 2`, and that computes wait for all uploads before their pass if some of those in the
//! pass before it were skipped. From that a vector clock is computed for each operation. Two operations that
//! touch a common byte, at least one of them writing, must be ordered; otherwise some interleaving races. If all are,
//! every interleaving has the outcome of any one, and that one is replayed byte range by byte range.

use std::collections::BTreeMap;

use offload_core::plan::{Decoding, PassRef, Place, Plan, Stage};

/// The stream on which a stage runs.
fn stream_of(plan: &Plan, stage: Stage) -> usize {
    match (stage, plan.decoding) {
        (Stage::Upload, _) => 0,
        (Stage::Decode, Decoding::Ahead) => 1,
        (Stage::Decode, Decoding::AtUse) | (Stage::Compute, _) => 2,
    }
}

/// What the engine does about a visit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Computes.
    Computed,
    /// Skips it after it was fetched: nothing reads the place, and the compute event waits for nothing.
    Skipped,
    /// Skips it before it was fetched: neither upload nor decode happen; their events are recorded all the same.
    Unfetched,
}

/// One pass of a run.
#[derive(Debug, Clone)]
pub(crate) struct Pass {
    pub(crate) kind: usize,
    /// Per visit.
    pub(crate) uses: Vec<Use>,
}

impl Pass {
    /// A pass that computes everything.
    pub(crate) fn full(plan: &Plan, kind: usize) -> Self {
        Self {
            kind,
            uses: vec![Use::Computed; plan.kinds[kind].visits.len()],
        }
    }
}

#[derive(Debug, Clone)]
struct Node {
    pass: usize,
    #[expect(dead_code, reason = "for messages")]
    stage: Stage,
    stream: usize,
    visit: usize,
    part: usize,
    /// Place in its stream.
    position: usize,
    /// Operations of each stream that are over before this one starts.
    clock: [usize; 3],
    reads: Option<Place>,
    writes: Option<Place>,
}

fn overlap(a: &Option<Place>, b: &Option<Place>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes,
        _ => false,
    }
}

/// Runs `passes`; the first fault found is the error.
pub(crate) fn run(plan: &Plan, passes: &[Pass]) -> Result<(), String> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut streams = [0_usize; 3];
    let mut last_clock = [[0_usize; 3]; 3];
    // Index of nodes by pass, stage, visit and part.
    let mut index: Vec<BTreeMap<(Stage, u32, u32), usize>> = Vec::new();
    let mut ends: Vec<[usize; 3]> = Vec::new();
    // Something was uploaded in the pass before that nobody read.
    let mut strays = false;

    for (number, pass) in passes.iter().enumerate() {
        let kind = &plan.kinds[pass.kind];
        let mut own = BTreeMap::new();
        for operation in &kind.operations {
            let (stage, visit) = (operation.stage, operation.visit as usize);
            let stream = stream_of(plan, stage);
            let visit_plan = &kind.visits[visit];
            let how = pass.uses[visit];
            let mut clock = last_clock[stream];
            let mut join = |other: [usize; 3]| {
                for (mine, others) in clock.iter_mut().zip(other) {
                    *mine = (*mine).max(others);
                }
            };
            if stream < 2 && number >= 2 {
                join(ends[number - 2]);
            }
            if stream == 2 && strays {
                join([ends[number - 1][0], 0, 0]);
            }
            let idle = match stage {
                Stage::Compute => how != Use::Computed,
                // A decode at use belongs to the compute: a skip leaves out both.
                Stage::Decode if stream == 2 => how != Use::Computed,
                _ => how == Use::Unfetched,
            };
            for one in &operation.after {
                let nodes_of = match one.pass {
                    PassRef::This => Some(&own),
                    PassRef::Previous(kind) if number > 0 && passes[number - 1].kind == kind => {
                        Some(&index[number - 1])
                    }
                    PassRef::Previous(_) => None,
                };
                let Some(nodes_of) = nodes_of else { continue };
                let Some(&before) = nodes_of.get(&(one.stage, one.visit, one.part)) else {
                    return Err(format!("{operation:?} waits for what is not submitted yet"));
                };
                if !idle {
                    let before: &Node = &nodes[before];
                    let mut through = before.clock;
                    through[before.stream] = before.position + 1;
                    join(through);
                }
            }
            let direct = visit_plan.staging.is_empty() && visit_plan.packed.is_none();
            let part = operation.part as usize;
            let staging = visit_plan.staging.get(part).copied();
            let (reads, writes) = match stage {
                _ if idle => (None, None),
                Stage::Upload if direct => (None, visit_plan.place),
                Stage::Upload => (None, staging),
                // What is packed was there before, and nobody writes it. All parts may write to all of the place: one
                // stream orders them.
                Stage::Decode => (staging, visit_plan.place),
                Stage::Compute => (visit_plan.place, None),
            };
            if own
                .insert((stage, operation.visit, operation.part), nodes.len())
                .is_some()
            {
                return Err(format!("{operation:?} is there twice"));
            }
            let position = streams[stream];
            nodes.push(Node {
                pass: number,
                stage,
                stream,
                visit,
                part,
                position,
                clock,
                reads,
                writes,
            });
            streams[stream] += 1;
            last_clock[stream] = clock;
            last_clock[stream][stream] = position + 1;
        }
        for (visit, visit_plan) in kind.visits.iter().enumerate() {
            let parts = visit_plan.staging.len().max(1);
            let wanted = [
                (
                    Stage::Upload,
                    visit_plan.place.is_some() && visit_plan.packed.is_none(),
                    parts,
                ),
                (
                    Stage::Decode,
                    !visit_plan.staging.is_empty() || visit_plan.packed.is_some(),
                    parts,
                ),
                (Stage::Compute, true, 1),
            ];
            for (stage, wanted, parts) in wanted {
                let has = own
                    .keys()
                    .filter(|&&(of, number, _)| (of, number as usize) == (stage, visit));
                if has.count() != if wanted { parts } else { 0 } {
                    return Err(format!(
                        "visit {visit} lacks or has too much of stage {stage:?}"
                    ));
                }
            }
        }
        let skips = pass.uses.iter().any(|how| *how != Use::Computed);
        strays = skips || strays && kind.visits.is_empty();
        index.push(own);
        ends.push(streams);
    }
    no_races(&nodes)?;
    contents(&nodes)
}

/// Conflicting operations are ordered.
fn no_races(nodes: &[Node]) -> Result<(), String> {
    for (later, b) in nodes.iter().enumerate() {
        for a in &nodes[..later] {
            let conflict = overlap(&a.writes, &b.writes)
                || overlap(&a.writes, &b.reads)
                || overlap(&a.reads, &b.writes);
            let a_first = b.clock[a.stream] > a.position;
            if conflict && !a_first {
                return Err(format!("{a:?} and {b:?} race"));
            }
        }
    }
    Ok(())
}

/// Reads find what their own visit wrote, all of it and nothing else. Submission order is one of the interleavings.
fn contents(nodes: &[Node]) -> Result<(), String> {
    // Who wrote a range last, as disjoint ranges.
    let mut written: Vec<(u64, u64, (usize, usize, usize))> = Vec::new();
    for node in nodes {
        // What is staged is of a part, what is computed with of all of them.
        let tag = (node.pass, node.visit, node.part);
        let whole = |of: &(usize, usize, usize)| (of.0, of.1) == (node.pass, node.visit);
        if let Some(place) = &node.reads {
            let covered: u64 = written
                .iter()
                .filter(|(_, _, of)| match node.writes {
                    Some(_) => *of == tag,
                    None => whole(of),
                })
                .map(|(from, to, _)| {
                    (*to)
                        .min(place.offset + place.bytes)
                        .saturating_sub((*from).max(place.offset))
                })
                .sum();
            if covered != place.bytes {
                return Err(format!("{node:?} finds {covered} bytes of its own"));
            }
        }
        if let Some(place) = &node.writes {
            let (from, to) = (place.offset, place.offset + place.bytes);
            let mut rest = Vec::new();
            for (start, end, of) in written {
                if start < from.min(end) {
                    rest.push((start, from.min(end), of));
                }
                if end > to.max(start) {
                    rest.push((to.max(start), end, of));
                }
            }
            rest.push((from, to, tag));
            written = rest;
        }
    }
    Ok(())
}

/// Regions, places and budget: what must hold of a plan before anything runs.
pub(crate) fn lies_well(plan: &Plan) -> Result<(), String> {
    let mut end = 0;
    for region in [plan.arena.resident, plan.arena.window, plan.arena.staging] {
        if region.offset != end || !region.bytes.is_multiple_of(256) {
            return Err(format!("region {region:?} begins elsewhere than {end}"));
        }
        end += region.bytes;
    }
    if end != plan.arena_bytes || end > plan.budget_bytes {
        return Err(format!(
            "arena {end}, said {}, budget {}",
            plan.arena_bytes, plan.budget_bytes
        ));
    }
    let inside = |place: &Place, region: &Place| {
        place.bytes > 0
            && place.offset.is_multiple_of(256)
            && place.offset >= region.offset
            && place.offset + place.bytes <= region.offset + region.bytes
    };
    let mut residents: Vec<Place> = Vec::new();
    for block in &plan.blocks {
        for place in [block.remainder, block.resident, block.packed]
            .into_iter()
            .flatten()
        {
            if !inside(&place, &plan.arena.resident) {
                return Err(format!(
                    "{place:?} of {} is not among residents",
                    block.block
                ));
            }
            if residents
                .iter()
                .any(|other| overlap(&Some(*other), &Some(place)))
            {
                return Err(format!("{place:?} of {} overlaps", block.block));
            }
            residents.push(place);
        }
    }
    for visit in plan.kinds.iter().flat_map(|kind| &kind.visits) {
        if visit
            .place
            .is_some_and(|place| !inside(&place, &plan.arena.window))
        {
            return Err(format!("{visit:?} is outside of the window"));
        }
        if (visit.staging.iter()).any(|place| !inside(place, &plan.arena.staging)) {
            return Err(format!("{visit:?} is outside of staging"));
        }
    }
    Ok(())
}

/// The most live window bytes when one kind runs for ever and everything is submitted as early as it can be, by trying
/// again and again whatever could be next.
pub(crate) fn most_live_bytes(plan: &Plan, kind: usize) -> u64 {
    let of = &plan.kinds[kind];
    let passes = 4;
    let mut done = std::collections::HashSet::new();
    let mut live = 0_u64;
    let mut peak = 0_u64;
    let total = passes * of.visits.len();
    let mut queue: Vec<(usize, &offload_core::plan::Operation)> = (0..passes)
        .flat_map(|pass| of.operations.iter().map(move |operation| (pass, operation)))
        .collect();
    let mut computed = 0;
    while computed < total {
        let now = computed / of.visits.len();
        loop {
            let mut blocked = [false; 3];
            let next = queue.iter().position(|(pass, operation)| {
                let stream = stream_of(plan, operation.stage);
                let met = operation.after.iter().all(|one| match one.pass {
                    PassRef::This => done.contains(&(*pass, one.stage, one.visit, one.part)),
                    PassRef::Previous(of) => {
                        of != kind
                            || *pass == 0
                            || done.contains(&(*pass - 1, one.stage, one.visit, one.part))
                    }
                });
                let ready = met && !blocked[stream] && *pass <= now + 1;
                blocked[stream] |= !ready;
                ready && stream < 2
            });
            let Some(next) = next else { break };
            let (pass, operation) = queue.remove(next);
            done.insert((pass, operation.stage, operation.visit, operation.part));
            let visit = &of.visits[operation.visit as usize];
            let direct = visit.staging.is_empty() && visit.packed.is_none();
            if operation.part == 0 && (operation.stage == Stage::Decode || direct) {
                live += visit.place.map_or(0, |place| place.bytes);
            }
            peak = peak.max(live);
        }
        let position = |queue: &[(usize, &offload_core::plan::Operation)]| {
            let found = queue
                .iter()
                .position(|(_, operation)| stream_of(plan, operation.stage) == 2);
            found.expect("as many computes as visits")
        };
        let next = position(&queue);
        let (pass, operation) = queue.remove(next);
        done.insert((pass, operation.stage, operation.visit, operation.part));
        if operation.stage == Stage::Decode {
            if operation.part == 0 {
                live += of.visits[operation.visit as usize]
                    .place
                    .map_or(0, |place| place.bytes);
                peak = peak.max(live);
            }
            continue;
        }
        computed += 1;
        live -= of.visits[operation.visit as usize]
            .place
            .map_or(0, |place| place.bytes);
    }
    peak
}

/// Ends of the computes of `passes` passes of one kind, if every operation starts as soon as it may.
pub(crate) fn pass_ends(
    plan: &Plan,
    kind: usize,
    passes: usize,
    costs: impl Fn((Stage, u32, u32), usize) -> f64,
) -> Vec<f64> {
    let of = &plan.kinds[kind];
    let mut ends: Vec<BTreeMap<(Stage, u32, u32), f64>> = Vec::new();
    let mut free = [0.0_f64; 3];
    let mut after_pass: Vec<f64> = Vec::new();
    let mut computed = Vec::new();
    for pass in 0..passes {
        ends.push(BTreeMap::new());
        for operation in &of.operations {
            let stream = stream_of(plan, operation.stage);
            let mut start = free[stream];
            if stream < 2 && pass >= 2 {
                start = start.max(after_pass[pass - 2]);
            }
            for one in &operation.after {
                let key = (one.stage, one.visit, one.part);
                let before = match one.pass {
                    PassRef::This => ends[pass][&key],
                    PassRef::Previous(of) if of == kind && pass > 0 => ends[pass - 1][&key],
                    PassRef::Previous(_) => 0.0,
                };
                start = start.max(before);
            }
            let key = (operation.stage, operation.visit, operation.part);
            let parts = of.visits[operation.visit as usize].staging.len();
            free[stream] = start + costs(key, parts);
            ends[pass].insert(key, free[stream]);
        }
        after_pass.push(free.into_iter().fold(0.0, f64::max));
        computed.push(free[2]);
    }
    computed
}
