//! A CUDA driver on the CPU, so that the tests of offload-cuda run where there is no GPU.
//!
//! Built as a dynamic library and found as `libcuda.so` and `libcuda.so.1`, it serves the calls that offload-cuda
//! makes, with `cuda.h`'s prototypes, and decodes as the kernel `decode_block` does. It says nothing about speed.
//!
//! # What is as on a GPU
//!
//! - Streams run beside one another and beside the host, each on a thread; the default streams are there as well.
//! - An event is a point of a stream. A wait takes the last recording at the time of the call, and is none if there was
//!   no recording.
//! - Copies of up to 64 KiB are read from host memory when they are submitted, longer ones when the
//!   stream comes to them. Copies to memory that is not page-locked end before the call returns.
//! - What was page-locked for reading stays what it was, even if the file behind it is truncated.
//! - An error such as `CUDA_ERROR_ILLEGAL_ADDRESS` is the last word of the context: every later call returns it, and
//!   streams drop their work.
//!
//! # What is stricter
//!
//! A driver may let these pass, or crash; here they are refused or end the process with a line that says why:
//!
//! - copies from memory that is not page-locked, or across two registrations; overlapping registrations;
//! - short copies from memory that was page-locked for reading: the driver would touch a mapping with the CPU;
//! - freeing, unregistering or unloading what submitted work still uses; destroying anything twice; use after that;
//! - calls without a current context, and calls from within a host function;
//! - launches whose table, tensors or factors do not lie within allocations.
//!
//! # What is not modelled
//!
//! Streams that wait for the legacy default stream, pageable uploads, and other devices: such calls are refused. That a
//! device sees a file being rewritten under a registration: it sees what was there when it was registered.
//!
//! # For tests
//!
//! Functions beginning with `stand_in_` are in `control.rs`: they count calls, have one fail, hang, or change the device.
//! State is that of the process, so each test that uses them has one of its own.

#![expect(
    unsafe_code,
    reason = "exports C functions and copies between addresses"
)]

mod calls;
mod control;
mod kernel;
mod memory;
mod stream;

use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A `CUresult`.
type Code = c_int;

/// The results that are returned here, and those that tests ask for.
mod code {
    use super::Code;

    pub(crate) const SUCCESS: Code = 0;
    pub(crate) const INVALID_VALUE: Code = 1;
    pub(crate) const OUT_OF_MEMORY: Code = 2;
    pub(crate) const INVALID_DEVICE: Code = 101;
    pub(crate) const INVALID_CONTEXT: Code = 201;
    pub(crate) const INVALID_HANDLE: Code = 400;
    pub(crate) const NOT_FOUND: Code = 500;
    pub(crate) const NOT_READY: Code = 600;
    pub(crate) const ILLEGAL_ADDRESS: Code = 700;
    pub(crate) const HOST_MEMORY_ALREADY_REGISTERED: Code = 712;
    pub(crate) const HOST_MEMORY_NOT_REGISTERED: Code = 713;
    pub(crate) const LAUNCH_FAILED: Code = 719;
    pub(crate) const NOT_SUPPORTED: Code = 801;
}

/// Ends the process: the caller did what no driver promises to survive.
fn breach(what: &str) -> ! {
    eprintln!("stand-in of the CUDA driver: {what}");
    std::process::abort();
}

/// Nothing here panics with a lock held but to end the process.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
