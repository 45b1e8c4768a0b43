//! The device: the [`Device`] contract on the driver's calls.

#![expect(
    unsafe_code,
    reason = "uploads to addresses, and takes streams of other libraries"
)]

use std::ffi::c_void;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use cudarc::driver::sys::CUdevice_attribute;
use offload_core::device::{
    DecodeTable, Device, DeviceError, DeviceMemory, Generation, PinnedUpload, Pinning, Rung,
};
use offload_core::host::available_bytes;
use offload_core::plan::PLACE_ALIGN;
use offload_core::source::{Source, SourceFile};
use parking_lot::Mutex;

use crate::arena::{CudaArena, CudaView};
use crate::driver::{Context, Copies, DeviceBuffer, Event, Kernel, Stream};
use crate::host::{self, CopyError, CudaStaging, Filled, Locked, Refused};
use crate::kernels::{self, ENTRY_POINT, GRANULE};
use crate::probe::{self, Unavailable};
use crate::program::CudaProgram;

/// A stream of the device: one that was made here, or an engine's.
#[derive(Debug, Clone)]
pub struct CudaStream(Arc<Stream>);

impl CudaStream {
    #[cfg(feature = "interop")]
    pub(crate) fn new(stream: Stream) -> Self {
        Self(Arc::new(stream))
    }

    /// The driver's handle, a `CUstream`.
    ///
    /// # Panics
    /// If this is the per-thread default stream of another thread.
    #[must_use]
    pub fn raw(&self) -> *mut c_void {
        self.0.raw().cast()
    }

    /// Has the driver call `work` when the stream comes to this point, on a thread of the driver's. `work` must not
    /// call CUDA.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn launch_host(&self, work: impl FnOnce() + Send + 'static) -> Result<(), DeviceError> {
        self.0.launch_host(Box::new(work))
    }

    /// Waits until everything that was submitted to the stream is done.
    ///
    /// # Errors
    /// When some of it failed or the device is lost.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.0.synchronize()
    }
}

/// A point in a stream.
#[derive(Debug)]
pub struct CudaEvent(Event);

/// Host memory from which the device copies by itself.
///
/// Dropping the last clone waits for everything that was submitted to the context.
#[derive(Debug, Clone)]
pub struct CudaPinned {
    /// One after another.
    parts: Arc<[Part]>,
}

/// A range of locked memory.
#[derive(Debug)]
struct Part {
    locked: Arc<Locked>,
    range: Range<usize>,
}

impl CudaPinned {
    fn whole(locked: Arc<Locked>, range: Range<usize>) -> Self {
        Self {
            parts: Arc::new([Part { locked, range }]),
        }
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.range.len()).sum()
    }

    /// Adds the copies of `source` to device memory at `to`.
    fn gather(
        &self,
        copies: &mut Copies,
        to: u64,
        source: &Range<usize>,
    ) -> Result<(), DeviceError> {
        assert!(
            source.end <= self.bytes(),
            "contract: upload of {source:?} from {} pinned bytes",
            self.bytes()
        );
        // Where the part begins in what was pinned.
        let mut begin = 0;
        for part in &*self.parts {
            let end = begin + part.range.len();
            let wanted = source.start.max(begin)..source.end.min(end);
            if wanted.start < wanted.end {
                let to = to + (wanted.start - source.start) as u64;
                let shift = |at: usize| at - begin + part.range.start;
                let from = shift(wanted.start)..shift(wanted.end);
                part.locked.gather(copies, to, &from)?;
            }
            begin = end;
        }
        Ok(())
    }
}

/// The right to read a range, which on this device is a matter of order only.
#[derive(Debug)]
pub struct CudaHold {
    view: CudaView,
}

/// Why there is no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// CUDA cannot be used here.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// There is no device of this number.
    #[error("there is no CUDA device {ordinal}: {devices} are there, counted from 0")]
    NoSuchDevice {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        devices: usize,
    },
    /// The device is older than the decode kernel can serve.
    #[error("{name} has compute capability {major}.{minor}, 7.5 is the least")]
    TooOld {
        /// The device.
        name: String,
        /// Major number of its compute capability.
        major: u32,
        /// Minor number of it.
        minor: u32,
    },
    /// The driver refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Sets up a [`CudaDevice`].
