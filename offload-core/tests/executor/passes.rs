//! Passes that are skipped over, abandoned, forgotten or announced wrongly: the next pass has the right bytes.

use std::sync::Arc;

use offload_core::cpu::{CpuDevice, CpuStream};
use offload_core::device::Device;
use offload_core::encoding::Encoding;
use offload_core::executor::{ArrivalPolicy, DeviceBudget, Lease, Offload, OffloadError, Pass};
use offload_core::model::{Model, PassKind, Residency};
use offload_core::plan::{Decoding, Form};
use offload_core::testing::toy::{self, ToyBlock};

use crate::support;

struct Rig {
    device: CpuDevice,
    stream: CpuStream,
    offload: Offload<CpuDevice>,
    expected: Vec<support::BlockHash>,
    seen: support::Seen,
}

impl Rig {
    fn new(model: Model, pins: bool) -> Self {
        Self::with(model, pins, true)
    }

    fn with(model: Model, pins: bool, pack: bool) -> Self {
        let device = CpuDevice::builder()
            .poison(true)
            .jitter(11)
            .pins(pins)
            .build();
        let expected = support::expected(&model, &ArrivalPolicy::default());
        let budget = support::resident_bytes(&device, &model) * 6 / 10;
        let offload = Offload::builder(&device)
            .model(model)
            .remainder_below(64)
            .device_budget(DeviceBudget::Bytes(budget))
            .pack(pack)
            .build()
            .unwrap();
        let stream = device.create_stream("compute").unwrap();
        Self {
            device,
            stream,
            offload,
            expected,
            seen: support::Seen::default(),
        }
    }

    fn both() -> [Self; 2] {
        [true, false].map(|pins| Self::new(support::mixed_model(), pins))
    }

    fn wait(&self) {
        let event = self.device.create_event().unwrap();
        let generation = self.device.record(&self.stream, &event).unwrap();
        self.device.synchronize(&event, generation).unwrap();
    }

    /// A whole pass with the right bytes.
    fn check_pass(&mut self, kind: PassKind) {
        let visits = self.offload.model().kinds()[kind.index()].visits().to_vec();
        support::pass(&mut self.offload, kind, &self.stream, &self.seen).unwrap();
        self.wait();
        support::check(&self.seen, &self.expected, &visits);
    }
}

#[test]
fn a_pass_after_an_abandoned_one_is_right() {
    for mut rig in Rig::both() {
        for visits in 0..10 {
            let mut pass = rig.offload.pass(PassKind::FULL, &rig.stream).unwrap();
            for _ in 0..visits {
                let lease = pass.acquire().unwrap().expect("visits are left");
                support::compute(&lease, &rig.stream, &rig.seen);
            }
            drop(pass);
            rig.wait();
            let visits: Vec<_> = (0..visits).collect();
            support::check(&rig.seen, &rig.expected, &visits);
            rig.check_pass(PassKind::FULL);
            rig.check_pass(PassKind::FULL);
        }
        let report = rig.offload.report().unwrap();
        assert_eq!((report.abandoned, report.passes.len()), (10, 20));
    }
}

#[test]
fn abandoned_passes_may_follow_one_another() {
    for mut rig in Rig::both() {
        for _ in 0..50 {
            let mut pass = rig.offload.pass(PassKind::FULL, &rig.stream).unwrap();
            drop(pass.acquire().unwrap());
        }
        rig.check_pass(PassKind::FULL);
    }
}

#[test]
fn forgotten_leases_and_passes_are_made_good() {
    for mut rig in Rig::both() {
        for round in 0..20 {
            let mut pass = rig.offload.pass(PassKind::FULL, &rig.stream).unwrap();
            for _ in 0..round % 10 {
                std::mem::forget(pass.acquire().unwrap().expect("visits are left"));
            }
            std::mem::forget(pass);
        }
        rig.check_pass(PassKind::FULL);
        let report = rig.offload.report().unwrap();
        assert_eq!(
            (report.abandoned, report.passes.len()),
            (20, 1),
            "forgotten passes were ended"
        );
    }
}

/// Every other block, and a kind that leaves out the weights of the first half.
fn model_with_kinds() -> (Model, [PassKind; 2]) {
    let model = support::mixed_model();
    let (model, half) = model
        .with_kind("half", [0, 2, 4, 6, 8], |_, _| true)
        .unwrap();
    let light = |block: &dyn offload_core::swappable::Swappable,
                 tensor: &offload_core::swappable::TensorSpec| {
        !(block.name() < "blocks.5" && tensor.name() == "weight")
    };
    let visits: Vec<usize> = (0..10).collect();
    let (model, light) = model.with_kind("light", visits, light).unwrap();
    (model, [half, light])
}

