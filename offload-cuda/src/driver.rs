//! The driver calls that the device makes, as owners of what they allocate.
//!
//! Every `unsafe` of a submission is here or in `host.rs`. What a call may touch and until when is written at the call;
//! what the caller has to keep alive until the device is done is the `# Safety` of the few functions that are unsafe.

#![expect(
    unsafe_code,
    reason = "calls the CUDA driver, whose functions are all unsafe"
)]

use std::any::Any;
use std::ffi::{CString, c_void};
use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;

use cudarc::driver::DriverError;
use cudarc::driver::sys::{
    self, CUcontext, CUdevice_attribute, CUdeviceptr, CUevent, CUevent_flags, CUfunction,
    CUfunction_attribute, CUmemcpyAttributes, CUmemcpySrcAccessOrder, CUmodule, CUresult, CUstream,
    CUstream_flags,
};
use offload_core::device::{DeviceError, DeviceMemory};
use parking_lot::Mutex;

use crate::driver_library::{self, CopyBatch};
use crate::live::{Count, Live, Reservation};

/// The handle of the legacy default stream, which waits for all blocking streams.
const LEGACY_STREAM: usize = 1;

/// The handle of the calling thread's own default stream.
const PER_THREAD_STREAM: usize = 2;

/// Results after which nothing can be done with the context any more.
const FATAL: [CUresult; 18] = [
    CUresult::CUDA_ERROR_DEINITIALIZED,
    CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE,
    CUresult::CUDA_ERROR_NO_DEVICE,
    CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
    CUresult::CUDA_ERROR_NVLINK_UNCORRECTABLE,
    CUresult::CUDA_ERROR_INVALID_CONTEXT,
    CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED,
    CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
    CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
    CUresult::CUDA_ERROR_ASSERT,
    CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
    CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
    CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
    CUresult::CUDA_ERROR_INVALID_ADDRESS_SPACE,
    CUresult::CUDA_ERROR_INVALID_PC,
    CUresult::CUDA_ERROR_LAUNCH_FAILED,
    CUresult::CUDA_ERROR_EXTERNAL_DEVICE,
    CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
];

/// What the driver calls a result.
fn describe(result: CUresult) -> String {
    let name = DriverError(result)
        .error_name()
        .ok()
        .map(|name| name.to_string_lossy().into_owned());
    format!(
        "{} ({})",
        result as i32,
        name.as_deref().unwrap_or("an error without a name")
    )
}

/// Calls once more if it failed. A drop has nobody to tell, and a driver may return what went wrong elsewhere.
pub(crate) fn insist(call: impl Fn() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
    match call() {
        Err(DeviceError::Failed { .. }) => call(),
        result => result,
    }
}

/// The device's primary context, which every other user of CUDA in this process shares.
pub(crate) struct Context {
    raw: CUcontext,
    device: sys::CUdevice,
    /// What happened when the device was lost.
    lost: OnceLock<String>,
    /// Submits many copies at once.
    copy_batch: Option<CopyBatch>,
    pub(crate) live: Arc<Live>,
}

// SAFETY: a context handle may be made current on any thread.
unsafe impl Send for Context {}
// SAFETY: the driver serialises calls on one context by itself.
unsafe impl Sync for Context {}

impl Context {
    /// The driver's number of the device.
    #[cfg(feature = "interop")]
    pub(crate) fn device(&self) -> sys::CUdevice {
        self.device
    }

