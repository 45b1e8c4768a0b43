//! What the plan and the report say is what happened.

use std::sync::Arc;

use offload_core::cpu::CpuDevice;
use offload_core::encoding::Encoding;
use offload_core::executor::{
    ArrivalPolicy, Costs, DeviceBudget, Offload, Settings, StagingBuffers,
};
use offload_core::model::{Model, PassKind};
use offload_core::plan::{Decoding, Form};
use offload_core::swappable::Swappable;
use offload_core::testing::toy::{self, ToyBlock};
use offload_core::testing::{Observed, Recorder, VirtualDevice};

use crate::support;

/// Runs passes with and without a last hint, and compares every total with what the recorder counted.
fn check_totals(model: Model, pins: bool, announce_end: bool, staging: StagingBuffers, pack: bool) {
    let recorder = Recorder::new();
    let device = Observed::new(CpuDevice::builder().pins(pins).build(), recorder.clone());
    let stream = device.inner().inline_stream();
    let budget = support::resident_bytes(device.inner(), &model) * 6 / 10;
    let mut offload = Offload::builder(&device)
        .model(model)
        .remainder_below(64)
        .device_budget(DeviceBudget::Bytes(budget))
        .staging_buffers(staging)
        .pack(pack)
        .build()
        .unwrap();
    let loaded = recorder.counts().upload_bytes;
    assert_eq!(offload.counters().load_bytes(), loaded);
    const PASSES: u64 = 5;
    for pass in 0..PASSES {
        let mut run = offload.pass(PassKind::FULL, &stream).unwrap();
        if announce_end && pass + 1 == PASSES {
            run.last();
        }
        while let Some(lease) = run.acquire().unwrap() {
            drop(lease);
        }
    }
    offload.suspend().unwrap();
    let report = offload.report().unwrap();
    let plan = offload.plan();
    let kind = &plan.kinds[0];
    let is_packed = plan.blocks.iter().any(|block| block.form == Form::Packed);
    assert_eq!(is_packed, pack);
    assert!(kind.wire_bytes_per_pass > 0, "something is streamed");
    assert_eq!(report.wire_bytes, PASSES * kind.wire_bytes_per_pass);
    if announce_end {
        assert_eq!(
            report.past_end_bytes, 0,
            "nothing is brought past an announced end"
        );
    } else if pins && !pack {
        assert!(
            report.past_end_bytes > 0,
            "the head of a sixth pass was brought"
        );
    }
    assert_eq!(
        report.load_bytes + report.wire_bytes + report.past_end_bytes,
        recorder.counts().upload_bytes
    );
    assert_eq!(recorder.counts().arenas, 1, "one allocation");
    assert_eq!(recorder.counts().largest_arena_bytes, plan.arena_bytes);
    assert!(plan.arena_bytes <= budget && report.arena_bytes == plan.arena_bytes);
    assert!(report.high_water_bytes <= plan.high_water_bytes);
}

#[test]
fn totals_equal_what_the_recording_device_counted() {
    for pins in [true, false] {
        for announce_end in [true, false] {
            let staging = StagingBuffers::default();
            for pack in [false, true] {
                check_totals(support::mixed_model(), pins, announce_end, staging, pack);
            }
        }
    }
}

#[test]
fn totals_hold_for_files_and_staging_buffers_of_any_size() {
    for bytes in [1000, 4096, 1 << 20] {
        for count in [1, 3] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            let model = support::in_file(&support::mixed_model(), &mut file);
            check_totals(
                model,
                true,
                true,
                StagingBuffers { count, bytes },
                bytes == 4096,
            );
        }
    }
}

#[test]
fn neighbours_in_a_file_arrive_in_one_upload() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let model = support::in_file(&support::mixed_model(), &mut file);
    let recorder = Recorder::new();
    let device = Observed::new(CpuDevice::new(), recorder.clone());
    let stream = device.inner().inline_stream();
    let mut offload = support::least(&device, model).build().unwrap();
    let before = recorder.counts();
    let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
    pass.last();
    while pass.acquire().unwrap().is_some() {}
    drop(pass);
    let after = recorder.counts();
    assert_eq!(after.uploads - before.uploads, 10, "one upload a block");
    let decoded = offload.plan().kinds[0]
        .visits
        .iter()
        .filter(|visit| !visit.staging.is_empty());
    assert_eq!(
        after.decodes - before.decodes,
        decoded.count() as u64,
        "one decode a block"
    );
    assert_eq!(after.handles, before.handles, "no handle is made in a pass");
}

