//! No interleaving that a plan allows reads wrong bytes, and each of its fences is needed.

use offload_core::model::Residency;
use offload_core::plan::{Budget, Decoding, Fence, Form, Plan, Wishes, Workload};
use proptest::prelude::*;

use crate::replay::{self, Pass, Use};
use crate::workloads;

/// Passes of kinds and uses drawn from `choices`.
fn passes(plan: &Plan, choices: &[u8]) -> Vec<Pass> {
    let mut choices = choices.iter().copied().cycle();
    let mut next = || choices.next().expect("there are choices");
    (0..6)
        .map(|_| {
            let mut pass = Pass::full(plan, usize::from(next()) % plan.kinds.len());
            for one in &mut pass.uses {
                *one = match next() % 8 {
                    0 => Use::Skipped,
                    1 => Use::Unfetched,
                    _ => Use::Computed,
                };
            }
            pass
        })
        .collect()
}

/// A plan for a budget between the least and everything, `part` of the way.
pub(crate) fn plan_at(workload: &Workload, part: f64, decoding: Option<Decoding>) -> Plan {
    let rates = workloads::rates(1000.0);
    let wishes = Wishes {
        decoding,
        ..Wishes::default()
    };
    let make = |budget| Plan::make_as(workload, &rates, budget, wishes).unwrap();
    let least = make(Budget::Least).arena_bytes;
    let all: u64 = workload
        .blocks
        .iter()
        .map(|block| block.place_bytes + block.remainder_bytes + 512)
        .sum();
    let more = (all.saturating_sub(least) as f64 * part) as u64;
    make(Budget::Bytes(least + more))
}

