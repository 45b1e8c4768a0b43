//! Streamed blocks arrive with the bytes of the reference, whatever the order in which streams run; and every fence is
//! needed for that.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use offload_core::device::Device;
use offload_core::encoding::Encoding;
use offload_core::executor::{DeviceBudget, Offload, OffloadBuilder, OffloadError, Settings};
use offload_core::model::{Model, PassKind, Residency};
use offload_core::plan::{Budget, Decoding, Fence, Form, Plan};
use offload_core::source::Source;
use offload_core::swappable::{Swappable, TensorSpec};
use offload_core::testing::toy::{self, ToyBlock};
use offload_cuda::CudaDevice;

use crate::engine::Engine;

/// Encodings with a decoder and without one, so that some blocks are direct.
const MIXED: [Encoding; 4] = [Encoding::Q8_0, Encoding::BF16, Encoding::Q4K, Encoding::Q6K];

/// Ten blocks of three sizes, in memory.
pub(crate) fn mixed_model() -> Model {
    let shapes: Vec<[u64; 2]> = (0..10).map(|index| [64 + 64 * (index % 3), 2048]).collect();
    toy::model(&shapes, &MIXED, 1)
}

/// The same model in page-locked memory of the device.
pub(crate) fn pinned(device: &CudaDevice, model: &Model) -> Model {
    let blocks = model.blocks().iter().map(|block| {
        let tensors = block.tensors().iter().map(|tensor| {
            let len = usize::try_from(tensor.source().len()).unwrap();
            let bytes = device.allocate_pinned(len, |memory| {
                tensor.source().read(0, memory).unwrap();
            });
            let source = Source::from(bytes.unwrap());
            TensorSpec::new(tensor.name(), tensor.shape(), tensor.encoding(), source).unwrap()
        });
        Arc::new(ToyBlock::new(block.name(), tensors.collect())) as Arc<dyn Swappable>
    });
    let pinned = Model::new(blocks.collect()).unwrap();
    (0..model.blocks().len()).fold(pinned, |pinned, block| {
        let residency = model.residency(block);
        pinned.with_residency(block, residency).unwrap()
    })
}

pub(crate) fn all_blocks(model: &Model) -> Vec<usize> {
    (0..model.blocks().len()).collect()
}

pub(crate) fn offload(
    device: &CudaDevice,
    model: &Model,
    budget: DeviceBudget,
    amend: fn(Plan) -> Plan,
) -> Result<Offload<CudaDevice>, OffloadError> {
    builder(device, model, budget).amend_plan(amend).build()
}

fn builder(device: &CudaDevice, model: &Model, budget: DeviceBudget) -> OffloadBuilder<CudaDevice> {
    Offload::builder(device)
        .model(model.clone())
        .remainder_below(64)
        .device_budget(budget)
}

fn resident_bytes(device: &CudaDevice, model: &Model) -> u64 {
    let all = offload(device, model, DeviceBudget::Bytes(1 << 40), |plan| plan).unwrap();
    all.plan().arena_bytes
}

fn stream(
    device: &CudaDevice,
    model: &Model,
    decoding: Decoding,
    budget: DeviceBudget,
    passes: usize,
) {
    let handles = device.live_handles();
    {
        let compute = device.create_stream("compute").unwrap();
        let mut engine = Engine::new(device, model, compute);
        let builder = builder(device, model, budget).decoding(decoding);
        let mut offload = builder.build().unwrap();
        assert!(offload.plan().kinds[0].wire_bytes_per_pass > 0, "streams");
        for _ in 0..passes {
            engine.pass(&mut offload, PassKind::FULL).unwrap();
            engine.check(&all_blocks(model));
        }
        let report = offload.report().unwrap();
        assert_eq!(report.high_water_bytes, offload.plan().high_water_bytes);
    }
    assert_eq!(device.live_handles(), handles, "nothing leaks");
}

#[test]
fn a_thousand_passes_with_poison_and_jitter_are_identical() {
    let Some(device) = crate::device(|builder| builder.poison(true).jitter(1)) else {
        return;
    };
    let passes = crate::rounds("OFFLOAD_LONG_PASSES", 1000);
    let model = pinned(&device, &mixed_model());
    let middling = DeviceBudget::Bytes(resident_bytes(&device, &model) * 6 / 10);
    for decoding in [Decoding::Ahead, Decoding::AtUse] {
        stream(&device, &model, decoding, DeviceBudget::Least, passes / 2);
        stream(&device, &model, decoding, middling, passes / 8);
    }
}

#[test]
fn staged_memory_arrives_identical() {
    let Some(device) = crate::device(|builder| builder.poison(true).jitter(3)) else {
        return;
    };
    for decoding in [Decoding::Ahead, Decoding::AtUse] {
        stream(&device, &mixed_model(), decoding, DeviceBudget::Least, 50);
    }
}

