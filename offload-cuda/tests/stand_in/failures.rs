//! Calls that fail, and a device that is lost.

use std::time::{Duration, Instant};

use offload_core::device::{DecodeEntry, DecodeTable, Device, PinnedUpload};
use offload_core::encoding::Encoding;
use offload_core::executor::{DeviceBudget, Offload};
use offload_core::model::{Model, PassKind};
use offload_core::plan::Place;
use offload_core::source::Source;
use offload_cuda::CudaDevice;

use crate::driver::{self, CALLS, StandIn};
use crate::streaming::{offload, pinned};
use crate::work;

const INVALID_VALUE: i32 = 1;
const OUT_OF_MEMORY: i32 = 2;
const ILLEGAL_ADDRESS: i32 = 700;

/// Makes every call: streams a model from a file, reads it back, and copies within the device.
fn everything(model: &Model) -> Result<(), String> {
    fn text(error: impl std::error::Error) -> String {
        work::text(&error)
    }
    let device = CudaDevice::builder(0).poison(true).jitter(5).build();
    let device = device.map_err(text)?;
    let stream = device.create_stream("compute").map_err(text)?;
    let bytes = device
        .allocate_pinned(1 << 17, |bytes| bytes.fill(7))
        .map_err(text)?;
    let arena = device.allocate_arena(1 << 18).map_err(text)?;
    let source = Source::from(bytes);
    let whole = device.pin(&source).map_err(text)?.pinned().expect("pinned");
    let half = |from: usize| PinnedUpload {
        offset: from as u64,
        pinned: &whole,
        source: from..from + (1 << 16),
    };
    device
        .upload_all_pinned(&stream, &arena, [half(0), half(1 << 16)].into_iter())
        .map_err(text)?;
    let (from, to) = (
        device.view(&arena, 0..1 << 17),
        device.view(&arena, 1 << 17..1 << 18),
    );
    device.copy(&stream, &to, &from).map_err(text)?;
    assert!(device.read(&stream, &to).map_err(text)? == vec![7; 1 << 17]);
    device.memory().map_err(text)?;
    let mut offload = Offload::builder(&device)
        .model(model.clone())
        .remainder_below(64)
        .device_budget(DeviceBudget::Least)
        .staging_buffers(work::LITTLE_STAGING)
        .trace(true)
        .build()
        .map_err(text)?;
    for _ in 0..3 {
        work::pass(&device, model, &mut offload, &stream).map_err(text)?;
    }
    offload.report().map_err(text)?;
    stream.synchronize().map_err(text)
}

#[test]
fn whatever_call_fails_once_it_is_named_and_nothing_leaks() {
    driver::alone(|driver| {
        let (_file, model) = work::in_file(&work::model());
        everything(&model).unwrap();
        let clean = CALLS.map(|name| driver.calls(name));
        assert_eq!((driver.live(), driver.left_behind()), (0, 0));
        let (mut named, mut absorbed) = (0, 0);
        for (name, clean) in CALLS.iter().zip(clean) {
            assert!(clean > 0, "{name} is not called");
            // The first few, and some of the rest.
            let some = (1..=clean).filter(|nth| *nth <= 8 || nth % (clean / 16 + 1) == 0);
            for nth in some {
                for code in [INVALID_VALUE, OUT_OF_MEMORY] {
                    driver.fail(name, nth, code, false);
                    let done = everything(&model);
                    if driver.forgive() > 0 {
                        continue;
                    }
                    match &done {
                        Ok(()) => absorbed += 1,
                        Err(error) => {
                            let memory =
                                name.starts_with("cuMem") && error.contains("out of memory");
                            assert!(memory || error.contains(name), "{name} {nth}: {error}");
                            named += 1;
                        }
                    }
                    let left = (driver.live(), driver.left_behind());
                    assert_eq!(left, (0, 0), "{name} {nth} {code}: {done:?}");
                }
            }
        }
        println!("{named} errors named their call, {absorbed} failures were made up for");
    });
}

