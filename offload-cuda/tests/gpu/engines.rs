//! Engines as they come: two at once, several streams, streams of others, passes that are given up.

#![allow(unsafe_code, reason = "names the default streams by their handles")]

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use offload_core::device::{Device, PinnedUpload};
use offload_core::executor::DeviceBudget;
use offload_core::model::PassKind;
use offload_core::source::Source;
use offload_cuda::{CudaDevice, CudaStream};

use crate::engine::Engine;
use crate::streaming::{all_blocks, mixed_model, offload, pinned};

const JITTER: u64 = 11;

#[test]
fn two_engines_share_a_device() {
    let Some(device) = crate::device(|builder| builder.poison(true).jitter(JITTER)) else {
        return;
    };
    std::thread::scope(|scope| {
        for number in 0..2 {
            let device = &device;
            scope.spawn(move || {
                let model = if number == 0 {
                    mixed_model()
                } else {
                    pinned(device, &mixed_model())
                };
                let compute = device.create_stream("compute").unwrap();
                let mut engine = Engine::new(device, &model, compute);
                let mut offload =
                    offload(device, &model, DeviceBudget::Least, |plan| plan).unwrap();
                for _ in 0..50 {
                    engine.pass(&mut offload, PassKind::FULL).unwrap();
                    engine.check(&all_blocks(&model));
                }
            });
        }
    });
}

#[test]
fn a_pass_after_an_abandoned_one_is_right() {
    let Some(device) = crate::device(|builder| builder.poison(true).jitter(JITTER)) else {
        return;
    };
    let model = pinned(&device, &mixed_model());
    let compute = device.create_stream("compute").unwrap();
    let mut engine = Engine::new(&device, &model, compute);
    let mut offload = offload(&device, &model, DeviceBudget::Least, |plan| plan).unwrap();
    for visits in 0..=model.blocks().len() {
        // Another stream each time, which is dropped with work under way.
        let other = device.create_stream("abandoned").unwrap();
        let mut pass = offload.pass(PassKind::FULL, &other).unwrap();
        for _ in 0..visits {
            let lease = pass.acquire().unwrap().expect("visits are left");
            engine.compute(&lease, &other).unwrap();
        }
        drop(pass);
        drop(other);
        engine.pass(&mut offload, PassKind::FULL).unwrap();
        let mut blocks: Vec<usize> = (0..visits).collect();
        blocks.extend(all_blocks(&model));
        blocks.dedup();
        engine.check(&blocks);
    }
}

#[test]
fn an_engine_computes_on_two_streams() {
    let Some(device) = crate::device(|builder| builder.poison(true).jitter(JITTER)) else {
        return;
    };
    let model = pinned(&device, &mixed_model());
    let compute = device.create_stream("compute").unwrap();
    let side = device.create_stream("side").unwrap();
    let mut engine = Engine::new(&device, &model, compute.clone());
    let mut offload = offload(&device, &model, DeviceBudget::Least, |plan| plan).unwrap();
    for round in 0..60 {
        let mut pass = offload.pass(PassKind::FULL, &compute).unwrap();
        let mut visit = round;
        while let Some(mut lease) = pass.acquire().unwrap() {
            if visit % 2 == 0 {
                lease.wait_on(&side).unwrap();
                engine.compute(&lease, &side).unwrap();
                lease.read_on(&side).unwrap();
            } else {
                engine.compute(&lease, &compute).unwrap();
            }
            visit += 1;
        }
        drop(pass);
        engine.check(&all_blocks(&model));
    }
}

/// The default streams: null and 1 are the legacy one, 2 is the calling thread's own.
#[test]
fn engines_compute_on_default_streams() {
    let Some(device) = crate::device(|builder| builder.poison(true).jitter(JITTER)) else {
        return;
    };
    let model = pinned(&device, &mixed_model());
    for handle in 0..3usize {
        // SAFETY: default streams exist as long as the context does, and the device keeps that.
        let stream = unsafe { device.stream_from_raw(handle as *mut c_void) };
        let mut engine = Engine::new(&device, &model, stream);
        let mut offload = offload(&device, &model, DeviceBudget::Least, |plan| plan).unwrap();
        for _ in 0..30 {
            engine.pass(&mut offload, PassKind::FULL).unwrap();
            engine.check(&all_blocks(&model));
        }
    }
}

