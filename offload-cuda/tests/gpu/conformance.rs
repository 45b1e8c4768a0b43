//! The GPU is held to the same contract as the CPU device.

use std::ops::Range;
use std::sync::mpsc;

use offload_core::device::Device;
use offload_core::testing::conformance::{self, Harness};
use offload_core::testing::decoding;
use offload_cuda::{CudaArena, CudaDevice, CudaStream};

struct Gpu(CudaDevice);

impl Harness for Gpu {
    type Device = CudaDevice;

    fn device(&self) -> &CudaDevice {
        &self.0
    }

    fn gate(&self, stream: &CudaStream) -> Box<dyn FnOnce() + Send> {
        let (open, opened) = mpsc::channel();
        stream
            .launch_host(move || opened.recv().expect("gates are opened"))
            .expect("submitted");
        Box::new(move || open.send(()).expect("the stream waits at the gate"))
    }

    fn read(&self, stream: &CudaStream, arena: &CudaArena, range: Range<u64>) -> Vec<u8> {
        let view = self.0.view(arena, range);
        self.0.read(stream, &view).expect("the stream reads")
    }

    fn live_handles(&self) -> u64 {
        self.0.live_handles()
    }
}

#[test]
fn the_gpu_keeps_the_contract() {
    let Some(device) = crate::device(|builder| builder) else {
        return;
    };
    conformance::check_all(&Gpu(device));
}

#[test]
fn the_gpu_keeps_the_contract_with_poison_and_jitter() {
    let Some(device) = crate::device(|builder| builder.poison(true).jitter(7)) else {
        return;
    };
    conformance::check_all(&Gpu(device));
}

#[test]
fn the_gpu_decodes_at_random_as_the_reference() {
    let Some(device) = crate::device(|builder| builder) else {
        return;
    };
    let gpu = Gpu(device);
    assert_eq!(
        decoding::offered_conversions(gpu.device()),
        decoding::all_conversions(),
        "everything is offered"
    );
    for seed in 0..crate::rounds("OFFLOAD_DECODE_SEEDS", 20) as u64 {
        decoding::decode_at_random(&gpu, seed, 8);
    }
}