#[test]
fn hints_right_wrong_and_missing_never_change_bytes() {
    let (model, [half, _]) = model_with_kinds();
    for pins in [true, false] {
        let mut rig = Rig::new(model.clone(), pins);
        let kinds = [PassKind::FULL, half];
        // Every combination of kind, hint and what really follows.
        for round in 0..27 {
            let (kind, hint, next) = (kinds[round % 2], round / 2 % 3, kinds[round / 6 % 2]);
            let visits = rig.offload.model().kinds()[kind.index()].visits().to_vec();
            let mut pass = rig.offload.pass(kind, &rig.stream).unwrap();
            match hint {
                0 => {}
                1 => pass.then(half).unwrap(),
                _ => pass.last(),
            }
            support::finish(&mut pass, &rig.stream, &rig.seen).unwrap();
            drop(pass);
            rig.wait();
            support::check(&rig.seen, &rig.expected, &visits);
            rig.check_pass(next);
        }
    }
}

#[test]
fn a_right_hint_keeps_the_next_pass_warm_and_a_wrong_one_costs_bytes() {
    let (model, [half, _]) = model_with_kinds();
    let mut rig = Rig::with(model, true, false);
    let follow = |rig: &mut Rig, hint: Option<PassKind>, next: PassKind| {
        let mut pass = rig.offload.pass(PassKind::FULL, &rig.stream).unwrap();
        if let Some(hint) = hint {
            pass.then(hint).unwrap();
        }
        support::finish(&mut pass, &rig.stream, &rig.seen).unwrap();
        drop(pass);
        rig.wait();
        rig.seen.lock().clear();
        rig.check_pass(next);
        let report = rig.offload.report().unwrap();
        (
            report.passes.last().expect("just run").cold,
            report.past_end_bytes,
        )
    };
    let (cold, _) = follow(&mut rig, Some(half), half);
    assert!(!cold, "announced");
    let (cold, before) = follow(&mut rig, None, PassKind::FULL);
    assert!(!cold, "the same kind is expected");
    let (cold, after) = follow(&mut rig, None, half);
    assert!(cold, "not announced");
    assert!(after > before, "what was brought for nothing is counted");
}

/// What was given up may still be on its way to the place that a packed block is decoded into, on another stream.
#[test]
fn what_is_decoded_at_use_comes_behind_what_was_given_up() {
    let model = toy::model(&[[64, 256]; 2], &[Encoding::BF16, Encoding::Q8_0], 3);
    let model = model.with_residency(0, Residency::Never).unwrap();
    let (model, packed) = model.with_kind("packed", [1], |_, _| true).unwrap();
    let expected = support::expected(&model, &ArrivalPolicy::default());
    let build = |device: &CpuDevice, budget| {
        let builder = Offload::builder(device).model(model.clone());
        let builder = builder.remainder_below(64).decoding(Decoding::AtUse);
        builder.device_budget(budget).build().unwrap()
    };
    for seed in 0..20 {
        for pins in [true, false] {
            let device = CpuDevice::builder().poison(true).jitter(seed).pins(pins);
            let device = device.build();
            let stream = device.create_stream("compute").unwrap();
            let least = build(&device, DeviceBudget::Least).plan().arena_bytes;
            let image = model.blocks()[1].tensors().iter();
            let image: u64 = image.map(|tensor| tensor.source().len() + 256).sum();
            let mut offload = build(&device, DeviceBudget::Bytes(least + image));
            assert_eq!(offload.plan().blocks[1].form, Form::Packed);
            let seen = support::Seen::default();
            for _ in 0..10 {
                // The head of another full pass is brought, and given up.
                support::pass(&mut offload, PassKind::FULL, &stream, &seen).unwrap();
                support::pass(&mut offload, packed, &stream, &seen).unwrap();
            }
            offload.report().unwrap();
            for (block, hashes) in std::mem::take(&mut *seen.lock()) {
                assert_eq!(hashes, expected[block], "seed {seed}, block {block}");
            }
        }
    }
}

#[test]
fn a_kind_moves_only_what_it_demands() {
    let (model, [_, light]) = model_with_kinds();
    let mut rig = Rig::new(model, true);
    let plan = rig.offload.plan();
    assert!(plan.kinds[light.index()].wire_bytes_per_pass < plan.kinds[0].wire_bytes_per_pass);
    let mut pass = rig.offload.pass(light, &rig.stream).unwrap();
    let lease = pass.acquire().unwrap().expect("visits are left");
    match lease.tensor("weight") {
        Err(OffloadError::NotDemanded { tensor, kind, .. }) => {
            assert_eq!((&*tensor, &*kind), ("weight", "light"));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        lease.tensor("absent"),
        Err(OffloadError::NoSuchTensor { .. })
    ));
    assert!(lease.tensor("bias").is_ok());
}

