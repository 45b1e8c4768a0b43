//! The ladder of host memory, step by step down: the bytes stay right, and the report says what happened.

use std::time::{Duration, Instant};

use offload_core::device::Device;
use offload_core::executor::{DeviceBudget, HostReport, Offload};
use offload_cuda::{CudaDevice, CudaDeviceBuilder};

use crate::driver::{self, StandIn};
use crate::work;

/// Streams a model from a file, has `interfere` once all is built, and says how it came to the device and how long
/// dropping took.
fn stream(
    driver: &StandIn,
    set: fn(CudaDeviceBuilder) -> CudaDeviceBuilder,
    interfere: fn(&StandIn),
) -> (HostReport, Duration) {
    let device = set(CudaDevice::builder(0)).build().unwrap();
    let (_file, model) = work::in_file(&work::model());
    let stream = device.create_stream("compute").unwrap();
    let mut offload = Offload::builder(&device)
        .model(model.clone())
        .remainder_below(64)
        .device_budget(DeviceBudget::Least)
        .staging_buffers(work::LITTLE_STAGING)
        .build()
        .unwrap();
    interfere(driver);
    for _ in 0..3 {
        work::pass(&device, &model, &mut offload, &stream).unwrap();
    }
    let report = offload.report().unwrap().host;
    println!("{report:?}");
    let begin = Instant::now();
    drop(offload);
    (report, begin.elapsed())
}

fn notes(report: &HostReport, text: &str) -> bool {
    report.notes.iter().any(|note| note.contains(text))
}

#[test]
fn a_file_is_locked_where_it_lies() {
    driver::alone(|driver| {
        let (report, _) = stream(driver, |builder| builder, |_| ());
        assert_eq!((report.copied_bytes, report.staged_bytes), (0, 0));
        assert!(report.mapped_bytes > 0);
        assert_eq!(report.notes, Vec::<String>::new());
        assert_eq!((driver.live(), driver.left_behind()), (0, 0));
    });
}

#[test]
fn a_driver_that_locks_no_mappings_has_files_copied() {
    driver::alone(|driver| {
        driver.set_locks_read_only(false);
        let (report, _) = stream(driver, |builder| builder, |_| ());
        assert_eq!((report.mapped_bytes, report.staged_bytes), (0, 0));
        assert!(report.copied_bytes > 0);
        assert!(notes(
            &report,
            "the driver does not lock memory that may only be read"
        ));
        assert_eq!((driver.live(), driver.left_behind()), (0, 0));
    });
}

/// The attribute promises it, and then the driver refuses.
#[test]
fn a_registration_that_is_refused_has_files_copied() {
    driver::alone(|driver| {
        let refuse = |driver: &StandIn| driver.fail("cuMemHostRegister", 1, 1, false);
        let (report, _) = stream(driver, |builder| builder, refuse);
        assert_eq!((report.mapped_bytes, report.staged_bytes), (0, 0));
        assert!(report.copied_bytes > 0);
        assert!(notes(
            &report,
            "cuMemHostRegister: 1 (CUDA_ERROR_INVALID_VALUE)"
        ));
        assert_eq!((driver.live(), driver.left_behind()), (0, 0));
    });
}

#[test]
fn without_budget_for_pinned_memory_files_are_staged() {
    driver::alone(|driver| {
        // The model has 2 MiB.
        let little = |builder: CudaDeviceBuilder| builder.pinned_budget(600 << 10);
        let device = little(CudaDevice::builder(0)).build().unwrap();
        let (_file, model) = work::in_file(&work::model());
        let stream = device.create_stream("compute").unwrap();
        let mut offload = Offload::builder(&device)
            .model(model.clone())
            .remainder_below(64)
            .device_budget(DeviceBudget::Least)
            .build()
            .unwrap();
        for _ in 0..3 {
            work::pass(&device, &model, &mut offload, &stream).unwrap();
        }
        let report = offload.report().unwrap();
        println!("{:?} {:?}", report.host, report.shortages);
        assert_eq!((report.host.mapped_bytes, report.host.copied_bytes), (0, 0));
        assert!(report.host.staged_bytes > 0);
        assert!(notes(
            &report.host,
            "do not fit the budget for pinned memory"
        ));
        assert!(device.pinned_bytes() <= 600 << 10);
        drop((offload, stream, device));
        assert_eq!((driver.live(), driver.left_behind()), (0, 0));
    });
}

#[test]
fn a_registration_that_never_returns_has_the_rest_staged() {
    driver::alone(|driver| {
        let hang = |driver: &StandIn| driver.hang("cuMemHostRegister");
        let (report, dropping) = stream(driver, |builder| builder, hang);
        assert_eq!((report.mapped_bytes, report.copied_bytes), (0, 0));
        assert!(report.staged_bytes > 0);
        assert!(notes(&report, "a source was not pinned within 5s"));
        assert!(dropping < Duration::from_secs(7), "{dropping:?}");
        // Once it returns the thread gives everything back.
        driver.release();
        let begin = Instant::now();
        while driver.live() > 0 && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!((driver.live(), driver.left_behind()), (0, 0));
    });
}
