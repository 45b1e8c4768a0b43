//! The CPU device: the asynchronous reference that every backend is held to.
//!
//! Really asynchronous: each stream is a thread of its own, so a missing fence is a race here as it is on a GPU, and
//! the arena's interval table turns the race into a panic. Its times prove nothing about speed.

mod arena;
mod shared;
mod stream;
mod transfer;

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

pub use arena::{CpuHold, CpuView};
pub use shared::LiveCounts;
pub use stream::{CpuEvent, CpuStream};
use transfer::zeroed;
pub use transfer::{CpuPinned, CpuStaging};

use crate::device::{DecodeTable, Device, DeviceError, DeviceMemory, Generation, Pinning, Rung};
use crate::source::Source;
use arena::Memory;
use shared::{Options, Shared};
use stream::Operation;

/// A device made of threads and memory.
#[derive(Debug, Clone)]
pub struct CpuDevice {
    shared: Arc<Shared>,
}

/// Sets up a [`CpuDevice`].
#[derive(Debug, Clone)]
#[must_use]
pub struct CpuDeviceBuilder {
    options: Options,
}

impl CpuDeviceBuilder {
    /// Bytes that arenas may take together. Default: no limit but the machine's.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.options.memory_bytes = bytes;
        self
    }

    /// Whether host memory is read in place (the default) or has to be staged.
    pub fn pins(mut self, pins: bool) -> Self {
        self.options.pins = pins;
        self
    }

    /// Whether [`pin`](Device::pin) copies ranges of files to memory. Default: no, they are staged.
    pub fn copies_files(mut self, copies: bool) -> Self {
        self.options.copies_files = copies;
        self
    }

    /// Bytes of a file that are copied at a time. Default: no limit.
    pub fn pin_bytes(mut self, bytes: NonZeroU64) -> Self {
        self.options.pin_bytes = bytes;
        self
    }

    /// Overwrites ranges when they are released, so that late readers see garbage. Default: off.
    pub fn poison(mut self, poison: bool) -> Self {
        self.options.poison = poison;
        self
    }

    /// Delays operations of queued streams at random. Default: off.
    pub fn jitter(mut self, seed: u64) -> Self {
        self.options.jitter = Some(seed);
        self
    }

    /// The device.
    #[must_use]
    pub fn build(self) -> CpuDevice {
        CpuDevice {
            shared: Shared::new(self.options),
        }
    }
}

impl CpuDevice {
    /// A device with default settings.
    #[must_use]
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// Begins a device with other settings.
    pub fn builder() -> CpuDeviceBuilder {
        let options = Options {
            memory_bytes: u64::MAX,
            pins: true,
            copies_files: false,
            pin_bytes: NonZeroU64::MAX,
            poison: false,
            jitter: None,
        };
        CpuDeviceBuilder { options }
    }

    /// A stream whose operations run on the caller's thread. Waits block there; leases over it give bytes.
    #[must_use]
    pub fn inline_stream(&self) -> CpuStream {
        CpuStream::inline(&self.shared)
    }

    /// Handles that are alive.
    #[must_use]
    pub fn live(&self) -> LiveCounts {
        self.shared.live()
    }
}

impl Default for CpuDevice {
    fn default() -> Self {
        Self::new()
    }
}

/// An arena of the CPU device.
#[derive(Debug)]
pub struct CpuArena {
    memory: Arc<Memory>,
}

/// Decode tables of the CPU device.
#[derive(Debug)]
pub struct CpuProgram {
    /// A decode keeps a clone until it ran.
    tables: Arc<Vec<DecodeTable>>,
}

fn check_upload(arena: &CpuArena, offset: u64, len: usize) {
    let bytes = arena.memory.bytes();
    assert!(
        offset
            .checked_add(len as u64)
            .is_some_and(|end| end <= bytes),
        "contract: upload of {len} bytes to {offset} of an arena of {bytes} bytes"
    );
}