    /// Retains the primary context of device `ordinal`. The driver was probed and has such a device.
    pub(crate) fn new(ordinal: usize, pinned_budget: u64) -> Result<Arc<Self>, DeviceError> {
        let failed = |call, result| match result {
            CUresult::CUDA_SUCCESS => Ok(()),
            result => Err(DeviceError::Failed {
                call,
                reason: describe(result),
            }),
        };
        let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
        let (mut device, mut raw) = (0, ptr::null_mut());
        // SAFETY: writes the handle to a live local.
        failed("cuDeviceGet", unsafe {
            sys::cuDeviceGet(&raw mut device, ordinal)
        })?;
        // SAFETY: as above; the context is released in `drop`.
        failed("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&raw mut raw, device)
        })?;
        Ok(Arc::new(Self {
            raw,
            device,
            lost: OnceLock::new(),
            copy_batch: driver_library::copy_batch(),
            live: Arc::new(Live::new(pinned_budget)),
        }))
    }

    /// Makes the context current on this thread.
    pub(crate) fn enter(&self) -> Result<(), DeviceError> {
        if let Some(reason) = self.lost.get() {
            let reason = reason.clone();
            return Err(DeviceError::Lost { reason });
        }
        // SAFETY: the context is retained as long as `self` lives.
        self.check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })
    }

    /// Makes a submission. It finds its context by its stream; only the default streams, and a thread that has no context
    /// at all, need it to be made current first.
    fn submit(
        &self,
        call: &'static str,
        stream: &Stream,
        submission: impl Fn() -> CUresult,
    ) -> Result<(), DeviceError> {
        if self.lost.get().is_some() || stream.is_default() {
            self.enter()?;
        }
        let mut result = submission();
        if result == CUresult::CUDA_ERROR_INVALID_CONTEXT {
            self.enter()?;
            result = submission();
        }
        self.check(call, result)
    }

    /// Makes a result an error. The first fatal one marks the device as lost.
    pub(crate) fn check(&self, call: &'static str, result: CUresult) -> Result<(), DeviceError> {
        if result == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        let reason = describe(result);
        if FATAL.contains(&result) {
            let reason = self.lost.get_or_init(|| format!("{call}: {reason}"));
            return Err(DeviceError::Lost {
                reason: reason.clone(),
            });
        }
        Err(DeviceError::Failed { call, reason })
    }

    pub(crate) fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two live locals.
        self.check("cuMemGetInfo", unsafe {
            sys::cuMemGetInfo_v2(&raw mut free, &raw mut total)
        })?;
        Ok(DeviceMemory {
            free_bytes: free as u64,
            total_bytes: total as u64,
        })
    }

    pub(crate) fn attribute(&self, attribute: CUdevice_attribute) -> Result<i32, DeviceError> {
        let mut value = 0;
        // SAFETY: writes a live local.
        self.check("cuDeviceGetAttribute", unsafe {
            sys::cuDeviceGetAttribute(&raw mut value, attribute, self.device)
        })?;
        Ok(value)
    }

    /// Waits for everything that was submitted to the context.
    pub(crate) fn synchronize(&self) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: no pointers; the context is current.
        self.check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained in `new`, once. Nothing of ours is left in it: every handle keeps its context.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("device", &self.device)
            .field("lost", &self.lost.get())
            .finish_non_exhaustive()
    }
}

/// Copies from host to device memory, gathered to be submitted together, in any order.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    // Side by side, as the driver takes them.
    to: Vec<CUdeviceptr>,
    from: Vec<CUdeviceptr>,
    bytes: Vec<usize>,
}

impl Copies {
    pub(crate) fn push(&mut self, to: CUdeviceptr, from: *const u8, bytes: usize) {
        self.to.push(to);
        self.from.push(from as CUdeviceptr);
        self.bytes.push(bytes);
    }

    fn clear(&mut self) {
        self.to.clear();
        self.from.clear();
        self.bytes.clear();
    }
}

/// A stream that was made here, or an engine's.
pub(crate) struct Stream {
    context: Arc<Context>,
    raw: CUstream,
    /// What was uploaded last, kept for the memory of its lists.
    copies: Mutex<Copies>,
    /// Destroyed when dropped; `None` for an engine's.
    owned: Option<Count>,
    /// The one thread that a per-thread default stream belongs to.
    thread: Option<ThreadId>,
    /// What keeps an engine's stream alive.
    _keeper: Option<Arc<dyn Any + Send + Sync>>,
}

