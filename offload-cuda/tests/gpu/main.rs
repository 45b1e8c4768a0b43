//! Checks on a real GPU. Where there is none they are skipped aloud; with `OFFLOAD_REQUIRE_CUDA=1` that is a failure.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod conformance;
mod decoding;
mod engine;
mod engines;
#[cfg(feature = "interop")]
mod interop;
mod ladder;
mod soak;
mod streaming;

use offload_cuda::{CudaDevice, CudaDeviceBuilder};

/// The first device with the settings of `set`, or `None` where there is no CUDA.
fn device(set: impl FnOnce(CudaDeviceBuilder) -> CudaDeviceBuilder) -> Option<CudaDevice> {
    match set(CudaDevice::builder(0)).build() {
        Ok(device) => Some(device),
        Err(reason) => {
            let required = std::env::var("OFFLOAD_REQUIRE_CUDA").is_ok_and(|value| value == "1");
            assert!(!required, "OFFLOAD_REQUIRE_CUDA is set: {reason}");
            println!("SKIPPED: {reason}");
            None
        }
    }
}

/// How often a long test goes round.
fn rounds(name: &str, default: usize) -> usize {
    let set = std::env::var(name).ok();
    set.map_or(default, |text| text.parse().expect("a number"))
}