/// Block swap is worth it because the host goes on: all work of several passes is submitted while the device is held.
#[test]
fn the_host_waits_for_nothing_within_a_pass_and_runs_one_pass_ahead() {
    let recorder = Recorder::new();
    let device = Observed::new(CpuDevice::new(), recorder.clone());
    let model = support::mixed_model();
    let stream = device.inner().inline_stream();
    let queued = {
        use offload_core::device::Device;
        device.create_stream("compute").unwrap()
    };
    let mut offload = support::least(&device, model).build().unwrap();
    drop(stream);
    let (open, opened) = std::sync::mpsc::channel::<()>();
    queued.launch(move || opened.recv().unwrap_or(()));
    let before = recorder.counts().synchronizes;
    for _ in 0..2 {
        let mut pass = offload.pass(PassKind::FULL, &queued).unwrap();
        while pass.acquire().unwrap().is_some() {}
    }
    assert_eq!(
        recorder.counts().synchronizes,
        before,
        "two passes without a wait"
    );
    let counters = offload.counters();
    assert_eq!((counters.submission_waits(), counters.pass_waits()), (0, 0));
    open.send(()).unwrap();
    drop(offload.pass(PassKind::FULL, &queued).unwrap());
    assert_eq!(
        counters.pass_waits(),
        1,
        "the third waits for the end of the first"
    );
}

/// Runs the plan on the virtual clock. Returns predicted and measured seconds of a pass, of its stalls, and of the
/// first pass.
fn virtual_pass(
    copy_over_compute: f64,
    fraction: f64,
    encoding: Encoding,
    decoding: Option<Decoding>,
    part_bytes: u64,
) -> [(f64, f64); 3] {
    let blocks = (0..24_u64).map(|index| {
        let tensor = |part| {
            let seed = 9 + 100 * index + part;
            toy::tensor(&format!("weight.{part}"), &[16, 256], encoding, seed)
        };
        let tensors = (0..4).map(tensor).collect();
        Arc::new(ToyBlock::new(format!("blocks.{index}"), tensors)) as Arc<dyn Swappable>
    });
    let model = Model::new(blocks.collect()).unwrap();
    let mut costs = Costs::default();
    costs.rates.upload_latency_s = 0.0;
    costs.decode_bytes_per_s = 100e9;
    let bytes: u64 = model.blocks()[0]
        .tensors()
        .iter()
        .map(|tensor| tensor.source().len())
        .sum();
    let copy_s = bytes as f64 / costs.rates.wire_bytes_per_s;
    let compute_s = copy_s / copy_over_compute;
    costs.compute_s = vec![vec![compute_s; 24]];
    let device = VirtualDevice::new(costs.clone());
    use offload_core::device::Device;
    let stream = device.create_stream("compute").unwrap();
    let build = |budget| {
        let settings = Settings {
            remainder_below_bytes: 64,
            costs: costs.clone(),
            decoding,
            part_bytes,
            ..Settings::default()
        };
        Offload::builder(&device)
            .model(model.clone())
            .settings(settings)
            .device_budget(budget)
            .build()
            .unwrap()
    };
    let all = build(DeviceBudget::Bytes(1 << 40)).plan().arena_bytes;
    let least = build(DeviceBudget::Least).plan().arena_bytes;
    let budget = least + ((all - least) as f64 * fraction) as u64;
    let mut offload = build(DeviceBudget::Bytes(budget));
    const PASSES: usize = 24;
    for _ in 0..PASSES {
        let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
        while let Some(lease) = pass.acquire().unwrap() {
            device.compute(&stream, compute_s);
            drop(lease);
        }
    }
    let report = offload.report().unwrap();
    let kind = &offload.plan().kinds[0];
    let settled = &report.passes[PASSES / 2..];
    let mean = |of: fn(&offload_core::executor::PassReport) -> f64| {
        settled.iter().map(of).sum::<f64>() / settled.len() as f64
    };
    [
        (kind.predicted_pass_s, mean(|pass| pass.pass_s)),
        (kind.predicted_stall_s, mean(|pass| pass.stall_s)),
        (kind.predicted_cold_pass_s, report.passes[0].pass_s),
    ]
}