#[test]
fn suspending_frees_the_arena_and_resuming_brings_it_back() {
    for mut rig in Rig::both() {
        let generation = rig.offload.generation();
        for _ in 0..3 {
            rig.check_pass(PassKind::FULL);
            rig.offload.suspend().unwrap();
            assert_eq!(rig.device.live().arena_bytes, 0);
            let refused = rig.offload.pass(PassKind::FULL, &rig.stream);
            assert!(matches!(refused, Err(OffloadError::Suspended)));
            drop(refused);
            rig.offload.suspend().unwrap();
            rig.offload.resume().unwrap();
            rig.offload.resume().unwrap();
            rig.check_pass(PassKind::FULL);
        }
        assert_eq!(rig.offload.generation(), generation + 3);
    }
}

#[test]
fn engines_may_compute_on_several_streams() {
    for mut rig in Rig::both() {
        let side = rig.device.create_stream("side").unwrap();
        let side_seen = support::Seen::default();
        for _ in 0..200 {
            let mut pass = rig.offload.pass(PassKind::FULL, &rig.stream).unwrap();
            while let Some(mut lease) = pass.acquire().unwrap() {
                lease.wait_on(&side).unwrap();
                support::compute(&lease, &side, &side_seen);
                lease.read_on(&side).unwrap();
                support::compute(&lease, &rig.stream, &rig.seen);
            }
        }
        rig.wait();
        let visits: Vec<_> = (0..200).flat_map(|_| 0..10).collect();
        support::check(&rig.seen, &rig.expected, &visits);
        support::check(&side_seen, &rig.expected, &visits);
    }
}

#[test]
fn each_pass_may_use_another_stream() {
    for mut rig in Rig::both() {
        let streams: Vec<_> = (0..3)
            .map(|_| rig.device.create_stream("compute").unwrap())
            .collect();
        let visits: Vec<_> = (0..10).collect();
        let mut seen = Vec::new();
        for pass in 0..300 {
            let of_pass = support::Seen::default();
            support::pass(
                &mut rig.offload,
                PassKind::FULL,
                &streams[pass % 3],
                &of_pass,
            )
            .unwrap();
            seen.push(of_pass);
        }
        rig.offload.report().unwrap();
        for of_pass in seen {
            support::check(&of_pass, &rig.expected, &visits);
        }
    }
}

#[test]
fn a_block_may_be_visited_more_than_once() {
    let model = support::mixed_model();
    let visits = vec![3, 3, 0, 9, 3, 1, 1, 1, 0, 5];
    let (model, kind) = model.with_kind("again", visits, |_, _| true).unwrap();
    for pins in [true, false] {
        let mut rig = Rig::new(model.clone(), pins);
        for _ in 0..30 {
            rig.check_pass(kind);
            rig.check_pass(PassKind::FULL);
        }
    }
}

#[test]
fn an_inline_stream_gives_the_bytes_to_the_host() {
    let model = toy::model(&[[4, 32]; 3], &[Encoding::F32], 3);
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let mut offload = Offload::builder(&device)
        .model(model.clone())
        .remainder_below(0)
        .arrival(ArrivalPolicy::STORED)
        .device_budget(DeviceBudget::Least)
        .build()
        .unwrap();
    for _ in 0..3 {
        let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
        while let Some(lease) = pass.acquire().unwrap() {
            let tensor = lease.tensor("weight").unwrap();
            let mut stored = vec![0; 512];
            let spec = &model.blocks()[lease.block_index()].tensors()[0];
            spec.source().read(0, &mut stored).unwrap();
            assert_eq!(tensor.host_bytes(), Some(&stored[..]));
            assert_eq!(
                (tensor.shape(), tensor.encoding()),
                (&[4, 32][..], Encoding::F32)
            );
            assert!(tensor.address().is_multiple_of(256), "tensors are aligned");
        }
    }
}