/// Who launched a kernel may drop the device and then the program: the kernel's module outlives its launches.
#[test]
fn a_program_outlives_its_device() {
    driver::alone(|driver| {
        let device = CudaDevice::new(0).unwrap();
        let stream = device.create_stream("compute").unwrap();
        let arena = device.allocate_arena(1 << 10).unwrap();
        let place = |offset| Place { offset, bytes: 256 };
        let table = DecodeTable {
            entries: vec![DecodeEntry {
                encoding: Encoding::F32,
                arrived: Encoding::F32,
                scale: None,
                encoded: place(0),
                place: place(512),
            }],
            staging: None,
        };
        let program = device.prepare(&arena, &[table]).unwrap();
        stream
            .launch_host(|| std::thread::sleep(Duration::from_millis(100)))
            .unwrap();
        device.decode(&stream, &arena, &program, 0).unwrap();
        drop(device);
        drop(program);
        drop((arena, stream));
        assert_eq!((driver.live(), driver.left_behind()), (0, 0));
    });
}

/// Streams until the device is lost by the failure of `name`, and checks that this is the last word.
fn lose(driver: &StandIn, name: &str, later: bool) {
    let device = CudaDevice::new(0).unwrap();
    let model = pinned(&device, &work::model());
    let stream = device.create_stream("compute").unwrap();
    let mut offload = offload(&device, &model, DeviceBudget::Least, |plan| plan).unwrap();
    work::pass(&device, &model, &mut offload, &stream).unwrap();
    driver.fail(name, 3, ILLEGAL_ADDRESS, later);
    let mut run = || work::pass(&device, &model, &mut offload, &stream);
    let first = (0..5).find_map(|_| run().err()).expect("it is lost");
    assert!(first.is_device_lost());
    let first = work::text(&first);
    println!("{first}");
    let text = "700 (CUDA_ERROR_ILLEGAL_ADDRESS)";
    assert!(first.contains("device lost: "), "{first}");
    assert!(first.contains(text), "{first}");
    let lost = work::text(&device.memory().unwrap_err());
    assert!(first.contains(&lost), "{lost}");
    for again in [
        work::text(&run().unwrap_err()),
        work::text(&offload.pass(PassKind::FULL, &stream).unwrap_err()),
        work::text(&device.create_event().unwrap_err()),
        work::text(&device.allocate_arena(1).unwrap_err()),
        work::text(&device.allocate_pinned(1, |_| ()).unwrap_err()),
        work::text(&stream.synchronize().unwrap_err()),
    ] {
        assert!(again.contains(&lost), "{again}");
    }
    let begin = Instant::now();
    drop((offload, stream, model));
    assert_eq!((device.pinned_bytes(), device.live_handles()), (0, 0));
    drop(device);
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert_eq!(driver.live(), 0);
}

#[test]
fn a_call_that_loses_the_device_is_the_last_word() {
    driver::alone(|driver| lose(driver, "cuMemcpyBatchAsync", false));
}

#[test]
fn a_copy_that_loses_the_device_is_the_last_word() {
    driver::alone(|driver| lose(driver, "cuMemcpyBatchAsync", true));
}

#[test]
fn a_kernel_that_loses_the_device_is_the_last_word() {
    driver::alone(|driver| lose(driver, "cuLaunchKernel", true));
}

/// Nobody has been told yet when everything is dropped.
#[test]
fn a_device_that_is_lost_at_the_end_drops_without_a_hang() {
    driver::alone(|driver| {
        let device = CudaDevice::new(0).unwrap();
        let model = pinned(&device, &work::model());
        let stream = device.create_stream("compute").unwrap();
        let mut offload = offload(&device, &model, DeviceBudget::Least, |plan| plan).unwrap();
        let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
        drop(pass.acquire().unwrap());
        stream
            .launch_host(|| std::thread::sleep(Duration::from_millis(50)))
            .unwrap();
        // Lost once the stream has slept.
        driver.fail("cuEventRecord", 1, ILLEGAL_ADDRESS, true);
        let event = device.create_event().unwrap();
        device.record(&stream, &event).unwrap();
        let begin = Instant::now();
        drop(pass);
        drop((offload, event, stream, model));
        assert_eq!((device.pinned_bytes(), device.live_handles()), (0, 0));
        drop(device);
        assert!(begin.elapsed() < Duration::from_secs(1));
        assert_eq!(driver.live(), 0);
    });
}
