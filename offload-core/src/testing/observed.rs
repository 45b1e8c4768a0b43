//! A device around a device: every call is shown to an observer first, which may refuse it.

use std::fmt::Debug;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::device::{DecodeTable, Device, DeviceError, DeviceMemory, Generation, Pinning, Rung};
use crate::source::Source;

/// A call of the [`Device`] trait that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "named after the methods")]
pub enum Call {
    Memory,
    AllocateArena { bytes: u64 },
    AllocateStaging { bytes: u64 },
    Pin { bytes: u64 },
    CreateStream,
    CreateEvent,
    Prepare { tables: u64 },
    StagingBytes,
    UploadPinned { offset: u64, bytes: u64 },
    UploadStaged { offset: u64, bytes: u64 },
    Decode,
    Record,
    Wait,
    Synchronize,
    Elapsed,
    BeginRead,
    EndRead,
}

/// Sees each call before the device does.
pub trait Observer: Clone + Debug + Send + Sync + 'static {
    /// Lets the call through, or fails it.
    ///
    /// # Errors
    /// The error that the caller gets instead.
    fn before(&self, call: Call) -> Result<(), DeviceError>;

    /// What the device is to have said of a range of a file that it was asked to pin. Default: what it does say.
    fn pin_as(&self) -> PinAs {
        PinAs::Itself
    }
}

/// An answer to the pinning of a range of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinAs {
    /// The device's own.
    Itself,
    /// The device's own, as if pinned by this way.
    Rung(Rung),
    /// That it may be asked for again.
    Later,
    /// That it is never pinned.
    Staged,
}

/// A device whose calls an [`Observer`] sees.
#[derive(Debug, Clone)]
pub struct Observed<D, O> {
    inner: D,
    observer: O,
}

impl<D: Device, O: Observer> Observed<D, O> {
    /// Puts `observer` before `inner`.
    #[must_use]
    pub fn new(inner: D, observer: O) -> Self {
        Self { inner, observer }
    }

    /// The device behind.
    #[must_use]
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The observer.
    #[must_use]
    pub fn observer(&self) -> &O {
        &self.observer
    }
}

impl<D: Device, O: Observer> Device for Observed<D, O> {
    type Stream = D::Stream;
    type Event = D::Event;
    type Arena = D::Arena;
    type Pinned = D::Pinned;
    type Staging = D::Staging;
    type Program = D::Program;
    type Hold = D::Hold;
    type View = D::View;

    fn name(&self) -> String {
        self.inner.name()
    }

    fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        self.observer.before(Call::Memory)?;
        self.inner.memory()
    }

    fn allocate_arena(&self, bytes: u64) -> Result<D::Arena, DeviceError> {
        self.observer.before(Call::AllocateArena { bytes })?;
        self.inner.allocate_arena(bytes)
    }

    fn allocate_staging(&self, bytes: usize) -> Result<D::Staging, DeviceError> {
        self.observer.before(Call::AllocateStaging {
            bytes: bytes as u64,
        })?;
        self.inner.allocate_staging(bytes)
    }

    fn pin(&self, source: &Source) -> Result<Pinning<D::Pinned>, DeviceError> {
        self.observer.before(Call::Pin {
            bytes: source.len(),
        })?;
        let Source::File { .. } = source else {
            return self.inner.pin(source);
        };
        let reason = "the observer says so".to_owned();
        Ok(match (self.observer.pin_as(), self.inner.pin(source)?) {
            (PinAs::Rung(rung), Pinning::Pinned { pinned, note, .. }) => {
                Pinning::Pinned { pinned, rung, note }
            }
            (PinAs::Itself | PinAs::Rung(_), own) => own,
            (PinAs::Later, _) => Pinning::Later { reason },
            (PinAs::Staged, _) => Pinning::Staged { reason },
        })
    }

    fn pin_bytes(&self) -> Option<NonZeroU64> {
        self.inner.pin_bytes()
    }

    fn create_stream(&self, name: &str) -> Result<D::Stream, DeviceError> {
        self.observer.before(Call::CreateStream)?;
        self.inner.create_stream(name)
    }

    fn create_event(&self) -> Result<D::Event, DeviceError> {
        self.observer.before(Call::CreateEvent)?;
        self.inner.create_event()
    }

    fn prepare(&self, arena: &D::Arena, tables: &[DecodeTable]) -> Result<D::Program, DeviceError> {
        self.observer.before(Call::Prepare {
            tables: tables.len() as u64,
        })?;
        self.inner.prepare(arena, tables)
    }

    fn staging_bytes<'a>(&self, staging: &'a mut D::Staging) -> Result<&'a mut [u8], DeviceError> {
        self.observer.before(Call::StagingBytes)?;
        self.inner.staging_bytes(staging)
    }

    fn upload_pinned(
        &self,
        stream: &D::Stream,
        arena: &D::Arena,
        offset: u64,
        pinned: &D::Pinned,
        source: Range<usize>,
    ) -> Result<(), DeviceError> {
        self.observer.before(Call::UploadPinned {
            offset,
            bytes: source.len() as u64,
        })?;
        self.inner
            .upload_pinned(stream, arena, offset, pinned, source)
    }

    fn upload_staged(
        &self,
        stream: &D::Stream,
        arena: &D::Arena,
        offset: u64,
        staging: &mut D::Staging,
        source: Range<usize>,
    ) -> Result<(), DeviceError> {
        self.observer.before(Call::UploadStaged {
            offset,
            bytes: source.len() as u64,
        })?;
        self.inner
            .upload_staged(stream, arena, offset, staging, source)
    }

    fn decode(
        &self,
        stream: &D::Stream,
        arena: &D::Arena,
        program: &D::Program,
        table: usize,
    ) -> Result<(), DeviceError> {
        self.observer.before(Call::Decode)?;
        self.inner.decode(stream, arena, program, table)
    }

    fn record(&self, stream: &D::Stream, event: &D::Event) -> Result<Generation, DeviceError> {
        self.observer.before(Call::Record)?;
        self.inner.record(stream, event)
    }

    fn wait(
        &self,
        stream: &D::Stream,
        event: &D::Event,
        generation: Generation,
    ) -> Result<(), DeviceError> {
        self.observer.before(Call::Wait)?;
        self.inner.wait(stream, event, generation)
    }

    fn synchronize(&self, event: &D::Event, generation: Generation) -> Result<(), DeviceError> {
        self.observer.before(Call::Synchronize)?;
        self.inner.synchronize(event, generation)
    }

    fn elapsed(&self, from: &D::Event, to: &D::Event) -> Result<f64, DeviceError> {
        self.observer.before(Call::Elapsed)?;
        self.inner.elapsed(from, to)
    }

    fn begin_read(
        &self,
        stream: &D::Stream,
        arena: &D::Arena,
        range: Range<u64>,
    ) -> Result<D::Hold, DeviceError> {
        self.observer.before(Call::BeginRead)?;
        self.inner.begin_read(stream, arena, range)
    }

    fn end_read(&self, stream: &D::Stream, hold: D::Hold, reused: bool) -> Result<(), DeviceError> {
        // The hold is given back whatever the observer says, or the range could never be written again.
        let verdict = self.observer.before(Call::EndRead);
        self.inner.end_read(stream, hold, reused)?;
        verdict
    }

    fn host_bytes<'a>(&self, hold: &'a D::Hold, range: Range<u64>) -> Option<&'a [u8]> {
        self.inner.host_bytes(hold, range)
    }

    fn view(&self, arena: &D::Arena, range: Range<u64>) -> D::View {
        self.inner.view(arena, range)
    }

    fn address(&self, arena: &D::Arena, offset: u64) -> u64 {
        self.inner.address(arena, offset)
    }
}

