//! The driver's functions. Names and prototypes are those of `cuda.h`,
//! <https://docs.nvidia.com/cuda/cuda-driver-api/>; each keeps to what it says there of its pointers.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr;
use std::sync::{Arc, Mutex};

use crate::control::{call, lost};
use crate::memory::{self, CPU_COPY};
use crate::stream::{self, Work};
use crate::{Code, breach, code, kernel, lock};

/// The version of CUDA that is served: the newest that a build of offload-cuda asks for.
const VERSION: c_int = 13000;

const NAME: &[u8] = b"stand-in\0";

/// The handle of the one device, clear of its ordinal.
const DEVICE: c_int = 40;

/// The handle of its context.
const CONTEXT: usize = 0xC0;

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: c_uint = 2;

/// `CU_MEMHOSTREGISTER_READ_ONLY`, and the one other flag that is known, `PORTABLE`.
const READ_ONLY: c_uint = 8;
const PORTABLE: c_uint = 1;

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

struct Table {
    /// How often the context is retained.
    references: u64,
    next: usize,
    /// What keeps a module from being unloaded is whoever shares it.
    modules: BTreeMap<usize, Module>,
    left_behind: u64,
}

struct Module {
    text: String,
    function: usize,
    launches: Arc<()>,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    references: 0,
    next: 0x10,
    modules: BTreeMap::new(),
    left_behind: 0,
});

pub(crate) fn live() -> u64 {
    let table = lock(&TABLE);
    table.references + table.modules.len() as u64
}

pub(crate) fn left_behind() -> u64 {
    lock(&TABLE).left_behind
}

fn in_context() -> Result<(), Code> {
    let current = CURRENT.get() == CONTEXT && lock(&TABLE).references > 0;
    current.then_some(()).ok_or(code::INVALID_CONTEXT)
}

fn is(right: bool, code: Code) -> Result<(), Code> {
    right.then_some(()).ok_or(code)
}

/// A copy to the device.
struct Upload {
    source: memory::Use,
    destination: memory::Use,
    to: usize,
    bytes: usize,
}

impl Upload {
    fn new(to: u64, from: usize, bytes: usize) -> Result<Self, Code> {
        Ok(Self {
            source: memory::host(from, bytes).ok_or(code::INVALID_VALUE)?,
            destination: memory::device(to, bytes).ok_or(code::INVALID_VALUE)?,
            to: to as usize,
            bytes,
        })
    }

    fn submit(self, on: &stream::Stream) {
        let Self {
            source,
            destination,
            to,
            bytes,
        } = self;
        let work: Work = if bytes > CPU_COPY {
            // As numbers: pointers do not go to other threads by themselves.
            let from = source.pointer() as usize;
            Work::Device(Box::new(move || {
                // SAFETY: the stream keeps both in use until this returns; to order it with what others do there is the
                // caller's part.
                unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
                Ok(())
            }))
        } else {
            if source.is_read_only() {
                breach(&format!(
                    "{bytes} bytes of memory locked for reading are copied: the CPU would"
                ));
            }
            let mut captured = vec![0u8; bytes];
            // SAFETY: registered, so mapped, and in use until this returns.
            unsafe { ptr::copy_nonoverlapping(source.pointer(), captured.as_mut_ptr(), bytes) };
            Work::Device(Box::new(move || {
                // SAFETY: the stream keeps the destination in use until this returns.
                unsafe { ptr::copy_nonoverlapping(captured.as_ptr(), to as *mut u8, bytes) };
                Ok(())
            }))
        };
        // The source is in use until then for those who see only the stream.
        on.submit(work, vec![source, destination]);
    }
}

/// `CUmemcpyAttributes`.
#[repr(C)]
struct CopyAttributes {
    source_order: c_int,
    /// Type and number of where source and destination lie, each.
    hints: [c_int; 4],
    flags: c_uint,
}

/// `CU_MEMCPY_SRC_ACCESS_ORDER_STREAM`
const STREAM_ORDER: c_int = 1;

/// `CU_STREAM_PER_THREAD`, the last of the default streams' handles.
const PER_THREAD_STREAM: usize = 2;

/// # Safety
/// `to` is null or may be written.
unsafe fn set<T>(to: *mut T, value: T) -> Result<(), Code> {
    is(!to.is_null(), code::INVALID_VALUE)?;
    // SAFETY: what this function asks for.
    unsafe { to.write(value) };
    Ok(())
}