/// What the planner may be told about decoding.
pub(crate) fn decodings() -> impl Strategy<Value = Option<Decoding>> {
    prop::sample::select(vec![None, Some(Decoding::Ahead), Some(Decoding::AtUse)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn every_interleaving_of_any_passes_reads_the_right_bytes(
        workload in workloads::any(7, 12),
        part in 0.0..1.1,
        decoding in decodings(),
        choices in prop::collection::vec(any::<u8>(), 97),
    ) {
        let plan = plan_at(&workload, part, decoding);
        prop_assert_eq!(replay::lies_well(&plan), Ok(()));
        prop_assert_eq!(replay::run(&plan, &passes(&plan, &choices)), Ok(()));
        for kind in 0..plan.kinds.len() {
            let full = vec![Pass::full(&plan, kind); 4];
            prop_assert_eq!(replay::run(&plan, &full), Ok(()));
        }
    }

    #[test]
    fn the_high_water_mark_is_what_eager_submission_reaches(
        workload in workloads::any(7, 12),
        part in 0.0..1.1,
        decoding in decodings(),
    ) {
        let mut workload = workload;
        workload.kinds.truncate(1);
        let plan = plan_at(&workload, part, decoding);
        let live = replay::most_live_bytes(&plan, 0);
        prop_assert_eq!(
            plan.high_water_bytes,
            plan.arena.resident.bytes + plan.arena.staging.bytes + live
        );
        prop_assert!(plan.high_water_bytes <= plan.arena_bytes);
    }
}

/// Four blocks, as stored and decoded by turns, none of which may stay.
fn mixed() -> Workload {
    let blocks: Vec<_> = (0..4)
        .map(|index| match index % 2 {
            0 => workloads::direct(format!("stored {index}"), 1024),
            _ => workloads::decoded(format!("decoded {index}"), 1024, 512),
        })
        .collect();
    let visits = (0..4)
        .map(|block| workloads::visit(&blocks, block, 1.0, 0.25))
        .collect();
    Workload {
        blocks,
        kinds: vec![workloads::kind("full", 1.0, visits)],
        load_staging_bytes: 0,
    }
}

fn least(workload: &Workload, decoding: Decoding) -> Plan {
    let wishes = Wishes {
        decoding: Some(decoding),
        ..Wishes::default()
    };
    Plan::make_as(workload, &workloads::rates(1024.0), Budget::Least, wishes).unwrap()
}

/// Two full passes, and one with every second visit skipped between them.
fn run_with_skips(plan: &Plan) -> Result<(), String> {
    let full = Pass::full(plan, 0);
    let mut skipping = full.clone();
    for one in skipping.uses.iter_mut().step_by(2) {
        *one = Use::Skipped;
    }
    let mut others = full.clone();
    for one in others.uses.iter_mut().skip(1).step_by(2) {
        *one = Use::Skipped;
    }
    replay::run(plan, &[full.clone(), skipping, others, full])
}

fn is_needed(fence: Fence) {
    is_needed_in(&mixed(), fence);
}

fn is_needed_in(workload: &Workload, fence: Fence) {
    for decoding in [Decoding::Ahead, Decoding::AtUse] {
        let plan = least(workload, decoding);
        assert_eq!(plan.decoding, decoding);
        is_needed_by(&plan, fence);
    }
}

fn is_needed_by(plan: &Plan, fence: Fence) {
    assert_eq!(run_with_skips(plan), Ok(()));
    let error = run_with_skips(&plan.without_fence(fence)).unwrap_err();
    assert!(error.contains("race"), "{:?}: {error}", plan.decoding);
}

/// What arrives as stored is streamed, what is decoded is packed, and all share one place.
fn packed(decoding: Decoding) -> Plan {
    let mut workload = mixed();
    for block in workload.blocks.iter_mut().step_by(2) {
        block.residency = Residency::Never;
    }
    // So that it pays: computes would hide the uploads.
    for visit in &mut workload.kinds[0].visits {
        visit.compute_s = 0.1;
    }
    let wishes = Wishes {
        decoding: Some(decoding),
        ..Wishes::default()
    };
    let (rates, budget) = (workloads::rates(1024.0), Budget::Bytes(1024 + 2 * 512));
    let plan = Plan::make_as(&workload, &rates, budget, wishes).unwrap();
    let forms: Vec<_> = plan.blocks.iter().map(|block| block.form).collect();
    let pair = [Form::Streamed, Form::Packed];
    assert_eq!(forms, [pair, pair].concat());
    plan
}

#[test]
fn a_decode_that_does_not_wait_for_its_upload_is_found() {
    is_needed(Fence::Uploaded);
}

#[test]
fn an_upload_that_overwrites_staging_under_a_decode_is_found() {
    // An upload as stored would wait for the compute behind the decode, and hold back all uploads after it.
    let mut workload = mixed();
    for block in &mut workload.blocks {
        block.staging_bytes = 512;
    }
    for visit in &mut workload.kinds[0].visits {
        visit.wire_bytes = 512;
    }
    is_needed_in(&workload, Fence::StagingRead);
    // The same in parts, of which a budget for half a block of staging has room for one at a time.
    for block in &mut workload.blocks {
        block.parts = workloads::split(512, 2);
    }
    let blocks = &workload.blocks;
    let visits = (0..4).map(|block| workloads::visit(blocks, block, 1.0, 0.25));
    workload.kinds[0].visits = visits.collect();
    let plan = least(&workload, Decoding::Ahead);
    assert_eq!(
        (plan.arena.staging.bytes, plan.kinds[0].visits[0].parts()),
        (256, 2)
    );
    is_needed_by(&plan, Fence::Arrived);
    for fence in [Fence::StagingRead, Fence::Uploaded] {
        is_needed_in(&workload, fence);
    }
}

#[test]
fn a_compute_that_does_not_wait_for_its_block_is_found() {
    is_needed(Fence::Arrived);
}

#[test]
fn a_write_into_a_place_that_is_still_read_is_found() {
    is_needed(Fence::LastReader);
}

#[test]
fn a_write_into_a_place_that_a_skipped_visit_still_writes_is_found() {
    is_needed_by(&least(&mixed(), Decoding::Ahead), Fence::LastWriter);
    for decoding in [Decoding::Ahead, Decoding::AtUse] {
        is_needed_by(&packed(decoding), Fence::LastWriter);
        is_needed_by(&packed(decoding), Fence::LastReader);
    }
}

#[test]
fn operations_are_listed_behind_all_that_they_wait_for() {
    for decoding in [Decoding::Ahead, Decoding::AtUse] {
        let plan = least(&mixed(), decoding);
        let operations = &plan.kinds[0].operations;
        for (position, operation) in operations.iter().enumerate() {
            for one in &operation.after {
                let before = operations
                    .iter()
                    .position(|other| {
                        (other.stage, other.visit, other.part) == (one.stage, one.visit, one.part)
                    })
                    .unwrap();
                let this = one.pass == offload_core::plan::PassRef::This;
                assert!(!this || before < position, "{operation:?}");
            }
        }
    }
}
