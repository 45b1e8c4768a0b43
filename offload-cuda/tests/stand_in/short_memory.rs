//! A device with little memory.

use offload_core::device::{Device, DeviceError};
use offload_core::executor::DeviceBudget;
use offload_cuda::CudaDevice;

use crate::driver;
use crate::streaming::{offload, pinned};
use crate::work;

#[test]
fn an_arena_that_does_not_fit_is_planned_smaller() {
    driver::alone(|driver| {
        let device = CudaDevice::new(0).unwrap();
        let model = pinned(&device, &work::model());
        let offload = |budget| offload(&device, &model, budget, |plan| plan);
        let least = offload(DeviceBudget::Least).unwrap().plan().arena_bytes;
        driver.set_memory(least * 3 / 2);
        let mut smaller = offload(DeviceBudget::Bytes(1 << 40)).unwrap();
        let arena = smaller.plan().arena_bytes;
        assert!((least..=least * 3 / 2).contains(&arena), "{least} {arena}");
        let stream = device.create_stream("compute").unwrap();
        for _ in 0..3 {
            work::pass(&device, &model, &mut smaller, &stream).unwrap();
        }
        let shortages = smaller.report().unwrap().shortages;
        println!("{shortages:?}");
        assert!(!shortages.is_empty());
        drop(smaller);
        driver.set_memory(least / 2);
        let refused = work::text(&offload(DeviceBudget::Least).unwrap_err());
        assert!(refused.contains(&least.to_string()), "{refused}");
        match device.allocate_arena(least) {
            Err(DeviceError::OutOfMemory {
                requested_bytes,
                free_bytes,
            }) => assert_eq!((requested_bytes, free_bytes), (least, least / 2)),
            other => panic!("{other:?}"),
        }
        drop((model, stream, device));
        assert_eq!((driver.live(), driver.left_behind()), (0, 0));
    });
}