impl Device for CpuDevice {
    type Stream = CpuStream;
    type Event = CpuEvent;
    type Arena = CpuArena;
    type Pinned = CpuPinned;
    type Staging = CpuStaging;
    type Program = CpuProgram;
    type Hold = CpuHold;
    type View = CpuView;

    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn memory(&self) -> Result<DeviceMemory, DeviceError> {
        self.shared.check()?;
        let used = u64::try_from(self.shared.live().arena_bytes).unwrap_or(0);
        let total_bytes = self.shared.options.memory_bytes;
        Ok(DeviceMemory {
            free_bytes: total_bytes.saturating_sub(used),
            total_bytes,
        })
    }

    fn allocate_arena(&self, bytes: u64) -> Result<CpuArena, DeviceError> {
        let free_bytes = self.memory()?.free_bytes;
        let refused = DeviceError::OutOfMemory {
            requested_bytes: bytes,
            free_bytes,
        };
        let signed = i64::try_from(bytes).map_err(|_| refused.clone())?;
        if bytes > free_bytes {
            return Err(refused);
        }
        let shared = Arc::clone(&self.shared);
        let memory = Memory::new(bytes, move |_| {
            shared.counts.arenas.fetch_sub(1, Ordering::Relaxed);
            shared
                .counts
                .arena_bytes
                .fetch_sub(signed, Ordering::Relaxed);
        })
        .ok_or(refused)?;
        self.shared.counts.arenas.fetch_add(1, Ordering::Relaxed);
        self.shared
            .counts
            .arena_bytes
            .fetch_add(signed, Ordering::Relaxed);
        Ok(CpuArena { memory })
    }

    fn allocate_staging(&self, bytes: usize) -> Result<CpuStaging, DeviceError> {
        self.shared.check()?;
        CpuStaging::new(&self.shared, bytes)
    }

    fn pin(&self, source: &Source) -> Result<Pinning<CpuPinned>, DeviceError> {
        self.shared.check()?;
        let options = &self.shared.options;
        let (bytes, rung) = match (source.bytes(), source) {
            (Some(bytes), _) if options.pins => (bytes, Rung::Memory),
            (_, Source::File { .. }) if options.copies_files => {
                let mut copy = zeroed(usize::try_from(source.len()).unwrap_or(usize::MAX))?;
                match source.read(0, &mut copy) {
                    Ok(()) => (Bytes::from(copy), Rung::Copy),
                    Err(error) => {
                        let reason = error.to_string();
                        return Ok(Pinning::Later { reason });
                    }
                }
            }
            _ => {
                let reason = "this device was told to stage it".to_owned();
                return Ok(Pinning::Staged { reason });
            }
        };
        let pinned = CpuPinned::new(&self.shared, bytes);
        Ok(Pinning::Pinned {
            pinned,
            rung,
            note: None,
        })
    }

    fn pin_bytes(&self) -> Option<NonZeroU64> {
        let options = &self.shared.options;
        Some(options.pin_bytes).filter(|_| options.copies_files)
    }

    fn create_stream(&self, name: &str) -> Result<CpuStream, DeviceError> {
        self.shared.check()?;
        CpuStream::queued(&self.shared, name)
    }

    fn create_event(&self) -> Result<CpuEvent, DeviceError> {
        self.shared.check()?;
        Ok(CpuEvent::new(&self.shared))
    }

    fn prepare(&self, arena: &CpuArena, tables: &[DecodeTable]) -> Result<CpuProgram, DeviceError> {
        self.shared.check()?;
        transfer::check_tables(tables, arena.memory.bytes())?;
        Ok(CpuProgram {
            tables: Arc::new(tables.to_vec()),
        })
    }

