//! The stand-in refuses what a driver refuses, and ends the process where one would do harm: else it would not notice
//! when the device does so.

#![allow(unsafe_code, reason = "calls the driver")]

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cudarc::driver::sys::{self, CUevent, CUresult, CUstream};

use crate::driver::{self, StandIn};

const OK: CUresult = CUresult::CUDA_SUCCESS;

/// Makes one call of the driver.
macro_rules! call {
    ($function:ident($($argument:expr),*)) => {
        // SAFETY: pointers are to locals or to memory that the test keeps; what is wrong with a call is what its test is
        // about, and the stand-in looks before it touches anything.
        unsafe { sys::$function($($argument),*) }
    };
}

/// A current context.
fn context() {
    let (mut device, mut context) = (0, ptr::null_mut());
    assert_eq!(call!(cuInit(0)), OK);
    assert_eq!(call!(cuDeviceGet(&raw mut device, 0)), OK);
    assert_eq!(
        call!(cuDevicePrimaryCtxRetain(&raw mut context, device)),
        OK
    );
    assert_eq!(call!(cuCtxSetCurrent(context)), OK);
}

fn stream() -> CUstream {
    let mut stream = ptr::null_mut();
    assert_eq!(call!(cuStreamCreate(&raw mut stream, 1)), OK);
    stream
}

fn event() -> CUevent {
    let mut event = ptr::null_mut();
    assert_eq!(call!(cuEventCreate(&raw mut event, 0)), OK);
    event
}

fn device_memory(bytes: usize) -> u64 {
    let mut address = 0;
    assert_eq!(call!(cuMemAlloc_v2(&raw mut address, bytes)), OK);
    address
}

/// Host memory of whole pages, never freed.
fn host_memory(bytes: usize) -> *mut c_void {
    let memory = memmap2::MmapMut::map_anon(bytes).unwrap();
    Box::leak(Box::new(memory)).as_mut_ptr().cast()
}

/// `cuMemcpyBatchAsync` as CUDA 12.8 has it, whatever version the bindings are of.
type Batch = unsafe extern "C" fn(
    *mut u64,
    *mut u64,
    *mut usize,
    usize,
    *mut sys::CUmemcpyAttributes,
    *mut usize,
    usize,
    *mut usize,
    CUstream,
) -> CUresult;

/// Makes one call for several copies from host to device memory.
fn batch(driver: &StandIn, copies: &[(u64, *mut c_void, usize)], stream: CUstream) -> CUresult {
    let mut to: Vec<_> = copies.iter().map(|copy| copy.0).collect();
    let mut from: Vec<_> = copies.iter().map(|copy| copy.1 as u64).collect();
    let mut bytes: Vec<_> = copies.iter().map(|copy| copy.2).collect();
    // SAFETY: numbers.
    let mut attributes: sys::CUmemcpyAttributes = unsafe { std::mem::zeroed() };
    attributes.srcAccessOrder = sys::CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
    let (mut first, mut failed) = (0, 0);
    // SAFETY: lists of as many as are told, and locals that live.
    unsafe {
        driver.get::<Batch>("cuMemcpyBatchAsync")(
            to.as_mut_ptr(),
            from.as_mut_ptr(),
            bytes.as_mut_ptr(),
            copies.len(),
            &raw mut attributes,
            &raw mut first,
            1,
            &raw mut failed,
            stream,
        )
    }
}

fn register(memory: *mut c_void, bytes: usize, flags: u32) -> CUresult {
    call!(cuMemHostRegister_v2(memory, bytes, flags))
}

/// Lets streams go on.
static OPEN: AtomicBool = AtomicBool::new(false);