// SAFETY: stream handles may be used from any thread; for the per-thread default stream `raw` checks the thread.
unsafe impl Send for Stream {}
// SAFETY: the driver serialises calls on one stream by itself.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        context.enter()?;
        let mut raw = ptr::null_mut();
        // Beside the legacy default stream, which an engine may use, not behind it.
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes the handle to a live local; it is destroyed in `drop`.
        context.check("cuStreamCreate", unsafe {
            sys::cuStreamCreate(&raw mut raw, flags)
        })?;
        Ok(Self {
            owned: Some(Count::new(&context.live)),
            context: Arc::clone(context),
            raw,
            copies: Mutex::default(),
            thread: None,
            _keeper: None,
        })
    }

    /// # Safety
    /// `raw` is a stream of the context, or a default stream, and lives as long as this and what is submitted to it, or
    /// as `keeper`.
    pub(crate) unsafe fn borrowed(
        context: &Arc<Context>,
        raw: CUstream,
        keeper: Option<Arc<dyn Any + Send + Sync>>,
    ) -> Self {
        let per_thread = raw as usize == PER_THREAD_STREAM;
        Self {
            context: Arc::clone(context),
            raw,
            copies: Mutex::default(),
            owned: None,
            thread: per_thread.then(|| std::thread::current().id()),
            _keeper: keeper,
        }
    }

    /// Whether the handle means another stream in every context.
    fn is_default(&self) -> bool {
        (self.raw as usize) <= PER_THREAD_STREAM
    }

    /// The handle, to be used by this thread.
    pub(crate) fn raw(&self) -> CUstream {
        assert!(
            self.thread
                .is_none_or(|thread| thread == std::thread::current().id()),
            "contract: the per-thread default stream of another thread"
        );
        self.raw
    }

    pub(crate) fn synchronize(&self) -> Result<(), DeviceError> {
        self.context.enter()?;
        // SAFETY: the stream lives as long as `self`.
        self.context.check("cuStreamSynchronize", unsafe {
            sys::cuStreamSynchronize(self.raw())
        })
    }

    /// Submits the copies that `gather` adds, in one call where the driver can. If it fails, some may be under way.
    ///
    /// # Safety
    /// Of each copy: the source is readable and page-locked as one range, the destination is device memory, both of as
    /// many bytes, and both stay so until the stream is past this point. Nobody writes to the source until then. None of
    /// the copies writes where another does.
    pub(crate) unsafe fn upload(
        &self,
        gather: impl FnOnce(&mut Copies) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let copies = &mut *self.copies.lock();
        copies.clear();
        gather(copies)?;
        match self.context.copy_batch {
            // Batches are not for the default streams.
            Some(batch) if copies.to.len() > 1 && !self.is_default() => {
                // SAFETY: what this function asks for.
                unsafe { self.upload_batch(batch, copies) }
            }
            _ => {
                let copies = copies.to.iter().zip(&copies.from).zip(&copies.bytes);
                for ((&to, &from), &bytes) in copies {
                    self.context.submit("cuMemcpyHtoDAsync", self, || {
                        let from = from as *const c_void;
                        // SAFETY: what this function asks for.
                        unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes, self.raw()) }
                    })?;
                }
                Ok(())
            }
        }
    }

    /// # Safety
    /// As [`upload`](Self::upload).
    unsafe fn upload_batch(
        &self,
        batch: CopyBatch,
        copies: &mut Copies,
    ) -> Result<(), DeviceError> {
        // SAFETY: numbers, and enumerations of which zero is a variant. Zero are the hints where memory lies, which is told
        // by its addresses, and no flags.
        let mut attributes: CUmemcpyAttributes = unsafe { std::mem::zeroed() };
        attributes.srcAccessOrder = CUmemcpySrcAccessOrder::CU_MEMCPY_SRC_ACCESS_ORDER_STREAM;
        let attributes = &raw mut attributes;
        // From which copy on the attributes hold.
        let (mut first, mut failed) = (0, 0);
        let (first, failed) = (&raw mut first, &raw mut failed);
        let count = copies.to.len();
        let to = copies.to.as_mut_ptr();
        let from = copies.from.as_mut_ptr();
        let bytes = copies.bytes.as_mut_ptr();
        // Unlike other submissions it is refused, as invalid, on a thread that has no context.
        self.context.enter()?;
        self.context.submit("cuMemcpyBatchAsync", self, || {
            // SAFETY: three lists of `count` and one attribute, which are read before the call returns; it writes to
            // `failed`, which lives. The copies are as `upload` asks for, and ordered with the stream.
            unsafe {
                batch(
                    to,
                    from,
                    bytes,
                    count,
                    attributes,
                    first,
                    1,
                    failed,
                    self.raw(),
                )
            }
        })
    }

    /// Copies `from` to the beginning of `to`, both clear of one another; the arenas are kept alive by their own rule.
    pub(crate) fn copy(&self, to: &DeviceRange, from: &DeviceRange) -> Result<(), DeviceError> {
        assert!(
            from.bytes <= to.bytes,
            "contract: {} bytes are copied to {}",
            from.bytes,
            to.bytes
        );
        self.context.enter()?;
        // SAFETY: both ranges lie in allocations that are freed only after everything submitted is done.
        self.context.check("cuMemcpyDtoDAsync", unsafe {
            sys::cuMemcpyDtoDAsync_v2(to.address, from.address, from.bytes, self.raw())
        })
    }

    pub(crate) fn fill(&self, range: &DeviceRange, byte: u8) -> Result<(), DeviceError> {
        self.context.enter()?;
        // SAFETY: as for `copy`.
        self.context.check("cuMemsetD8Async", unsafe {
            sys::cuMemsetD8Async(range.address, byte, range.bytes, self.raw())
        })
    }

    /// Reads device memory. Waits for the stream.
    pub(crate) fn read(&self, range: &DeviceRange) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0u8; range.bytes];
        if bytes.is_empty() {
            self.synchronize()?;
            return Ok(bytes);
        }
        self.context.enter()?;
        // SAFETY: `bytes` is as long as the range, and lives until the stream was waited for just below. If that fails
        // the device is lost or the copy failed, and it will not write any more.
        self.context.check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(
                bytes.as_mut_ptr().cast(),
                range.address,
                bytes.len(),
                self.raw(),
            )
        })?;
        self.synchronize()?;
        Ok(bytes)
    }

    /// Has the driver call `work` on a thread of its own when the stream comes to this point. `work` must not call
    /// CUDA.
    pub(crate) fn launch_host(&self, work: Box<dyn FnOnce() + Send>) -> Result<(), DeviceError> {
        unsafe extern "C" fn call(work: *mut c_void) {
            // SAFETY: the pointer made below, which the driver hands over once.
            let work = unsafe { Box::from_raw(work.cast::<Box<dyn FnOnce() + Send>>()) };
            // A panic must not reach the driver.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        }
        self.context.enter()?;
        let work = Box::into_raw(Box::new(work));
        // SAFETY: `call` takes what `work` points to, once.
        let result = unsafe { sys::cuLaunchHostFunc(self.raw(), Some(call), work.cast()) };
        let submitted = self.context.check("cuLaunchHostFunc", result);
        if submitted.is_err() {
            // SAFETY: refused, so `call` never runs and the pointer is still ours.
            drop(unsafe { Box::from_raw(work) });
        }
        submitted
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned.is_some() && insist(|| self.context.enter()).is_ok() {
            // SAFETY: made in `new`, destroyed once; work still under way goes on.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.raw as usize {
            0 | LEGACY_STREAM => "default",
            PER_THREAD_STREAM => "per-thread default",
            _ if self.owned.is_some() => "own",
            _ => "borrowed",
        };
        f.debug_tuple("Stream").field(&name).finish()
    }
}