/// Whether poison, jitter and a slow reader notice what `amend` did to the plan, within so many seeds.
fn notices(
    model: &Model,
    (decoding, budget): (Decoding, DeviceBudget),
    skip: bool,
    seeds: u64,
    amend: fn(Plan) -> Plan,
) -> bool {
    for seed in 0..seeds {
        let device = CudaDevice::builder(0).poison(true).jitter(seed).build();
        let device = device.unwrap();
        let model = pinned(&device, model);
        let run = || {
            let compute = device.create_stream("compute")?;
            let mut engine = Engine::new(&device, &model, compute);
            engine.delay_us = 150 * (seed % 3);
            let stream = engine.stream.clone();
            // Even seeds stage every tensor by itself.
            let settings = Settings {
                remainder_below_bytes: 64,
                decoding: Some(decoding),
                part_bytes: (seed % 2) << 60,
                ..Settings::default()
            };
            let builder = builder(&device, &model, budget).settings(settings);
            let mut offload = builder.amend_plan(amend).build()?;
            let mut different = Vec::new();
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
                        engine.compute(&lease, &stream)?;
                    } else {
                        break;
                    }
                    visit += 1;
                }
                drop(pass);
                different.extend(engine.differences()?);
            }
            Ok::<_, OffloadError>(different)
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(different)) if different.is_empty() => {}
            _ => return true,
        }
    }
    false
}

fn writers_model() -> Model {
    toy::model(&[[512, 256]; 9], &[Encoding::Q8_0, Encoding::BF16], 5)
}

#[test]
fn with_all_fences_nothing_is_noticed() {
    if crate::device(|builder| builder).is_none() {
        return;
    }
    let (packed, budget) = packed_model();
    for decoding in [Decoding::Ahead, Decoding::AtUse] {
        let least = (decoding, DeviceBudget::Least);
        assert!(!notices(&mixed_model(), least, false, 12, |plan| plan));
        assert!(!notices(&writers_model(), least, true, 12, |plan| plan));
        assert!(!notices(&packed, (decoding, budget), true, 12, |plan| plan));
    }
}

/// What is decoded is packed, what arrives as stored is streamed, and all share one place.
fn packed_model() -> (Model, DeviceBudget) {
    let mut model = writers_model();
    for block in (1..9).step_by(2) {
        model = model.with_residency(block, Residency::Never).unwrap();
    }
    let plan = |budget| {
        let settings = Settings {
            remainder_below_bytes: 64,
            ..Settings::default()
        };
        settings
            .plan(&settings.workload(&model, true), budget)
            .unwrap()
    };
    let least = plan(Budget::Least).arena_bytes;
    let budget = (0..).map(|more| least + more * 16384).find(|&bytes| {
        let plan = plan(Budget::Bytes(bytes));
        let mut decoded = plan.blocks.iter().step_by(2);
        decoded.all(|block| block.form == Form::Packed)
    });
    (model, DeviceBudget::Bytes(budget.unwrap()))
}

#[test]
fn without_any_one_fence_it_is_noticed() {
    if crate::device(|builder| builder).is_none() {
        return;
    }
    let (mixed, writers, (packed, budget)) = (mixed_model(), writers_model(), packed_model());
    for decoding in [Decoding::Ahead, Decoding::AtUse] {
        let least = (decoding, DeviceBudget::Least);
        assert!(
            notices(&mixed, least, false, 60, |plan| plan
                .without_fence(Fence::Uploaded)),
            "decode {decoding:?} without waiting for its upload"
        );
        assert!(
            notices(&mixed, least, false, 60, |plan| plan
                .without_fence(Fence::StagingRead)),
            "an upload into staging that is still read, {decoding:?}"
        );
        assert!(
            notices(&mixed, least, false, 60, |plan| plan
                .without_fence(Fence::Arrived)),
            "compute without waiting for its block, decoded {decoding:?}"
        );
        assert!(
            notices(&mixed, least, false, 60, |plan| plan
                .without_fence(Fence::LastReader)),
            "a write over a block that is still read, decoded {decoding:?}"
        );
        // What is decoded at use waits for uploads of its own, if it has any, and so for earlier ones.
        let (model, budget) = match decoding {
            Decoding::Ahead => (&writers, DeviceBudget::Least),
            Decoding::AtUse => (&packed, budget),
        };
        assert!(
            notices(model, (decoding, budget), true, 60, |plan| plan
                .without_fence(Fence::LastWriter)),
            "a write over a range that is still written, decoded {decoding:?}"
        );
    }
}