/// Each function: its symbol, its name in errors and counts, and what it does.
macro_rules! calls {
    ($($symbol:ident, $name:literal: fn($($argument:ident: $type:ty),*) $work:block)*) => {$(
        /// # Safety
        /// As `cuda.h` says.
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol($($argument: $type),*) -> c_int {
            call($name, || $work)
        }
    )*};
}

calls! {
    cuInit, "cuInit": fn(flags: c_uint) {
        is(flags == 0, code::INVALID_VALUE)
    }

    cuDriverGetVersion, "cuDriverGetVersion": fn(version: *mut c_int) {
        // SAFETY: the caller's.
        unsafe { set(version, VERSION) }
    }

    cuDeviceGetCount, "cuDeviceGetCount": fn(count: *mut c_int) {
        // SAFETY: the caller's.
        unsafe { set(count, 1) }
    }

    cuDeviceGet, "cuDeviceGet": fn(device: *mut c_int, ordinal: c_int) {
        is(ordinal == 0, code::INVALID_DEVICE)?;
        // SAFETY: the caller's.
        unsafe { set(device, DEVICE) }
    }

    cuDeviceGetName, "cuDeviceGetName": fn(name: *mut c_char, len: c_int, device: c_int) {
        is(device == DEVICE, code::INVALID_DEVICE)?;
        let fits = usize::try_from(len).is_ok_and(|len| len >= NAME.len());
        is(fits && !name.is_null(), code::INVALID_VALUE)?;
        // SAFETY: the caller's buffer has `len` bytes, which are enough.
        unsafe { ptr::copy_nonoverlapping(NAME.as_ptr(), name.cast(), NAME.len()) };
        Ok(())
    }

    cuDeviceTotalMem_v2, "cuDeviceTotalMem": fn(bytes: *mut usize, device: c_int) {
        is(device == DEVICE, code::INVALID_DEVICE)?;
        // SAFETY: the caller's.
        unsafe { set(bytes, memory::info().1) }
    }

    cuDeviceGetAttribute, "cuDeviceGetAttribute": fn(value: *mut c_int, attribute: c_int, device: c_int) {
        is(device == DEVICE, code::INVALID_DEVICE)?;
        let known = match attribute {
            // Compute capability 8.0.
            75 => 8,
            76 => 0,
            // CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED.
            113 => c_int::from(memory::locks_read_only()),
            _ => return Err(code::INVALID_VALUE),
        };
        // SAFETY: the caller's.
        unsafe { set(value, known) }
    }

    cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain": fn(context: *mut usize, device: c_int) {
        is(device == DEVICE, code::INVALID_DEVICE)?;
        // SAFETY: the caller's.
        unsafe { set(context, CONTEXT) }?;
        lock(&TABLE).references += 1;
        Ok(())
    }

    cuDevicePrimaryCtxRelease_v2, "cuDevicePrimaryCtxRelease": fn(device: c_int) {
        is(device == DEVICE, code::INVALID_DEVICE)?;
        release();
        Ok(())
    }

    cuCtxSetCurrent, "cuCtxSetCurrent": fn(context: usize) {
        is(context == CONTEXT || context == 0, code::INVALID_CONTEXT)?;
        CURRENT.set(context);
        Ok(())
    }

    cuCtxSynchronize, "cuCtxSynchronize": fn() {
        in_context()?;
        stream::synchronize_all();
        lost().map_or(Ok(()), Err)
    }

    cuMemGetInfo_v2, "cuMemGetInfo": fn(free: *mut usize, total: *mut usize) {
        in_context()?;
        let info = memory::info();
        // SAFETY: the caller's.
        unsafe { set(free, info.0) }?;
        // SAFETY: the caller's.
        unsafe { set(total, info.1) }
    }

    cuMemAlloc_v2, "cuMemAlloc": fn(address: *mut u64, bytes: usize) {
        in_context()?;
        let allocated = memory::allocate(bytes)?;
        // SAFETY: the caller's.
        unsafe { set(address, allocated as u64) }
    }

    cuMemFree_v2, "cuMemFree": fn(address: u64) {
        in_context()?;
        memory::free(address as usize);
        Ok(())
    }

    cuMemHostRegister_v2, "cuMemHostRegister": fn(pointer: *mut c_void, bytes: usize, flags: c_uint) {
        in_context()?;
        is(flags & !(READ_ONLY | PORTABLE) == 0, code::INVALID_VALUE)?;
        // SAFETY: the caller's.
        unsafe { memory::register(pointer as usize, bytes, flags & READ_ONLY != 0) }
    }

    cuMemHostUnregister, "cuMemHostUnregister": fn(pointer: *mut c_void) {
        in_context()?;
        memory::unregister(pointer as usize)
    }

    cuMemcpyHtoDAsync_v2, "cuMemcpyHtoDAsync": fn(to: u64, from: *const c_void, bytes: usize, on: usize) {
        in_context()?;
        let on = stream::get(on)?;
        Upload::new(to, from as usize, bytes)?.submit(&on);
        Ok(())
    }

    cuMemcpyBatchAsync, "cuMemcpyBatchAsync": fn(to: *const u64, from: *const u64, bytes: *const usize, count: usize,
        attributes: *const CopyAttributes, first: *const usize, attribute_count: usize, failed: *mut usize, on: usize) {
        in_context().map_err(|_| code::INVALID_VALUE)?;
        is(on > PER_THREAD_STREAM, code::INVALID_VALUE)?;
        let on = stream::get(on)?;
        is(count > 0 && attribute_count == 1, code::INVALID_VALUE)?;
        // SAFETY: one attribute, the caller's.
        let attributes = unsafe { &*attributes };
        // SAFETY: where it begins, the caller's.
        let first = unsafe { *first };
        let known = attributes.source_order == STREAM_ORDER && attributes.flags == 0 && first == 0;
        is(known, code::INVALID_VALUE)?;
        // SAFETY: as many as `count`, the caller's.
        let to = unsafe { std::slice::from_raw_parts(to, count) };
        // SAFETY: likewise.
        let from = unsafe { std::slice::from_raw_parts(from, count) };
        // SAFETY: likewise.
        let bytes = unsafe { std::slice::from_raw_parts(bytes, count) };
        let mut uploads = Vec::new();
        for index in 0..count {
            match Upload::new(to[index], from[index] as usize, bytes[index]) {
                Ok(upload) => uploads.push(upload),
                Err(error) => {
                    // SAFETY: the caller's.
                    unsafe { set(failed, index) }?;
                    return Err(error);
                }
            }
        }
        // A batch promises no order.
        for upload in uploads.into_iter().rev() {
            upload.submit(&on);
        }
        Ok(())
    }

    cuMemcpyDtoHAsync_v2, "cuMemcpyDtoHAsync": fn(to: *mut c_void, from: u64, bytes: usize, on: usize) {
        in_context()?;
        let on = stream::get(on)?;
        let source = memory::device(from, bytes).ok_or(code::INVALID_VALUE)?;
        let destination = memory::host(to as usize, bytes);
        if destination.as_ref().is_some_and(memory::Use::is_read_only) {
            return Err(code::INVALID_VALUE);
        }
        let is_pageable = destination.is_none();
        let (from, to) = (from as usize, to as usize);
        let copy = move || {
            // SAFETY: the stream keeps the source in use until this returns, and the destination if it is page-locked;
            // if not, the call below waits.
            unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            Ok(())
        };
        let uses = [Some(source), destination].into_iter().flatten().collect();
        on.submit(Work::Device(Box::new(copy)), uses);
        if is_pageable {
            on.synchronize();
        }
        lost().map_or(Ok(()), Err)
    }

    cuMemcpyDtoDAsync_v2, "cuMemcpyDtoDAsync": fn(to: u64, from: u64, bytes: usize, on: usize) {
        in_context()?;
        let on = stream::get(on)?;
        let source = memory::device(from, bytes).ok_or(code::INVALID_VALUE)?;
        let destination = memory::device(to, bytes).ok_or(code::INVALID_VALUE)?;
        let bytes_u64 = bytes as u64;
        if from < to + bytes_u64 && to < from + bytes_u64 {
            breach(&format!("{bytes} bytes at {from:#x} are copied over themselves, to {to:#x}"));
        }
        let (from, to) = (from as usize, to as usize);
        let copy = move || {
            // SAFETY: the stream keeps both in use until this returns, and they do not overlap.
            unsafe { ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            Ok(())
        };
        on.submit(Work::Device(Box::new(copy)), vec![source, destination]);
        Ok(())
    }

    cuMemsetD8Async, "cuMemsetD8Async": fn(address: u64, byte: u8, bytes: usize, on: usize) {
        in_context()?;
        let on = stream::get(on)?;
        let destination = memory::device(address, bytes).ok_or(code::INVALID_VALUE)?;
        let address = address as usize;
        let fill = move || {
            // SAFETY: the stream keeps the destination in use until this returns.
            unsafe { ptr::write_bytes(address as *mut u8, byte, bytes) };
            Ok(())
        };
        on.submit(Work::Device(Box::new(fill)), vec![destination]);
        Ok(())
    }

    cuStreamCreate, "cuStreamCreate": fn(created: *mut usize, flags: c_uint) {
        in_context()?;
        // Others wait for the legacy default stream, which is not modelled.
        is(flags == NON_BLOCKING, code::NOT_SUPPORTED)?;
        let handle = stream::create()?;
        // SAFETY: the caller's.
        unsafe { set(created, handle) }
    }

    cuStreamDestroy_v2, "cuStreamDestroy": fn(destroyed: usize) {
        in_context()?;
        stream::destroy(destroyed);
        Ok(())
    }

    cuStreamSynchronize, "cuStreamSynchronize": fn(waited_for: usize) {
        in_context()?;
        stream::get(waited_for)?.synchronize();
        lost().map_or(Ok(()), Err)
    }

    cuStreamWaitEvent, "cuStreamWaitEvent": fn(held: usize, event: usize, flags: c_uint) {
        in_context()?;
        is(flags == 0, code::INVALID_VALUE)?;
        let held = stream::get(held)?;
        if let Some(point) = stream::last(event) {
            held.submit(Work::Wait(point), Vec::new());
        }
        Ok(())
    }

    cuEventCreate, "cuEventCreate": fn(event: *mut usize, flags: c_uint) {
        in_context()?;
        // SAFETY: the caller's.
        unsafe { set(event, stream::create_event(flags & DISABLE_TIMING == 0)) }
    }

    cuEventRecord, "cuEventRecord": fn(event: usize, on: usize) {
        in_context()?;
        stream::record(event, on)
    }

    cuEventSynchronize, "cuEventSynchronize": fn(event: usize) {
        in_context()?;
        if let Some(point) = stream::last(event) {
            point.wait();
        }
        lost().map_or(Ok(()), Err)
    }

    cuEventElapsedTime_v2, "cuEventElapsedTime": fn(milliseconds: *mut f32, from: usize, to: usize) {
        in_context()?;
        let elapsed = stream::elapsed(from, to)?;
        // SAFETY: the caller's.
        unsafe { set(milliseconds, elapsed) }
    }

    cuEventDestroy_v2, "cuEventDestroy": fn(event: usize) {
        in_context()?;
        stream::destroy_event(event);
        Ok(())
    }

    cuLaunchHostFunc, "cuLaunchHostFunc": fn(on: usize, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) {
        in_context()?;
        let function = function.ok_or(code::INVALID_VALUE)?;
        let data = data as usize;
        let work = move || {
            // SAFETY: the function is given what the caller made for it, once.
            unsafe { function(data as *mut c_void) };
        };
        stream::get(on)?.submit(Work::Host(Box::new(work)), Vec::new());
        Ok(())
    }

    cuModuleLoadData, "cuModuleLoadData": fn(module: *mut usize, image: *const c_void) {
        in_context()?;
        is(!image.is_null(), code::INVALID_VALUE)?;
        // SAFETY: PTX ends in a zero byte, says the caller.
        let text = unsafe { CStr::from_ptr(image.cast()) };
        let text = text.to_string_lossy().into_owned();
        let mut table = lock(&TABLE);
        table.next += 2;
        let handle = table.next;
        let launches = Arc::default();
        let function = handle + 1;
        table.modules.insert(handle, Module { text, function, launches });
        drop(table);
        // SAFETY: the caller's.
        unsafe { set(module, handle) }
    }

    cuModuleGetFunction, "cuModuleGetFunction": fn(function: *mut usize, module: usize, name: *const c_char) {
        in_context()?;
        // SAFETY: ends in a zero byte, says the caller.
        let name = unsafe { CStr::from_ptr(name) };
        let table = lock(&TABLE);
        let module = table.modules.get(&module).unwrap_or_else(|| breach("no module, or no more"));
        let entry = format!(".entry {}(", name.to_string_lossy());
        is(name == c"decode_block" && module.text.contains(&entry), code::NOT_FOUND)?;
        // SAFETY: the caller's.
        unsafe { set(function, module.function) }
    }

    cuModuleUnload, "cuModuleUnload": fn(module: usize) {
        in_context()?;
        let module = lock(&TABLE).modules.remove(&module);
        let module = module.unwrap_or_else(|| breach("a module is unloaded twice"));
        if Arc::strong_count(&module.launches) > 1 {
            breach("a module is unloaded under its kernel");
        }
        Ok(())
    }

    cuFuncSetAttribute, "cuFuncSetAttribute": fn(function: usize, _attribute: c_int, _value: c_int) {
        in_context()?;
        launches(function).map(drop)
    }

    cuLaunchKernel, "cuLaunchKernel": fn(
        function: usize,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        on: usize,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void
    ) {
        in_context()?;
        let launch = launches(function)?;
        let shape = [grid_y, grid_z, block_x, block_y, block_z, shared_bytes];
        is(grid_x > 0 && shape == [1, 1, kernel::THREADS, 1, 1, 0], code::INVALID_VALUE)?;
        is(!arguments.is_null() && extra.is_null(), code::INVALID_VALUE)?;
        // SAFETY: the kernel has two arguments, and the caller gives as many.
        let [first, second] = unsafe { arguments.cast::<[*mut c_void; 2]>().read() };
        // SAFETY: the first is an address.
        let table = unsafe { first.cast::<u64>().read() };
        // SAFETY: the second is a number of 32 bits.
        let entry_count = unsafe { second.cast::<u32>().read() };
        let work = move || {
            let decoded = kernel::decode_block(table, entry_count, grid_x);
            drop(launch);
            decoded
        };
        let used = memory::device(table, 1).ok_or(code::INVALID_VALUE)?;
        stream::get(on)?.submit(Work::Device(Box::new(work)), vec![used]);
        Ok(())
    }
}