#[test]
fn small_tensors_that_lie_apart_stay_resident() {
    let block = |index: u64| {
        let tensors = vec![
            toy::tensor("weight", &[64, 64], Encoding::F32, index),
            toy::tensor("bias", &[64], Encoding::F32, !index),
        ];
        Arc::new(ToyBlock::new(format!("b{index}"), tensors)) as Arc<_>
    };
    let model = Model::new((0..4).map(block).collect()).unwrap();
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let mut offload = Offload::builder(&device)
        .model(model)
        .remainder_below(1024)
        .device_budget(DeviceBudget::Least)
        .build()
        .unwrap();
    let plan = offload.plan();
    assert_eq!(
        plan.kinds[0].wire_bytes_per_pass,
        4 * 64 * 64 * 4,
        "weights only"
    );
    assert!(
        plan.blocks
            .iter()
            .all(|block| block.remainder.is_some_and(|place| place.bytes == 256))
    );
    let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
    let lease = pass.acquire().unwrap().expect("visits are left");
    assert_eq!(
        lease.tensor("bias").unwrap().host_bytes().map(<[u8]>::len),
        Some(256)
    );
}

#[test]
fn blocks_that_must_stay_or_go_do_so() {
    let model = support::mixed_model()
        .with_residency(4, Residency::Never)
        .unwrap()
        .with_residency(5, Residency::Always)
        .unwrap();
    let device = CpuDevice::new();
    for budget in [DeviceBudget::Least, DeviceBudget::Bytes(1 << 40)] {
        let offload = Offload::builder(&device)
            .model(model.clone())
            .remainder_below(64)
            .device_budget(budget)
            .build()
            .unwrap();
        let visits = &offload.plan().kinds[0].visits;
        assert!(visits[4].place.is_some() && visits[5].place.is_none());
    }
}

#[test]
fn dropping_everything_at_any_moment_joins_and_frees() {
    for pins in [true, false] {
        for passes in 0..3 {
            for visits in 0..=10 {
                let mut rig = Rig::new(support::mixed_model(), pins);
                for _ in 0..passes {
                    support::pass(&mut rig.offload, PassKind::FULL, &rig.stream, &rig.seen)
                        .unwrap();
                }
                let mut pass = rig.offload.pass(PassKind::FULL, &rig.stream).unwrap();
                for visit in 0..visits {
                    let lease = pass.acquire().unwrap().expect("visits are left");
                    if visit + 1 == visits && visits % 2 == 1 {
                        std::mem::forget(lease);
                    }
                }
                if visits % 3 == 0 {
                    std::mem::forget(pass);
                } else {
                    drop(pass);
                }
                let Rig {
                    device,
                    stream,
                    offload,
                    ..
                } = rig;
                drop(offload);
                drop(stream);
                assert_eq!(
                    device.live(),
                    Default::default(),
                    "{passes} passes, {visits} visits"
                );
            }
        }
    }
}

#[test]
fn handles_may_move_between_threads() {
    fn is_send<T: Send>() {}
    is_send::<Offload<CpuDevice>>();
    is_send::<Pass<'_, CpuDevice>>();
    is_send::<Lease<'_, CpuDevice>>();
    let mut rig = Rig::new(support::mixed_model(), false);
    let counters = rig.offload.counters();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            rig.check_pass(PassKind::FULL);
        });
    });
    assert_eq!((counters.passes(), counters.visits()), (1, 10));
}

#[test]
fn an_unknown_pass_kind_is_refused_with_the_numbers() {
    let mut rig = Rig::new(support::mixed_model(), true);
    let error = rig.offload.pass(PassKind(7), &rig.stream).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pass kind 7 does not exist: the model has 1"
    );
}

