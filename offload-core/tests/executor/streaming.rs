//! Streamed blocks arrive with the bytes that the reference decoder gives, whatever the order in which streams run;
//! and every fence is needed for that.
//!
//! There are five: `Uploaded`, `StagingRead`, `Arrived`, `LastReader` and `LastWriter`. For each, the plan is stripped of it and the same passes are run: the interval table, the
//! poison or the hashes must notice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use offload_core::cpu::CpuDevice;
use offload_core::device::Device;
use offload_core::encoding::Encoding;
use offload_core::executor::{ArrivalPolicy, DeviceBudget, Offload, OffloadError, Settings};
use offload_core::model::{Model, PassKind, Residency};
use offload_core::plan::{BlockPlan, Decoding, Fence, Form, Plan};
use offload_core::testing::toy;

use crate::support;

fn passes_from_environment(default: usize) -> usize {
    std::env::var("OFFLOAD_LONG_PASSES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Runs `passes` passes on a queued stream and checks every hash.
fn stream(
    device: &CpuDevice,
    model: &Model,
    budget: DeviceBudget,
    passes: usize,
    amend: fn(Plan) -> Plan,
) -> Result<(), OffloadError> {
    let policy = ArrivalPolicy::default();
    let expected = support::expected(model, &policy);
    let visits: Vec<usize> = (0..model.blocks().len()).collect();
    let stream = device.create_stream("compute")?;
    let mut offload = Offload::builder(device)
        .model(model.clone())
        .remainder_below(64)
        .device_budget(budget)
        .amend_plan(amend)
        .build()?;
    assert!(
        offload.plan().kinds[0].wire_bytes_per_pass > 0,
        "something is streamed"
    );
    let seen = support::Seen::default();
    let event = device.create_event()?;
    for done in 0..passes {
        support::pass(&mut offload, PassKind::FULL, &stream, &seen)?;
        if done % 50 == 49 || done + 1 == passes {
            let generation = device.record(&stream, &event)?;
            device.synchronize(&event, generation)?;
            let all: Vec<usize> = (0..done % 50 + 1)
                .flat_map(|_| visits.iter().copied())
                .collect();
            support::check(&seen, &expected, &all);
        }
    }
    let report = offload.report()?;
    assert_eq!(
        report.high_water_bytes,
        offload.plan().high_water_bytes,
        "high water as planned"
    );
    Ok(())
}

fn jittery(seed: u64, pins: bool) -> CpuDevice {
    CpuDevice::builder()
        .poison(true)
        .jitter(seed)
        .pins(pins)
        .build()
}

#[test]
fn a_thousand_passes_at_the_least_budget_are_identical() {
    let passes = passes_from_environment(1000);
    stream(
        &jittery(1, true),
        &support::mixed_model(),
        DeviceBudget::Least,
        passes,
        |plan| plan,
    )
    .unwrap();
}

#[test]
fn a_thousand_passes_at_a_middling_budget_are_identical() {
    let (device, model) = (jittery(2, true), support::mixed_model());
    let budget = DeviceBudget::Bytes(support::resident_bytes(&device, &model) * 6 / 10);
    stream(
        &device,
        &model,
        budget,
        passes_from_environment(1000),
        |plan| plan,
    )
    .unwrap();
}

#[test]
fn staged_memory_arrives_identical() {
    let (device, model) = (jittery(3, false), support::mixed_model());
    let budget = DeviceBudget::Bytes(support::resident_bytes(&device, &model) * 6 / 10);
    stream(&device, &model, budget, 200, |plan| plan).unwrap();
}

#[test]
fn direct_blocks_arrive_identical() {
    let model = toy::model(&[[16, 256]; 8], &[Encoding::BF16], 4);
    stream(
        &jittery(4, true),
        &model,
        DeviceBudget::Least,
        200,
        |plan| plan,
    )
    .unwrap();
}

/// Whether jitter, poison, interval table and hashes notice what `amend` did to the plan, within so many seeds.
fn notices(
    model: &Model,
    (decoding, budget): (Decoding, DeviceBudget),
    skip: bool,
    seeds: u64,
    amend: fn(Plan) -> Plan,
) -> bool {
    for seed in 0..seeds {
        let run = || {
            let device = jittery(seed, true);
            let expected = support::expected(model, &ArrivalPolicy::default());
            let stream = device.create_stream("compute")?;
            // Even seeds stage every tensor by itself.
            let settings = Settings {
                remainder_below_bytes: 64,
                decoding: Some(decoding),
                part_bytes: (seed % 2) << 60,
                ..Settings::default()
            };
            let mut offload = Offload::builder(&device)
                .model(model.clone())
                .settings(settings)
                .device_budget(budget)
                .amend_plan(amend)
                .build()?;
            let seen = support::Seen::default();
            for _ in 0..20 {
                let mut pass = offload.pass(PassKind::FULL, &stream)?;
                let mut visit = 0;
                loop {
                    // Two of three visits are skipped, so that writers follow writers.
                    if skip && visit % 3 != 2 {
                        if !pass.skip()? {
                            break;
                        }
                    } else if let Some(lease) = pass.acquire()? {
                        support::compute(&lease, &stream, &seen);
                    } else {
                        break;
                    }
                    visit += 1;
                }
            }
            offload.report()?;
            drop(offload);
            drop(stream);
            let seen = std::mem::take(&mut *seen.lock());
            assert!(
                seen.iter()
                    .all(|(block, hashes)| *hashes == expected[*block]),
                "wrong bytes"
            );
            Ok::<_, OffloadError>(())
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return true,
        }
    }
    false
}

fn writers_model() -> Model {
    toy::model(&[[64, 256]; 9], &[Encoding::Q8_0, Encoding::BF16], 5)
}

const DECODINGS: [Decoding; 2] = [Decoding::Ahead, Decoding::AtUse];

/// What is decoded is packed, what arrives as stored is streamed, and all share one place.
fn packed_model() -> (Model, DeviceBudget) {
    let mut model = writers_model();
    for block in (1..9).step_by(2) {
        model = model.with_residency(block, Residency::Never).unwrap();
    }
    let device = CpuDevice::new();
    let least = support::least(&device, model.clone()).build().unwrap();
    let least = least.plan().arena_bytes;
    let packed = |block: &BlockPlan| block.form == Form::Packed;
    for more in 0.. {
        let budget = DeviceBudget::Bytes(least + more * 1024);
        let built = support::least(&device, model.clone()).device_budget(budget);
        let plan = built.build().unwrap().plan().clone();
        if plan.blocks.iter().step_by(2).all(packed) {
            return (model, budget);
        }
    }
    unreachable!("some budget packs them all")
}

#[test]
fn with_all_fences_nothing_is_noticed() {
    let (packed, budget) = packed_model();
    for decoding in DECODINGS {
        let least = (decoding, DeviceBudget::Least);
        assert!(!notices(
            &support::mixed_model(),
            least,
            false,
            20,
            |plan| plan
        ));
        assert!(!notices(&writers_model(), least, true, 20, |plan| plan));
        assert!(!notices(&packed, (decoding, budget), true, 20, |plan| plan));
    }
}

/// Whether a plan of all that is decoded in either way, without what `amend` takes away, is noticed.
fn is_noticed(amend: fn(Plan) -> Plan) -> bool {
    let notices = |decoding| {
        let least = (decoding, DeviceBudget::Least);
        notices(&support::mixed_model(), least, false, 200, amend)
    };
    DECODINGS.into_iter().all(notices)
}

#[test]
fn decode_without_waiting_for_its_upload_is_noticed() {
    assert!(is_noticed(|plan| plan.without_fence(Fence::Uploaded)));
}

#[test]
fn an_upload_into_staging_that_is_still_read_is_noticed() {
    assert!(is_noticed(|plan| plan.without_fence(Fence::StagingRead)));
}

#[test]
fn compute_without_waiting_for_its_block_is_noticed() {
    assert!(is_noticed(|plan| plan.without_fence(Fence::Arrived)));
}

#[test]
fn a_write_over_a_block_that_is_still_read_is_noticed() {
    assert!(is_noticed(|plan| plan.without_fence(Fence::LastReader)));
}

/// Direct and decoded blocks share the window, and skipped visits have no reader: only the writer fence is between a
/// decode on one stream and an upload on another.
#[test]
fn a_write_over_a_range_that_is_still_written_is_noticed() {
    let without = |plan: Plan| plan.without_fence(Fence::LastWriter);
    let ahead = (Decoding::Ahead, DeviceBudget::Least);
    assert!(notices(&writers_model(), ahead, true, 200, without));
    let (packed, budget) = packed_model();
    for decoding in DECODINGS {
        assert!(notices(&packed, (decoding, budget), true, 200, without));
    }
}

#[test]
fn with_all_fences_skipped_visits_stay_right() {
    let model = writers_model();
    let expected = support::expected(&model, &ArrivalPolicy::default());
    let device = jittery(6, true);
    let stream = device.create_stream("compute").unwrap();
    let mut offload = support::least(&device, model).build().unwrap();
    let seen = support::Seen::default();
    for round in 0..300 {
        let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
        for visit in 0..9 {
            if (visit + round) % 3 == 2 {
                let lease = pass.acquire().unwrap().expect("visits are left");
                support::compute(&lease, &stream, &seen);
            } else {
                assert!(pass.skip().unwrap());
            }
        }
        assert!(!pass.skip().unwrap(), "nothing is left to skip");
    }
    let report = offload.report().unwrap();
    assert_eq!((report.visits, report.skipped), (900, 1800));
    drop(offload);
    drop(stream);
    for (block, hashes) in Arc::try_unwrap(seen).unwrap().into_inner() {
        assert_eq!(hashes, expected[block]);
    }
}