/// How often each call was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallCounts {
    /// Arenas allocated.
    pub arenas: u64,
    /// Bytes of the largest arena.
    pub largest_arena_bytes: u64,
    /// Staging buffers allocated.
    pub staging: u64,
    /// Streams and events created.
    pub handles: u64,
    /// Uploads submitted.
    pub uploads: u64,
    /// Bytes of those.
    pub upload_bytes: u64,
    /// Decodes submitted.
    pub decodes: u64,
    /// Events recorded.
    pub records: u64,
    /// Waits submitted.
    pub waits: u64,
    /// Times the host waited.
    pub synchronizes: u64,
}

/// Counts calls.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    counts: Arc<Mutex<CallCounts>>,
}

impl Recorder {
    /// A recorder that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What it has seen.
    #[must_use]
    pub fn counts(&self) -> CallCounts {
        *self.counts.lock()
    }
}

impl Observer for Recorder {
    fn before(&self, call: Call) -> Result<(), DeviceError> {
        let mut counts = self.counts.lock();
        match call {
            Call::AllocateArena { bytes } => {
                counts.arenas += 1;
                counts.largest_arena_bytes = counts.largest_arena_bytes.max(bytes);
            }
            Call::AllocateStaging { .. } => counts.staging += 1,
            Call::CreateStream | Call::CreateEvent => counts.handles += 1,
            Call::UploadPinned { bytes, .. } | Call::UploadStaged { bytes, .. } => {
                counts.uploads += 1;
                counts.upload_bytes += bytes;
            }
            Call::Decode => counts.decodes += 1,
            Call::Record => counts.records += 1,
            Call::Wait => counts.waits += 1,
            Call::Synchronize => counts.synchronizes += 1,
            Call::Memory
            | Call::Pin { .. }
            | Call::Prepare { .. }
            | Call::StagingBytes
            | Call::Elapsed
            | Call::BeginRead
            | Call::EndRead => {}
        }
        Ok(())
    }
}

/// Fails one call: the n-th of those chosen.
#[derive(Debug, Clone)]
pub struct Faults {
    chosen: fn(&Call) -> bool,
    seen: Arc<AtomicU64>,
    fail_at: Arc<AtomicU64>,
    lost: bool,
}

impl Faults {
    /// Chooses calls; none fails until [`arm`](Self::arm).
    #[must_use]
    pub fn new(chosen: fn(&Call) -> bool) -> Self {
        Self {
            chosen,
            seen: Arc::default(),
            fail_at: Arc::new(AtomicU64::new(u64::MAX)),
            lost: false,
        }
    }

    /// From the failing call on every chosen call fails: the device is lost.
    #[must_use]
    pub fn losing_the_device(self) -> Self {
        Self { lost: true, ..self }
    }

    /// Fails the chosen call number `n` from now, counting from 0.
    pub fn arm(&self, n: u64) {
        self.fail_at
            .store(self.seen().saturating_add(n), Ordering::SeqCst);
    }

    /// Fails nothing more.
    pub fn disarm(&self) {
        self.fail_at.store(u64::MAX, Ordering::SeqCst);
    }

    /// Chosen calls so far.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::SeqCst)
    }
}

impl Observer for Faults {
    fn before(&self, call: Call) -> Result<(), DeviceError> {
        if !(self.chosen)(&call) {
            return Ok(());
        }
        let index = self.seen.fetch_add(1, Ordering::SeqCst);
        let fail_at = self.fail_at.load(Ordering::SeqCst);
        if self.lost && index >= fail_at {
            return Err(DeviceError::Lost {
                reason: "injected".to_owned(),
            });
        }
        if index != fail_at {
            return Ok(());
        }
        Err(match call {
            Call::AllocateArena { bytes } | Call::AllocateStaging { bytes } => {
                DeviceError::OutOfMemory {
                    requested_bytes: bytes,
                    free_bytes: 0,
                }
            }
            _ => DeviceError::Failed {
                call: "injected",
                reason: format!("{call:?}"),
            },
        })
    }
}
