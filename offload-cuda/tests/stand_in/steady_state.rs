//! What the driver is asked for while blocks stream from page-locked memory.

use offload_core::device::Device;
use offload_core::executor::DeviceBudget;
use offload_core::model::PassKind;
use offload_cuda::CudaDevice;

use crate::driver::{self, CALLS};
use crate::streaming::offload;
use crate::work;

/// Passes that are counted.
const PASSES: u64 = 20;

/// In a pass of the steady state nothing is made, given back, page-locked or waited for. All that a visit asks for: its
/// uploads, its decode, and events; and the context to be current before each.
#[test]
fn a_visit_from_pinned_memory_submits_and_no_more() {
    driver::alone(|driver| {
        let device = CudaDevice::new(0).unwrap();
        let model = work::in_pinned(&device, &work::model());
        let stream = device.create_stream("compute").unwrap();
        let mut offload = offload(&device, &model, DeviceBudget::Least, |plan| plan).unwrap();
        assert!(offload.plan().kinds[0].wire_bytes_per_pass > 0, "streams");
        let count = || CALLS.map(|name| driver.calls(name));
        let (mut within, mut between) = ([0; CALLS.len()], [0; CALLS.len()]);
        let mut visits = 0;
        for round in 0..PASSES + 5 {
            let begin = count();
            let mut pass = offload.pass(PassKind::FULL, &stream).unwrap();
            let first = count();
            while let Some(lease) = pass.acquire().unwrap() {
                assert!(lease.tensor("weight").unwrap().address() > 0);
                visits += u64::from(round >= 5);
            }
            let last = count();
            drop(pass);
            let end = count();
            if round >= 5 {
                for call in 0..CALLS.len() {
                    within[call] += last[call] - first[call];
                    between[call] += first[call] - begin[call] + end[call] - last[call];
                }
            }
        }
        println!("calls of a visit, and of a pass besides:");
        let per = |count: u64, of: u64| count as f64 / of as f64;
        for (name, (within, between)) in CALLS.iter().zip(within.iter().zip(&between)) {
            if within + between > 0 {
                let (visit, pass) = (per(*within, visits), per(*between, PASSES));
                println!("{name:20} {visit:6.2} {pass:6.2}");
            }
        }
        let made = |name: &str| within[CALLS.iter().position(|call| *call == name).unwrap()];
        for (name, count) in CALLS.iter().zip(within) {
            let submits = [
                "cuCtxSetCurrent",
                "cuMemcpyHtoDAsync",
                "cuMemcpyBatchAsync",
                "cuLaunchKernel",
                "cuEventRecord",
                "cuStreamWaitEvent",
            ];
            assert!(count == 0 || submits.contains(name), "{count} x {name}");
        }
        let streamed = offload.plan().kinds[0].wire_bytes_per_pass;
        let uploads = made("cuMemcpyHtoDAsync") + made("cuMemcpyBatchAsync");
        assert!(
            uploads > 0 && uploads <= visits,
            "{streamed} bytes, {uploads} uploads"
        );
        assert!(made("cuLaunchKernel") <= visits);
        for (name, count) in CALLS.iter().zip(between) {
            let waits = [
                "cuEventSynchronize",
                "cuEventElapsedTime",
                "cuCtxSetCurrent",
            ];
            let submits = ["cuEventRecord", "cuStreamWaitEvent"];
            let known = waits.contains(name) || submits.contains(name);
            assert!(count == 0 || known, "{count} x {name} between passes");
        }
    });
}