/// Holds a stream until it is open.
fn hold(stream: CUstream) {
    unsafe extern "C" fn wait(_: *mut c_void) {
        while !OPEN.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let held = call!(cuLaunchHostFunc(stream, Some(wait), ptr::null_mut()));
    assert_eq!(held, OK);
}

const BYTES: usize = 1 << 20;

/// A copy of `BYTES` that is under way: stream, device memory, host memory.
fn copying() -> (CUstream, u64, *mut c_void) {
    context();
    let (stream, to, from) = (stream(), device_memory(BYTES), host_memory(BYTES));
    assert_eq!(register(from, BYTES, 0), OK);
    hold(stream);
    assert_eq!(call!(cuMemcpyHtoDAsync_v2(to, from, BYTES, stream)), OK);
    (stream, to, from)
}

#[test]
fn copies_and_registrations_are_refused_as_a_driver_does() {
    driver::alone(|driver| {
        let mut free = 0;
        let no_context = call!(cuMemAlloc_v2(&raw mut free, 1));
        assert_eq!(no_context, CUresult::CUDA_ERROR_INVALID_CONTEXT);
        context();
        let (stream, to, from) = (stream(), device_memory(BYTES), host_memory(BYTES));
        let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
        assert_eq!(call!(cuMemAlloc_v2(&raw mut free, 0)), invalid);
        assert_eq!(call!(cuMemcpyHtoDAsync_v2(to, from, 1, stream)), invalid);
        // Two registrations, side by side.
        let half = BYTES / 2;
        let second = from.wrapping_byte_add(half);
        assert_eq!(register(from, half, 0), OK);
        assert_eq!(register(second, half, 0), OK);
        assert_eq!(call!(cuMemcpyHtoDAsync_v2(to, from, half, stream)), OK);
        let across = call!(cuMemcpyHtoDAsync_v2(to, from, half + 1, stream));
        assert_eq!(across, invalid);
        let past = call!(cuMemcpyHtoDAsync_v2(
            to + 1 + half as u64,
            from,
            half,
            stream
        ));
        assert_eq!(past, invalid);
        // Several at once as one by one.
        let both = [(to, from, half), (to + half as u64, second, half)];
        assert_eq!(batch(driver, &both, stream), OK);
        let across = [(to, from, 1), (to + 1, from, half + 1)];
        assert_eq!(batch(driver, &across, stream), invalid);
        assert_eq!(batch(driver, &[], stream), invalid);
        let per_thread = ptr::without_provenance_mut(2);
        assert_eq!(batch(driver, &both, per_thread), invalid);
        // A page of the first again.
        assert_eq!(
            register(from.wrapping_byte_add(100), 100, 0),
            CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED
        );
        assert_eq!(call!(cuStreamSynchronize(stream)), OK);
        assert_eq!(call!(cuMemHostUnregister(from)), OK);
        assert_eq!(
            call!(cuMemHostUnregister(from)),
            CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED
        );
        assert_eq!(register(from, half, 0), OK);
    });
}

#[test]
fn events_are_those_of_a_driver() {
    driver::alone(|_| {
        context();
        let (first, second, event) = (stream(), stream(), event());
        // Never recorded: nobody waits.
        assert_eq!(call!(cuStreamWaitEvent(second, event, 0)), OK);
        assert_eq!(call!(cuEventSynchronize(event)), OK);
        let mut elapsed = 0.0;
        assert_eq!(
            call!(cuEventElapsedTime_v2(&raw mut elapsed, event, event)),
            CUresult::CUDA_ERROR_INVALID_HANDLE
        );
        assert_eq!(call!(cuStreamSynchronize(second)), OK);
        hold(first);
        assert_eq!(call!(cuEventRecord(event, first)), OK);
        assert_eq!(
            call!(cuEventElapsedTime_v2(&raw mut elapsed, event, event)),
            CUresult::CUDA_ERROR_NOT_READY
        );
        // Destroyed while it is waited for: the wait stands.
        assert_eq!(call!(cuStreamWaitEvent(second, event, 0)), OK);
        assert_eq!(call!(cuEventDestroy_v2(event)), OK);
        let behind = self::event();
        assert_eq!(call!(cuEventRecord(behind, second)), OK);
        let mut passed = || call!(cuEventElapsedTime_v2(&raw mut elapsed, behind, behind));
        assert_eq!(passed(), CUresult::CUDA_ERROR_NOT_READY);
        OPEN.store(true, Ordering::Release);
        assert_eq!(call!(cuStreamSynchronize(second)), OK);
        assert_eq!(passed(), OK);
    });
}

#[test]
fn freeing_memory_under_a_copy_is_a_breach() {
    driver::breaks("freeing 1048576 bytes", |_| {
        let (_, to, _) = copying();
        call!(cuMemFree_v2(to));
    });
}

#[test]
fn unregistering_memory_under_a_copy_is_a_breach() {
    driver::breaks("unregistering 1048576 bytes", |_| {
        let (_, _, from) = copying();
        call!(cuMemHostUnregister(from));
    });
}

#[test]
fn destroying_twice_is_a_breach() {
    driver::breaks("a stream is destroyed twice", |_| {
        context();
        let stream = stream();
        assert_eq!(call!(cuStreamDestroy_v2(stream)), OK);
        call!(cuStreamDestroy_v2(stream));
    });
    driver::breaks("no event, or no more, to record: ", |_| {
        context();
        let (stream, event) = (stream(), event());
        assert_eq!(call!(cuEventDestroy_v2(event)), OK);
        call!(cuEventRecord(event, stream));
    });
}

#[test]
fn a_short_copy_from_memory_locked_for_reading_is_a_breach() {
    driver::breaks(
        "65536 bytes of memory locked for reading are copied",
        |_| {
            context();
            let (stream, to, from) = (stream(), device_memory(BYTES), host_memory(BYTES));
            assert_eq!(register(from, BYTES, 8), OK);
            assert_eq!(call!(cuMemcpyHtoDAsync_v2(to, from, 65537, stream)), OK);
            call!(cuMemcpyHtoDAsync_v2(to, from, 65536, stream));
        },
    );
}

#[test]
fn calling_from_a_host_function_is_a_breach() {
    unsafe extern "C" fn calls(_: *mut c_void) {
        call!(cuCtxSynchronize());
    }
    driver::breaks("cuCtxSynchronize is called within a host function", |_| {
        context();
        let stream = stream();
        call!(cuLaunchHostFunc(stream, Some(calls), ptr::null_mut()));
        call!(cuStreamSynchronize(stream));
    });
}