/// A point of a stream, and how often it was recorded.
pub(crate) struct Event {
    context: Arc<Context>,
    raw: CUevent,
    recorded: AtomicU64,
    _count: Count,
}

// SAFETY: event handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: the driver serialises calls on one event by itself.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, DeviceError> {
        context.enter()?;
        let mut raw = ptr::null_mut();
        // It takes times, and who waits for it on the host sleeps: workers must not spin.
        let flags = CUevent_flags::CU_EVENT_BLOCKING_SYNC as u32;
        // SAFETY: writes the handle to a live local; it is destroyed in `drop`.
        context.check("cuEventCreate", unsafe {
            sys::cuEventCreate(&raw mut raw, flags)
        })?;
        Ok(Self {
            context: Arc::clone(context),
            raw,
            recorded: AtomicU64::new(0),
            _count: Count::new(&context.live),
        })
    }

    pub(crate) fn record(&self, stream: &Stream) -> Result<u64, DeviceError> {
        self.context.submit("cuEventRecord", stream, || {
            // SAFETY: both handles live as long as their owners.
            unsafe { sys::cuEventRecord(self.raw, stream.raw()) }
        })?;
        Ok(self.recorded.fetch_add(1, Ordering::AcqRel) + 1)
    }

    fn expect_recorded(&self, generation: u64) {
        let recorded = self.recorded.load(Ordering::Acquire);
        assert!(
            generation > 0 && generation <= recorded,
            "contract: recording {generation} of an event that was recorded {recorded} times"
        );
    }

    /// Holds `stream` until the last recording, which is `generation` or a later one.
    pub(crate) fn hold(&self, stream: &Stream, generation: u64) -> Result<(), DeviceError> {
        self.expect_recorded(generation);
        self.context.submit("cuStreamWaitEvent", stream, || {
            // SAFETY: both handles live as long as their owners; the wait outlives the event by the driver's own rule.
            unsafe { sys::cuStreamWaitEvent(stream.raw(), self.raw, 0) }
        })
    }

    /// Waits on the host for the last recording, which is `generation` or a later one.
    pub(crate) fn synchronize(&self, generation: u64) -> Result<(), DeviceError> {
        self.expect_recorded(generation);
        self.context.enter()?;
        // SAFETY: the handle lives as long as `self`.
        self.context.check("cuEventSynchronize", unsafe {
            sys::cuEventSynchronize(self.raw)
        })
    }

    /// Seconds from this event to another.
    pub(crate) fn seconds_to(&self, to: &Self) -> Result<f64, DeviceError> {
        self.context.enter()?;
        let mut milliseconds = 0.0f32;
        // SAFETY: both handles live; writes a live local.
        self.context.check("cuEventElapsedTime", unsafe {
            sys::cuEventElapsedTime_v2(&raw mut milliseconds, self.raw, to.raw)
        })?;
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if insist(|| self.context.enter()).is_ok() {
            // SAFETY: made in `new`, destroyed once. The driver keeps what still waits for it.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("recorded", &self.recorded.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// Device memory. Freed when the last clone is dropped and everything submitted to the context is done.
#[derive(Clone)]
pub(crate) struct DeviceBuffer(Arc<Allocation>);

struct Allocation {
    context: Arc<Context>,
    address: CUdeviceptr,
    bytes: u64,
    _count: Count,
}

impl DeviceBuffer {
    pub(crate) fn new(context: &Arc<Context>, bytes: u64) -> Result<Self, DeviceError> {
        context.enter()?;
        let mut address = 0;
        // The driver refuses to allocate nothing.
        let size = usize::try_from(bytes).unwrap_or(usize::MAX).max(1);
        // SAFETY: writes the address to a live local; it is freed in `drop`.
        match unsafe { sys::cuMemAlloc_v2(&raw mut address, size) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY | CUresult::CUDA_ERROR_INVALID_VALUE => {
                return Err(DeviceError::OutOfMemory {
                    requested_bytes: bytes,
                    free_bytes: context.memory()?.free_bytes,
                });
            }
            result => context.check("cuMemAlloc", result)?,
        }
        Ok(Self(Arc::new(Allocation {
            _count: Count::new(&context.live),
            context: Arc::clone(context),
            address,
            bytes,
        })))
    }

    pub(crate) fn address(&self) -> CUdeviceptr {
        self.0.address
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// A range of it, as the driver's calls want it.
    pub(crate) fn range(&self, range: &Range<u64>) -> DeviceRange {
        assert!(
            range.start <= range.end && range.end <= self.bytes(),
            "contract: bytes {range:?} of a device allocation of {}",
            self.bytes()
        );
        DeviceRange {
            address: self.address() + range.start,
            bytes: usize::try_from(range.end - range.start).expect("device memory fits usize"),
        }
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // Whatever reads or writes it has to end first. If the device is lost, nothing does any more, and the driver
        // frees the memory with the context.
        if insist(|| self.context.synchronize()).is_ok() {
            // SAFETY: allocated in `new`, freed once; the context is current since `synchronize`.
            let _ = unsafe { sys::cuMemFree_v2(self.address) };
        }
    }
}

impl fmt::Debug for DeviceBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceBuffer")
            .field("address", &format_args!("{:#x}", self.address()))
            .field("bytes", &self.bytes())
            .finish()
    }
}

/// A range of a [`DeviceBuffer`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct DeviceRange {
    pub(crate) address: CUdeviceptr,
    pub(crate) bytes: usize,
}