    fn staging_bytes<'a>(&self, staging: &'a mut CpuStaging) -> Result<&'a mut [u8], DeviceError> {
        staging.reclaim(&self.shared).map(|buffer| &mut **buffer)
    }

    fn upload_pinned(
        &self,
        stream: &CpuStream,
        arena: &CpuArena,
        offset: u64,
        pinned: &CpuPinned,
        source: Range<usize>,
    ) -> Result<(), DeviceError> {
        check_upload(arena, offset, source.len());
        assert!(
            source.end <= pinned.bytes.len(),
            "contract: upload of {source:?} from {} pinned bytes",
            pinned.bytes.len()
        );
        let memory = Arc::clone(&arena.memory);
        stream.submit(Operation::UploadPinned {
            memory,
            offset,
            pinned: pinned.clone(),
            source,
        })
    }

    fn upload_staged(
        &self,
        stream: &CpuStream,
        arena: &CpuArena,
        offset: u64,
        staging: &mut CpuStaging,
        source: Range<usize>,
    ) -> Result<(), DeviceError> {
        check_upload(arena, offset, source.len());
        staging.reclaim(&self.shared)?;
        let buffer = staging.take(&source);
        let (memory, slot) = (Arc::clone(&arena.memory), Arc::clone(&staging.slot));
        stream.submit(Operation::UploadStaged {
            memory,
            offset,
            slot,
            buffer,
            source,
        })
    }

    fn decode(
        &self,
        stream: &CpuStream,
        arena: &CpuArena,
        program: &CpuProgram,
        table: usize,
    ) -> Result<(), DeviceError> {
        let tables = &program.tables;
        assert!(
            table < tables.len(),
            "contract: table {table} of a program of {}",
            tables.len()
        );
        let (memory, tables) = (Arc::clone(&arena.memory), Arc::clone(tables));
        stream.submit(Operation::Decode {
            memory,
            tables,
            table,
        })
    }

    fn record(&self, stream: &CpuStream, event: &CpuEvent) -> Result<Generation, DeviceError> {
        self.shared.check()?;
        let generation = event.next_generation();
        stream.submit(Operation::Record {
            event: Arc::clone(&event.state),
            generation,
        })?;
        Ok(generation)
    }

    fn wait(
        &self,
        stream: &CpuStream,
        event: &CpuEvent,
        generation: Generation,
    ) -> Result<(), DeviceError> {
        let generation = event.last_recording(generation);
        stream.submit(Operation::Wait {
            event: Arc::clone(&event.state),
            generation,
        })
    }

    fn synchronize(&self, event: &CpuEvent, generation: Generation) -> Result<(), DeviceError> {
        let generation = event.last_recording(generation);
        self.shared
            .wait_until(|| event.state.passed.load(Ordering::Acquire) >= generation.0)
    }

    fn elapsed(&self, from: &CpuEvent, to: &CpuEvent) -> Result<f64, DeviceError> {
        let at = |event: &CpuEvent| {
            event.state.at.lock().ok_or_else(|| DeviceError::Failed {
                call: "elapsed",
                reason: "the event was not passed yet".to_owned(),
            })
        };
        let (from, to) = (at(from)?, at(to)?);
        Ok(match to.checked_duration_since(from) {
            Some(forward) => forward.as_secs_f64(),
            None => -from.duration_since(to).as_secs_f64(),
        })
    }

    fn begin_read(
        &self,
        stream: &CpuStream,
        arena: &CpuArena,
        range: Range<u64>,
    ) -> Result<CpuHold, DeviceError> {
        let memory = Arc::clone(&arena.memory);
        let id = memory.next_id();
        stream.submit(Operation::BeginRead {
            memory: Arc::clone(&memory),
            id,
            range: range.clone(),
        })?;
        Ok(CpuHold {
            memory,
            id,
            range,
            inline: stream.is_inline(),
        })
    }

    fn end_read(&self, stream: &CpuStream, hold: CpuHold, reused: bool) -> Result<(), DeviceError> {
        let CpuHold {
            memory, id, range, ..
        } = hold;
        stream.submit(Operation::EndRead {
            memory,
            id,
            range,
            reused,
        })
    }

    fn host_bytes<'a>(&self, hold: &'a CpuHold, range: Range<u64>) -> Option<&'a [u8]> {
        hold.bytes(range)
    }

    fn view(&self, arena: &CpuArena, range: Range<u64>) -> CpuView {
        CpuView {
            memory: Arc::clone(&arena.memory),
            range,
        }
    }

    fn address(&self, arena: &CpuArena, offset: u64) -> u64 {
        arena.memory.base() + offset
    }
}