#[derive(Debug, Clone)]
#[must_use]
pub struct CudaDeviceBuilder {
    ordinal: usize,
    pinned_budget: Option<u64>,
    mappings: bool,
    copies: bool,
    poison: bool,
    jitter: Option<u64>,
}

impl CudaDeviceBuilder {
    /// Bytes of host memory that may be page-locked, staging buffers and mapped files included. Default: three quarters
    /// of what is available when the device is opened (see [`available_bytes`](offload_core::host::available_bytes)):
    /// locked pages, also those of the page cache, cannot be given up when memory runs short.
    pub fn pinned_budget(mut self, bytes: u64) -> Self {
        self.pinned_budget = Some(bytes);
        self
    }

    /// Whether files are page-locked where they lie in the page cache. Default: yes, where driver and file system
    /// allow.
    pub fn lock_mappings(mut self, lock: bool) -> Self {
        self.mappings = lock;
        self
    }

    /// Whether files that cannot be locked in place are copied to page-locked memory. Default: yes.
    pub fn copy_files(mut self, copy: bool) -> Self {
        self.copies = copy;
        self
    }

    /// Overwrites ranges with 0xFF when they are released, so that late readers see garbage. Default: off.
    pub fn poison(mut self, poison: bool) -> Self {
        self.poison = poison;
        self
    }

    /// Delays uploads, decodes and releases at random, so that a missing wait shows. Default: off.
    pub fn jitter(mut self, seed: u64) -> Self {
        self.jitter = Some(seed);
        self
    }

    /// Opens the device: makes its context, and loads the decode kernel.
    ///
    /// # Errors
    /// When there is no such device, or the driver refuses.
    pub fn build(self) -> Result<CudaDevice, OpenError> {
        let driver = probe::probe()?;
        let Some(info) = driver.devices.get(self.ordinal) else {
            return Err(OpenError::NoSuchDevice {
                ordinal: self.ordinal,
                devices: driver.devices.len(),
            });
        };
        let (major, minor) = info.compute_capability;
        let ptx = kernels::ptx(major, minor).ok_or_else(|| OpenError::TooOld {
            name: info.name.clone(),
            major,
            minor,
        })?;
        let pinned_budget = self.pinned_budget.unwrap_or_else(|| {
            // Where the system does not say, it refuses by itself.
            available_bytes().map_or(u64::MAX, |bytes| bytes / 4 * 3)
        });
        let context = Context::new(self.ordinal, pinned_budget)?;
        let kernel = Arc::new(Kernel::load(&context, ptx, ENTRY_POINT)?);
        let read_only = context
            .attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED)?
            != 0;
        let name = info.name.clone();
        Ok(CudaDevice(Arc::new(Inner {
            name,
            context,
            kernel,
            read_only,
            jitter: self.jitter.map(AtomicU64::new),
            options: self,
            regions: Mutex::default(),
            files: Mutex::default(),
        })))
    }
}

#[derive(Debug)]
struct Inner {
    name: String,
    context: Arc<Context>,
    kernel: Arc<Kernel>,
    /// Whether the driver locks memory that may only be read.
    read_only: bool,
    options: CudaDeviceBuilder,
    jitter: Option<AtomicU64>,
    /// Memory from [`CudaDevice::allocate_pinned`].
    regions: Mutex<Vec<Weak<Locked>>>,
    /// Files that were mapped.
    files: Mutex<Vec<MappedFile>>,
}

/// A file, as long as it is open, and its mapping.
#[derive(Debug)]
struct MappedFile {
    file: Weak<SourceFile>,
    /// Or why it is never asked for again.
    mapping: Result<Weak<Locked>, String>,
}

/// One NVIDIA GPU. Clones name the same device.
#[derive(Debug, Clone)]
pub struct CudaDevice(Arc<Inner>);