/// A kernel, with the module that holds it.
pub(crate) struct Kernel {
    context: Arc<Context>,
    module: CUmodule,
    function: CUfunction,
}

// SAFETY: module and function handles may be used from any thread.
unsafe impl Send for Kernel {}
// SAFETY: the driver serialises calls by itself.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// Loads `ptx` now: a lazy load would hold the context's lock until the device is idle.
    pub(crate) fn load(context: &Arc<Context>, ptx: &str, name: &str) -> Result<Self, DeviceError> {
        context.enter()?;
        let ptx = CString::new(ptx).expect("PTX has no zero bytes");
        let name = CString::new(name).expect("names have no zero bytes");
        let mut module = ptr::null_mut();
        // SAFETY: `ptx` ends in a zero byte and lives until the call returns.
        context.check("cuModuleLoadData", unsafe {
            sys::cuModuleLoadData(&raw mut module, ptx.as_ptr().cast())
        })?;
        let mut kernel = Self {
            context: Arc::clone(context),
            module,
            function: ptr::null_mut(),
        };
        // SAFETY: the module was just loaded; `name` ends in a zero byte.
        context.check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&raw mut kernel.function, module, name.as_ptr())
        })?;
        let carveout = CUfunction_attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        // SAFETY: the function was just found. 100 % of what the SM has.
        context.check("cuFuncSetAttribute", unsafe {
            sys::cuFuncSetAttribute(kernel.function, carveout, 100)
        })?;
        Ok(kernel)
    }

    /// Launches the decode kernel with a table of `entry_count` entries.
    ///
    /// # Safety
    /// The table lies at `table`, every range that it names is device memory of the sizes that its conversions take,
    /// and all this stays so until the stream is past this point.
    pub(crate) unsafe fn launch(
        &self,
        stream: &Stream,
        blocks: u32,
        threads: u32,
        table: CUdeviceptr,
        entry_count: u32,
    ) -> Result<(), DeviceError> {
        let (mut table, mut entry_count) = (table, entry_count);
        let mut arguments: [*mut c_void; 2] =
            [(&raw mut table).cast(), (&raw mut entry_count).cast()];
        let arguments = arguments.as_mut_ptr();
        self.context.submit("cuLaunchKernel", stream, || {
            // SAFETY: the arguments are those of the kernel (`kernels::ENTRY_POINT`) and are copied before the call
            // returns; the rest is what this function asks for.
            unsafe {
                sys::cuLaunchKernel(
                    self.function,
                    blocks,
                    1,
                    1,
                    threads,
                    1,
                    1,
                    0,
                    stream.raw(),
                    arguments,
                    ptr::null_mut(),
                )
            }
        })
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if insist(|| self.context.enter()).is_ok() {
            // SAFETY: loaded in `load`, unloaded once, when no device is left that launches it.
            let _ = unsafe { sys::cuModuleUnload(self.module) };
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

/// Host memory that the driver has page-locked.
pub(crate) struct Registration {
    context: Arc<Context>,
    pointer: *mut c_void,
    _reserved: Reservation,
}

// SAFETY: the driver's registrations belong to the process, not to a thread.
unsafe impl Send for Registration {}
// SAFETY: nothing is changed through a shared reference.
unsafe impl Sync for Registration {}

impl Registration {
    /// # Safety
    /// As many bytes as are `reserved` are mapped at `pointer` until the registration is dropped, and the device only
    /// reads them if `read_only`.
    pub(crate) unsafe fn new(
        context: &Arc<Context>,
        pointer: *mut c_void,
        reserved: Reservation,
        read_only: bool,
    ) -> Result<Self, DeviceError> {
        const PORTABLE: u32 = 1;
        const READ_ONLY: u32 = 8;
        context.enter()?;
        let flags = if read_only {
            PORTABLE | READ_ONLY
        } else {
            PORTABLE
        };
        // SAFETY: the memory is mapped, as asked for.
        let result = unsafe { sys::cuMemHostRegister_v2(pointer, reserved.bytes(), flags) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(DeviceError::OutOfMemory {
                requested_bytes: reserved.bytes() as u64,
                // How much the system would lock it does not say.
                free_bytes: 0,
            });
        }
        context.check("cuMemHostRegister", result)?;
        Ok(Self {
            context: Arc::clone(context),
            pointer,
            _reserved: reserved,
        })
    }
}

impl Drop for Registration {
    /// The caller has waited for every copy.
    fn drop(&mut self) {
        if insist(|| self.context.enter()).is_ok() {
            // SAFETY: registered in `new`, and still mapped.
            let _ = unsafe { sys::cuMemHostUnregister(self.pointer) };
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").finish_non_exhaustive()
    }
}