#[test]
fn the_per_thread_stream_of_another_thread_is_a_breach() {
    let Some(device) = crate::device(|builder| builder) else {
        return;
    };
    // SAFETY: as above.
    let stream: CudaStream = unsafe { device.stream_from_raw(2 as *mut c_void) };
    let event = device.create_event().unwrap();
    device.record(&stream, &event).unwrap();
    let elsewhere = std::thread::scope(|scope| {
        let record = scope.spawn(|| device.record(&stream, &event).is_ok());
        record.join().is_err()
    });
    assert!(elsewhere, "it panics on another thread");
}

/// Uploads two halves of pinned memory in one call, crosswise, after a call that panics, and reads them back.
fn upload_two(device: &CudaDevice, stream: &CudaStream) {
    const HALF: usize = 1 << 17;
    let fill = |bytes: &mut [u8]| {
        bytes[..HALF].fill(1);
        bytes[HALF..].fill(2);
    };
    let source = Source::from(device.allocate_pinned(2 * HALF, fill).unwrap());
    let pinned = device.pin(&source).unwrap().pinned().unwrap();
    let arena = device.allocate_arena(3 * HALF as u64).unwrap();
    let upload = |to: usize, from: usize| PinnedUpload {
        offset: (to * HALF) as u64,
        pinned: &pinned,
        source: from * HALF..(from + 1) * HALF,
    };
    let before = std::iter::once(upload(2, 1));
    device.upload_all_pinned(stream, &arena, before).unwrap();
    let given_up = catch_unwind(AssertUnwindSafe(|| {
        let uploads = (0..2).map(|index| {
            assert!(index == 0, "there is no second");
            upload(2, 0)
        });
        device.upload_all_pinned(stream, &arena, uploads)
    }));
    assert!(given_up.is_err());
    // What was gathered by then is not submitted by the next call.
    let uploads = [upload(0, 1), upload(1, 0)].into_iter();
    device.upload_all_pinned(stream, &arena, uploads).unwrap();
    let view = device.view(&arena, 0..3 * HALF as u64);
    let read = device.read(stream, &view).unwrap();
    for (piece, byte) in read.chunks(HALF).zip([2, 1, 2]) {
        assert!(piece.iter().all(|read| *read == byte), "{byte}");
    }
}

#[test]
fn several_uploads_are_one_call_on_a_thread_without_a_context() {
    let Some(device) = crate::device(|builder| builder) else {
        return;
    };
    let stream = device.create_stream("upload").unwrap();
    let source = Source::from(
        device
            .allocate_pinned(1 << 17, |bytes| bytes.fill(3))
            .unwrap(),
    );
    let pinned = device.pin(&source).unwrap().pinned().unwrap();
    let arena = device.allocate_arena(1 << 17).unwrap();
    let half = |from: usize| PinnedUpload {
        offset: from as u64,
        pinned: &pinned,
        source: from..from + (1 << 16),
    };
    std::thread::scope(|scope| {
        let uploads = [half(0), half(1 << 16)].into_iter();
        let upload = || device.upload_all_pinned(&stream, &arena, uploads);
        scope.spawn(upload).join().unwrap().unwrap();
    });
    let read = device.read(&stream, &device.view(&arena, 0..1 << 17));
    assert!(read.unwrap() == vec![3; 1 << 17]);
    upload_two(&device, &stream);
}

/// The driver takes no batches for these.
#[test]
fn several_uploads_are_submitted_to_default_streams() {
    let Some(device) = crate::device(|builder| builder) else {
        return;
    };
    for handle in 0..3usize {
        // SAFETY: as above.
        upload_two(&device, &unsafe {
            device.stream_from_raw(handle as *mut c_void)
        });
    }
}