impl CudaDevice {
    /// Opens the device that CUDA counts as `ordinal`, from 0, with default settings.
    ///
    /// # Errors
    /// As [`CudaDeviceBuilder::build`].
    pub fn new(ordinal: usize) -> Result<Self, OpenError> {
        Self::builder(ordinal).build()
    }

    /// Begins a device with other settings.
    pub fn builder(ordinal: usize) -> CudaDeviceBuilder {
        CudaDeviceBuilder {
            ordinal,
            pinned_budget: None,
            mappings: true,
            copies: true,
            poison: false,
            jitter: None,
        }
    }

    #[cfg(feature = "interop")]
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0.context
    }

    /// A stream that another library made, to compute on.
    ///
    /// The legacy default stream (null or 1) waits for every blocking stream of the context, ours are not blocking. The
    /// per-thread default stream (2) belongs to the calling thread: passes over it stay on that thread, or panic.
    ///
    /// # Safety
    /// `raw` is a `CUstream` of this device's primary context, or one of the default streams, and lives as long as the
    /// returned stream, its clones and what they submitted.
    #[must_use]
    pub unsafe fn stream_from_raw(&self, raw: *mut c_void) -> CudaStream {
        // SAFETY: what this function asks for.
        CudaStream(Arc::new(unsafe {
            Stream::borrowed(&self.0.context, raw.cast(), None)
        }))
    }

    /// Page-locked host memory of `bytes` bytes, written by `fill`. Sources made of it, or of slices of it, are
    /// uploaded in place.
    ///
    /// Freed with the last clone of the returned bytes, which waits for everything that was submitted to the context.
    ///
    /// # Errors
    /// When host memory or the budget for pinned memory is short.
    pub fn allocate_pinned(
        &self,
        bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Bytes, DeviceError> {
        let locked = host::locked_memory(&self.0.context, bytes, |memory| {
            fill(memory);
            Ok::<_, DeviceError>(())
        })?;
        let locked = Arc::new(locked);
        let mut regions = self.0.regions.lock();
        regions.retain(|region| region.strong_count() > 0);
        regions.push(Arc::downgrade(&locked));
        Ok(Bytes::from_owner(Filled(locked)).slice(..bytes))
    }

    /// Waits until everything that was submitted to the device's context is done, whoever submitted it.
    ///
    /// # Errors
    /// When some of it failed or the device is lost.
    pub fn synchronize(&self) -> Result<(), DeviceError> {
        self.0.context.synchronize()
    }

    /// Host memory that is page-locked now, in bytes.
    #[must_use]
    pub fn pinned_bytes(&self) -> u64 {
        self.0.context.live.pinned_bytes()
    }

    /// Handles that are alive: allocations, streams, events, mappings.
    #[must_use]
    pub fn live_handles(&self) -> u64 {
        self.0.context.live.handles()
    }

    /// Copies one range of device memory to the beginning of another, on `stream`.
    ///
    /// # Errors
    /// When the driver refuses.
    ///
    /// # Panics
    /// When the destination is shorter.
    pub fn copy(
        &self,
        stream: &CudaStream,
        to: &CudaView,
        from: &CudaView,
    ) -> Result<(), DeviceError> {
        let (to, from) = (to.buffer.range(&to.range), from.buffer.range(&from.range));
        stream.0.copy(&to, &from)
    }

    /// Reads device memory, on `stream`. Waits for the stream.
    ///
    /// # Errors
    /// When the driver refuses or the device is lost.
    pub fn read(&self, stream: &CudaStream, view: &CudaView) -> Result<Vec<u8>, DeviceError> {
        stream.0.read(&view.buffer.range(&view.range))
    }

    /// With jitter: lets the stream sleep up to 200 us, every other time.
    fn jitter(&self, stream: &CudaStream) -> Result<(), DeviceError> {
        let Some(state) = &self.0.jitter else {
            return Ok(());
        };
        // Steps of Knuth's MMIX generator; the upper bits are the random ones.
        let step = |state: u64| {
            state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407)
        };
        let last = state
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
                Some(step(state))
            })
            .unwrap_or_else(|state| state);
        let random = step(last) >> 33;
        if random.is_multiple_of(2) {
            return Ok(());
        }
        let delay = Duration::from_micros(random / 2 % 200);
        stream.launch_host(move || std::thread::sleep(delay))
    }

    fn pin_memory(&self, bytes: &Bytes) -> Pinning<CudaPinned> {
        let regions = self.0.regions.lock();
        let found = regions.iter().filter_map(Weak::upgrade).find_map(|locked| {
            let start = Filled::position(&locked, bytes)?;
            Some(CudaPinned::whole(locked, start..start + bytes.len()))
        });
        match found {
            Some(pinned) => Pinning::Pinned {
                pinned,
                rung: Rung::Memory,
                note: None,
            },
            None => Pinning::Staged {
                reason: "memory that the device did not allocate is not page-locked".to_owned(),
            },
        }
    }

    /// The mapping of a file, made when it is first asked for.
    fn mapping(&self, file: &Arc<SourceFile>) -> Result<Arc<Locked>, Refused> {
        let inner = &*self.0;
        if !inner.options.mappings {
            return Err(Refused::Always(
                "locking mappings is switched off".to_owned(),
            ));
        }
        if !inner.read_only {
            return Err(Refused::Always(
                "the driver does not lock memory that may only be read".to_owned(),
            ));
        }
        let mut files = inner.files.lock();
        files.retain(|known| known.file.strong_count() > 0);
        let index = files
            .iter()
            .position(|known| known.file.as_ptr() == Arc::as_ptr(file));
        match index.map(|index| &files[index].mapping) {
            Some(Ok(mapping)) => {
                if let Some(mapping) = mapping.upgrade() {
                    return Ok(mapping);
                }
            }
            Some(Err(reason)) => return Err(Refused::Always(reason.clone())),
            None => {}
        }
        let mapping = Arc::new(Locked::file(&inner.context, file)?);
        let known = MappedFile {
            file: Arc::downgrade(file),
            mapping: Ok(Arc::downgrade(&mapping)),
        };
        match index {
            Some(index) => files[index] = known,
            None => files.push(known),
        }
        Ok(mapping)
    }

    /// Has no more of a file's mapping locked. What is locked stays.
    fn refuse_mapping(&self, file: &Arc<SourceFile>, reason: &str) {
        for known in &mut *self.0.files.lock() {
            if known.file.as_ptr() == Arc::as_ptr(file) {
                known.mapping = Err(reason.to_owned());
            }
        }
    }

    /// Locks a range of a file's mapping. Ends that are too short to be copied from there are copied now.
    fn map_file(
        &self,
        file: &Arc<SourceFile>,
        range: &Range<usize>,
    ) -> Result<CudaPinned, Refused> {
        let mapped = self.mapping(file)?;
        let middle = mapped.copyable(range);
        if !middle.is_empty()
            && let Err(refused) = mapped.lock(&middle)
        {
            if let Refused::Always(reason) = &refused {
                self.refuse_mapping(file, reason);
            }
            return Err(refused);
        }
        let copy = |range: Range<usize>| -> Result<Option<Part>, Refused> {
            if range.is_empty() {
                return Ok(None);
            }
            let file_range = range.start as u64..range.end as u64;
            let locked = host::locked_copy(&self.0.context, file, &file_range);
            let locked = locked.map_err(|error| match error {
                CopyError::Device(DeviceError::OutOfMemory { free_bytes, .. }) => Refused::Short {
                    reason: format!("no memory for a copy of bytes {range:?}: {error}"),
                    free_bytes,
                },
                CopyError::Device(error) => Refused::Device(error),
                CopyError::Source(error) => Refused::Now(error.to_string()),
            })?;
            Ok(Some(Part {
                locked: Arc::new(locked),
                range: 0..range.len(),
            }))
        };
        let head = copy(range.start..middle.start)?;
        let tail = copy(middle.end..range.end)?;
        let middle = (!middle.is_empty()).then_some(Part {
            locked: mapped,
            range: middle,
        });
        let parts = [head, middle, tail].into_iter().flatten().collect();
        Ok(CudaPinned { parts })
    }

    fn pin_file(
        &self,
        file: &Arc<SourceFile>,
        range: &Range<u64>,
    ) -> Result<Pinning<CudaPinned>, DeviceError> {
        let position = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
        let span = position(range.start)..position(range.end);
        let mapping = match self.map_file(file, &span) {
            Ok(pinned) => {
                return Ok(Pinning::Pinned {
                    pinned,
                    rung: Rung::Mapping,
                    note: None,
                });
            }
            Err(Refused::Device(error)) => return Err(error),
            Err(Refused::Now(reason) | Refused::Short { reason, .. }) => {
                return Ok(Pinning::Later { reason });
            }
            Err(Refused::Always(reason)) => reason,
        };
        if !self.0.options.copies {
            let reason = format!("{mapping}; copying files is switched off");
            return Ok(Pinning::Staged { reason });
        }
        match host::locked_copy(&self.0.context, file, range) {
            Ok(locked) => {
                let pinned = CudaPinned::whole(Arc::new(locked), 0..span.len());
                Ok(Pinning::Pinned {
                    pinned,
                    rung: Rung::Copy,
                    note: Some(format!("{mapping}; it was copied")),
                })
            }
            Err(CopyError::Device(error @ DeviceError::Lost { .. })) => Err(error),
            Err(error) => Ok(Pinning::Later {
                reason: format!("{mapping}; copying it: {error}"),
            }),
        }
    }
}

