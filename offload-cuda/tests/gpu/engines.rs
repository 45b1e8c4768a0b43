//! Engines as they come: two at once, several streams, streams of others, passes that are given up.

#![allow(unsafe_code, reason = "names the default streams by their handles")]

use std::ffi::c_void;

use offload_core::device::Device;
use offload_core::executor::DeviceBudget;
use offload_core::model::PassKind;
use offload_cuda::CudaStream;

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