#[test]
fn a_hint_of_an_unknown_kind_is_refused_with_the_numbers_and_changes_nothing() {
    for mut rig in Rig::both() {
        let mut pass = rig.offload.pass(PassKind::FULL, &rig.stream).unwrap();
        let error = pass.then(PassKind(7)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "pass kind 7 does not exist: the model has 1"
        );
        support::finish(&mut pass, &rig.stream, &rig.seen).unwrap();
        drop(pass);
        rig.wait();
        support::check(&rig.seen, &rig.expected, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        rig.check_pass(PassKind::FULL);
        let report = rig.offload.report().unwrap();
        let cold: Vec<_> = report.passes.iter().map(|pass| pass.cold).collect();
        assert_eq!(cold, [true, false]);
    }
}

/// Kinds that move nothing, between passes that are cut short, on streams that take turns: whatever is written over a
/// block must still wait for its last reader, which is no longer in the pass before.
#[test]
fn a_pass_that_moves_nothing_after_an_abandoned_one_keeps_the_fences() {
    let (model, nothing) = support::mixed_model()
        .with_kind("nothing", [], |_, _| true)
        .unwrap();
    let (model, one) = model.with_kind("one", [3], |_, _| true).unwrap();
    let expected = support::expected(&model, &ArrivalPolicy::default());
    for seed in 0..30u64 {
        let device = CpuDevice::builder()
            .pins(seed % 2 == 0)
            .poison(true)
            .jitter(seed)
            .build();
        let streams = [
            device.create_stream("one").unwrap(),
            device.create_stream("two").unwrap(),
        ];
        let mut offload = support::least(&device, model.clone()).build().unwrap();
        let seen = support::Seen::default();
        for round in 0..6 {
            let turn = |offset: u64| &streams[((round + offset + seed / 2) % 2) as usize];
            let mut pass = offload.pass(PassKind::FULL, turn(0)).unwrap();
            for _ in 0..(seed + round) % 10 {
                let lease = pass.acquire().unwrap().unwrap();
                support::compute(&lease, turn(0), &seen);
            }
            drop(pass);
            for offset in 0..1 + seed % 3 {
                drop(offload.pass(nothing, turn(offset)).unwrap());
            }
            if seed % 5 == 0 {
                support::pass(&mut offload, one, turn(1), &seen).unwrap();
            }
            support::pass(&mut offload, PassKind::FULL, turn(1), &seen).unwrap();
        }
        drop(offload);
        drop(streams);
        device.memory().expect("no breach of contract");
        for (block, hashes) in std::mem::take(&mut *seen.lock()) {
            assert_eq!(hashes, expected[block], "seed {seed}, block {block}");
        }
    }
}

#[test]
fn a_trace_is_kept_for_as_many_passes_as_a_report_lists() {
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let mut offload = support::least(&device, toy::model(&[[8, 256]; 3], &support::MIXED, 1))
        .trace(true)
        .build()
        .unwrap();
    for _ in 0..1100 {
        let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
        while pass.acquire().unwrap().is_some() {}
    }
    let report = offload.report().unwrap();
    let oldest = report.passes.first().unwrap().pass;
    assert_eq!((oldest, report.passes.len()), (76, 1024));
    let passes: std::collections::BTreeSet<_> = offload.spans().map(|span| span.pass).collect();
    assert_eq!(passes.len(), 1024);
    assert_eq!(passes.first(), Some(&oldest));
}

/// One block streams and is decoded: once it is, the next pass's could be brought, as soon as this pass begins.
#[test]
fn what_follows_may_be_said_before_the_first_visit() {
    for pins in [true, false] {
        let device = CpuDevice::builder().pins(pins).build();
        let stream = device.create_stream("compute").unwrap();
        let mut model = toy::model(&[[16, 256]; 4], &[Encoding::Q8_0], 3);
        for block in 0..4 {
            let residency = match block {
                0 => Residency::Never,
                _ => Residency::Always,
            };
            model = model.with_residency(block, residency).unwrap();
        }
        let mut offload = Offload::builder(&device)
            .model(model)
            .remainder_below(64)
            .device_budget(DeviceBudget::mib(64))
            .build()
            .unwrap();
        for _ in 0..3 {
            let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
            pass.last();
            while pass.acquire().unwrap().is_some() {}
        }
        assert_eq!(offload.report().unwrap().past_end_bytes, 0);
    }
}

#[test]
fn numbers_are_seen_as_what_they_arrived_as() {
    let device = CpuDevice::new();
    let stream = device.inline_stream();
    let encodings = [Encoding::F32, Encoding::BF16, Encoding::F16, Encoding::I8];
    let model = toy::model(&[[3, 256]; 4], &encodings, 3);
    let mut offload = Offload::builder(&device)
        .model(model)
        .arrival(ArrivalPolicy::STORED)
        .remainder_below(64)
        .device_budget(DeviceBudget::Least)
        .build()
        .unwrap();
    let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
    for encoding in encodings {
        let lease = pass.acquire().unwrap().unwrap();
        let tensor = lease.tensor("weight").unwrap();
        let bytes = tensor.host_bytes().unwrap();
        let seen = [
            (
                Encoding::F32,
                tensor.host_numbers::<f32>().map(bytemuck::cast_slice),
            ),
            (
                Encoding::BF16,
                tensor
                    .host_numbers::<half::bf16>()
                    .map(bytemuck::cast_slice),
            ),
            (
                Encoding::F16,
                tensor.host_numbers::<half::f16>().map(bytemuck::cast_slice),
            ),
            (
                Encoding::I8,
                tensor.host_numbers::<i8>().map(bytemuck::cast_slice),
            ),
        ];
        for (as_encoding, seen) in seen {
            assert_eq!(
                seen,
                (as_encoding == encoding).then_some(bytes),
                "{encoding}"
            );
        }
    }
}