impl Device for CudaDevice {
    type Stream = CudaStream;
    type Event = CudaEvent;
    type Arena = CudaArena;
    type Pinned = CudaPinned;
    type Staging = CudaStaging;
    type Program = CudaProgram;
    type Hold = CudaHold;
    type View = CudaView;

    fn name(&self) -> String {
        self.0.name.clone()
    }

    fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        self.0.context.memory()
    }

    fn allocate_arena(&self, bytes: u64) -> Result<CudaArena, DeviceError> {
        let refused = |free_bytes| DeviceError::OutOfMemory {
            requested_bytes: bytes,
            free_bytes,
        };
        let Some(rounded) = bytes.checked_next_multiple_of(PLACE_ALIGN.max(GRANULE)) else {
            return Err(refused(self.memory()?.free_bytes));
        };
        match DeviceBuffer::new(&self.0.context, rounded) {
            Ok(buffer) => Ok(CudaArena::new(buffer, bytes)),
            Err(DeviceError::OutOfMemory { free_bytes, .. }) => Err(refused(free_bytes)),
            Err(error) => Err(error),
        }
    }

    fn allocate_staging(&self, bytes: usize) -> Result<CudaStaging, DeviceError> {
        CudaStaging::new(&self.0.context, bytes)
    }

    fn pin(&self, source: &Source) -> Result<Pinning<CudaPinned>, DeviceError> {
        match source {
            Source::Memory { .. } => Ok(self.pin_memory(&source.bytes().expect("in memory"))),
            Source::File { file, range } => self.pin_file(file, range),
            Source::Described { .. } => Ok(Pinning::Staged {
                reason: "it is described, not there".to_owned(),
            }),
        }
    }

    fn pin_bytes(&self) -> Option<NonZeroU64> {
        let options = &self.0.options;
        let pins = options.copies || (options.mappings && self.0.read_only);
        NonZeroU64::new(host::FILE_CUT as u64).filter(|_| pins)
    }

    fn create_stream(&self, _name: &str) -> Result<CudaStream, DeviceError> {
        Ok(CudaStream(Arc::new(Stream::new(&self.0.context)?)))
    }

    fn create_event(&self) -> Result<CudaEvent, DeviceError> {
        Ok(CudaEvent(Event::new(&self.0.context)?))
    }

    fn prepare(
        &self,
        arena: &CudaArena,
        tables: &[DecodeTable],
    ) -> Result<CudaProgram, DeviceError> {
        CudaProgram::new(&self.0.context, &self.0.kernel, arena, tables)
    }

    fn staging_bytes<'a>(&self, staging: &'a mut CudaStaging) -> Result<&'a mut [u8], DeviceError> {
        staging.bytes_mut()
    }

    fn upload_pinned(
        &self,
        stream: &CudaStream,
        arena: &CudaArena,
        offset: u64,
        pinned: &CudaPinned,
        source: Range<usize>,
    ) -> Result<(), DeviceError> {
        let upload = PinnedUpload {
            offset,
            pinned,
            source,
        };
        self.upload_all_pinned(stream, arena, std::iter::once(upload))
    }

    fn upload_all_pinned<'a>(
        &self,
        stream: &CudaStream,
        arena: &CudaArena,
        mut uploads: impl Iterator<Item = PinnedUpload<'a, CudaPinned>>,
    ) -> Result<(), DeviceError> {
        self.jitter(stream)?;
        let gather = |copies: &mut Copies| {
            uploads.try_for_each(|upload| {
                arena.check(upload.offset, upload.source.len());
                let to = arena.address(upload.offset);
                upload.pinned.gather(copies, to, &upload.source)
            })
        };
        // SAFETY: the destinations were checked, and the arena is freed only after everything submitted is done. Each
        // source lies in one piece, which stays locked until then. Pinned memory is written by nobody in this process;
        // that others may write to a file is between them and the reader. That destinations are clear of one another is
        // the caller's part; else what lies there is either's, within the arena.
        unsafe { stream.0.upload(gather) }
    }

    fn upload_staged(
        &self,
        stream: &CudaStream,
        arena: &CudaArena,
        offset: u64,
        staging: &mut CudaStaging,
        source: Range<usize>,
    ) -> Result<(), DeviceError> {
        arena.check(offset, source.len());
        self.jitter(stream)?;
        // SAFETY: the destination was checked, and the arena is freed only after everything submitted is done.
        unsafe { staging.upload(&stream.0, arena.address(offset), &source) }
    }

    fn decode(
        &self,
        stream: &CudaStream,
        arena: &CudaArena,
        program: &CudaProgram,
        table: usize,
    ) -> Result<(), DeviceError> {
        self.jitter(stream)?;
        program.run(&stream.0, arena, table)
    }

    fn record(&self, stream: &CudaStream, event: &CudaEvent) -> Result<Generation, DeviceError> {
        event.0.record(&stream.0).map(Generation)
    }

    fn wait(
        &self,
        stream: &CudaStream,
        event: &CudaEvent,
        generation: Generation,
    ) -> Result<(), DeviceError> {
        event.0.hold(&stream.0, generation.0)
    }

    fn synchronize(&self, event: &CudaEvent, generation: Generation) -> Result<(), DeviceError> {
        event.0.synchronize(generation.0)
    }

    fn elapsed(&self, from: &CudaEvent, to: &CudaEvent) -> Result<f64, DeviceError> {
        from.0.seconds_to(&to.0)
    }

    fn begin_read(
        &self,
        _stream: &CudaStream,
        arena: &CudaArena,
        range: Range<u64>,
    ) -> Result<CudaHold, DeviceError> {
        Ok(CudaHold {
            view: self.view(arena, range),
        })
    }

    fn end_read(
        &self,
        stream: &CudaStream,
        hold: CudaHold,
        reused: bool,
    ) -> Result<(), DeviceError> {
        self.jitter(stream)?;
        if self.0.options.poison && reused {
            let view = &hold.view;
            stream.0.fill(&view.buffer.range(&view.range), 0xFF)?;
        }
        Ok(())
    }

    fn host_bytes<'a>(&self, _hold: &'a CudaHold, _range: Range<u64>) -> Option<&'a [u8]> {
        None
    }

    fn view(&self, arena: &CudaArena, range: Range<u64>) -> CudaView {
        arena.check(
            range.start,
            usize::try_from(range.end - range.start).unwrap_or(usize::MAX),
        );
        CudaView {
            buffer: arena.buffer.clone(),
            range,
        }
    }

    fn address(&self, arena: &CudaArena, offset: u64) -> u64 {
        arena.address(offset)
    }
}