/// Gives back one reference to the context. With the last one goes all that is in it.
fn release() {
    let mut table = lock(&TABLE);
    if table.references == 0 {
        breach("the context is released more often than it was retained");
    }
    table.references -= 1;
    if table.references > 0 {
        return;
    }
    drop(table);
    stream::synchronize_all();
    let left_behind = memory::live() + stream::live() + live();
    memory::clear();
    stream::clear();
    let mut table = lock(&TABLE);
    table.modules.clear();
    table.left_behind += left_behind;
}

/// What a launch of a function shares with its module.
fn launches(function: usize) -> Result<Arc<()>, Code> {
    let table = lock(&TABLE);
    let mut modules = table.modules.values();
    let module = modules.find(|module| module.function == function);
    Ok(Arc::clone(&module.ok_or(code::INVALID_HANDLE)?.launches))
}

/// `cuda.h`'s names of what is returned here or asked for by tests.
fn name_of(code: Code) -> Option<&'static CStr> {
    Some(match code {
        code::SUCCESS => c"CUDA_SUCCESS",
        code::INVALID_VALUE => c"CUDA_ERROR_INVALID_VALUE",
        code::OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        code::INVALID_DEVICE => c"CUDA_ERROR_INVALID_DEVICE",
        code::INVALID_CONTEXT => c"CUDA_ERROR_INVALID_CONTEXT",
        code::INVALID_HANDLE => c"CUDA_ERROR_INVALID_HANDLE",
        code::NOT_FOUND => c"CUDA_ERROR_NOT_FOUND",
        code::NOT_READY => c"CUDA_ERROR_NOT_READY",
        code::ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        code::HOST_MEMORY_ALREADY_REGISTERED => c"CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
        code::HOST_MEMORY_NOT_REGISTERED => c"CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
        code::LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        code::NOT_SUPPORTED => c"CUDA_ERROR_NOT_SUPPORTED",
        _ => return None,
    })
}

/// Neither counted nor failing: they tell of failures.
///
/// # Safety
/// As `cuda.h` says.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(code: c_int, text: *mut *const c_char) -> c_int {
    let name = name_of(code).map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: the caller's.
    let written = unsafe { set(text, name) };
    let known = is(!name.is_null(), code::INVALID_VALUE);
    written.and(known).err().unwrap_or(code::SUCCESS)
}

/// As [`cuGetErrorName`], whose words will do.
///
/// # Safety
/// As `cuda.h` says.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(code: c_int, text: *mut *const c_char) -> c_int {
    // SAFETY: the caller's.
    unsafe { cuGetErrorName(code, text) }
}