#[test]
fn on_the_virtual_clock_a_pass_takes_what_the_plan_predicted() {
    let whole = Settings::default().part_bytes;
    for (encoding, decoding, part_bytes) in [
        (Encoding::Q8_0, None, whole),
        (Encoding::Q8_0, Some(Decoding::AtUse), whole),
        (Encoding::Q8_0, Some(Decoding::AtUse), 0),
        (Encoding::Q8_0, Some(Decoding::AtUse), 10_000),
        (Encoding::Q8_0, Some(Decoding::Ahead), whole),
        (Encoding::Q8_0, Some(Decoding::Ahead), 0),
        (Encoding::BF16, None, whole),
    ] {
        for copy_over_compute in [0.3, 0.9, 1.0, 1.7, 4.0] {
            for fraction in [0.0, 0.25, 0.5, 0.75, 0.9] {
                let mut figures =
                    virtual_pass(copy_over_compute, fraction, encoding, decoding, part_bytes);
                let pass_s = figures[0].0;
                // The clock's streams share nothing. What is decoded ahead takes its time from computing on a device, and
                // is planned so.
                let decodes_ahead = encoding == Encoding::Q8_0 && decoding != Some(Decoding::AtUse);
                if decodes_ahead && figures[0].1 < pass_s {
                    figures[0].1 = pass_s;
                }
                for (what, (predicted, measured)) in
                    ["pass", "stall", "cold pass"].iter().zip(figures)
                {
                    assert!(
                        (predicted - measured).abs() <= 1e-6 * pass_s,
                        "{what} of {encoding}, {decoding:?}, parts of {part_bytes}, r = {copy_over_compute}, \
                         {fraction} of the way: predicted {predicted}, measured {measured}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_stored_arrival_gives_the_encoded_bytes() {
    let model = toy::model(&[[16, 256]; 6], &support::MIXED, 2);
    let device = CpuDevice::new();
    let expected = support::expected(&model, &ArrivalPolicy::STORED);
    let stream = device.inline_stream();
    let mut offload = Offload::builder(&device)
        .model(model)
        .remainder_below(64)
        .arrival(ArrivalPolicy::STORED)
        .device_budget(DeviceBudget::Least)
        .build()
        .unwrap();
    let seen = support::Seen::default();
    support::pass(&mut offload, PassKind::FULL, &stream, &seen).unwrap();
    support::check(&seen, &expected, &[0, 1, 2, 3, 4, 5]);
}

#[test]
fn traces_hold_a_span_for_every_operation() {
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    // From nothing that stays, over blocks that stay encoded, to everything resident.
    let model = support::mixed_model();
    let all = support::resident_bytes(&device, &model);
    for (budget, uploads) in [
        (DeviceBudget::Least, 40),
        (DeviceBudget::Bytes(all * 6 / 10), 8),
        (DeviceBudget::Bytes(all), 0),
    ] {
        for decoding in [Decoding::Ahead, Decoding::AtUse] {
            let builder = support::least(&device, model.clone()).device_budget(budget);
            let mut offload = builder.decoding(decoding).trace(true).build().unwrap();
            for _ in 0..4 {
                let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
                while pass.acquire().unwrap().is_some() {}
            }
            offload.report().unwrap();
            let count = |stage| offload.spans().filter(|span| span.stage == stage).count();
            assert_eq!((count("upload"), count("compute")), (uploads, 40));
            let visits = &offload.plan().kinds[0].visits;
            let decodes = visits.iter().filter(|visit| visit.is_decoded()).count();
            assert_eq!(count("decode"), 4 * decodes);
            assert!(offload.spans().all(|span| span.begin_s <= span.end_s));
        }
    }
}
