//! The device on a stand-in of the CUDA driver, so on any Linux machine: what it does with a driver's answers. What a
//! real driver does is for the tests in `gpu`, most of which run here as well, shortened.
//!
//! The driver is found when a process loads it and has one state, so each test starts this program again for itself
//! alone, with the stand-in where the system looks for the driver. See [`driver`].

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod checks;
mod driver;
mod failures;
mod host_memory;
mod short_memory;
mod steady_state;
mod work;

// The tests of the GPU.
#[path = "../gpu/conformance.rs"]
mod conformance;
#[path = "../gpu/decoding.rs"]
mod decoding;
#[path = "../gpu/engine.rs"]
mod engine;
#[path = "../gpu/engines.rs"]
mod engines;
#[path = "../gpu/ladder.rs"]
mod ladder;
#[path = "../gpu/streaming.rs"]
mod streaming;

use offload_cuda::{CudaDevice, CudaDeviceBuilder};

/// The device for a test of the GPU, in the process that [`driver::all_of`] started for it.
fn device(set: impl FnOnce(CudaDeviceBuilder) -> CudaDeviceBuilder) -> Option<CudaDevice> {
    if !driver::is_there() {
        println!("SKIPPED: runs in a process of its own, see `the_tests_of_the_gpu_pass`");
        return None;
    }
    Some(set(CudaDevice::builder(0)).build().unwrap())
}

/// How often a long test goes round: less often than on a GPU.
fn rounds(_name: &str, default: usize) -> usize {
    default.div_ceil(20)
}

#[test]
fn the_tests_of_the_gpu_pass() {
    driver::all_of(&[
        "conformance::",
        "decoding::",
        "engines::",
        "ladder::",
        "streaming::",
    ]);
}
