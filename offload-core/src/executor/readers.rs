//! Threads that read sources into staging buffers, several at a time, and give them back in the order asked for.
//!
//! A buffer comes back here with its copy to the device still under way: the reader that fills it next waits for that,
//! and the oldest copy is taken first.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::device::{Device, DeviceError};
use crate::executor::error::OffloadError;
use crate::executor::mapped::Mappings;
use crate::executor::transfer::Transfer;
use crate::source::{DIRECT_ALIGN, Source, SourceError};

/// Buffers between the readers and the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StagingBuffers {
    /// How many, with a reader for each up to the number of processors and 12. Default: 16, so that as many readers as
    /// it takes to keep up with the wire are busy while others are copied.
    pub count: usize,
    /// Bytes of each. Default: 8 MiB, where uploads one after another reach the rate of the wire.
    pub bytes: usize,
}

impl Default for StagingBuffers {
    fn default() -> Self {
        Self {
            count: 16,
            bytes: 8 << 20,
        }
    }
}

/// More do not read faster from the page cache.
const READERS: usize = 12;

/// Makes the buffers on several threads: most of the time is the system's, which zeroes pages.
fn allocate<D: Device>(
    device: &D,
    count: usize,
    bytes: usize,
    threads: usize,
) -> Result<Vec<D::Staging>, DeviceError> {
    let share = |thread: usize| (thread..count).step_by(threads);
    let make = |thread: usize| -> Result<Vec<D::Staging>, DeviceError> {
        share(thread)
            .map(|_| device.allocate_staging(bytes))
            .collect()
    };
    std::thread::scope(|scope| {
        let mut others = Vec::new();
        // This thread's share, and what the system makes no thread for.
        let mut own = vec![0];
        for thread in 1..threads {
            let work = move || make(thread);
            match std::thread::Builder::new().spawn_scoped(scope, work) {
                Ok(other) => others.push(other),
                Err(_) => own.push(thread),
            }
        }
        let made: Result<Vec<_>, _> = own.into_iter().map(make).collect();
        let mut buffers = made.map(|made| made.into_iter().flatten().collect::<Vec<_>>());
        for other in others {
            // A panic of the device is the caller's.
            let made = other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            buffers = buffers.and_then(|mut buffers| {
                buffers.append(&mut made?);
                Ok(buffers)
            });
        }
        buffers
    })
}

/// What fits a staging buffer.
pub(super) struct Piece {
    /// Nothing is read for an epoch that has ended.
    pub(super) epoch: u64,
    pub(super) source: Source,
    /// Where in the source it begins.
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) past_cache: bool,
}

pub(super) enum ReadError {
    Source(SourceError),
    Device(DeviceError),
    Panic(String),
}

impl ReadError {
    /// What it means for the block that was read.
    pub(super) fn of_block(self, block: &str) -> OffloadError {
        match self {
            Self::Source(source) => OffloadError::Source {
                block: block.to_owned(),
                source,
            },
            Self::Device(error) => OffloadError::of_block(block, error),
            Self::Panic(message) => OffloadError::WorkerPanicked { message },
        }
    }
}

struct Wanted<D: Device> {
    ordinal: u64,
    piece: Piece,
    staging: D::Staging,
}

struct Filled<D: Device> {
    ordinal: u64,
    staging: D::Staging,
    /// Where in `staging` the bytes begin.
    result: Result<usize, ReadError>,
}

/// Staging buffers and the threads that fill them. Dropping it ends and joins the threads.
pub(super) struct Readers<D: Device> {
    wanted: Option<Sender<Wanted<D>>>,
    filled: Receiver<Filled<D>>,
    /// Longest idle first.
    idle: VecDeque<D::Staging>,
    buffer_bytes: usize,
    /// Pieces asked for, and pieces given back.
    started: u64,
    finished: u64,
    /// Pieces that were filled before their turn.
    early: Vec<Filled<D>>,
    threads: Vec<JoinHandle<()>>,
}

impl<D: Device> Readers<D> {
    /// # Errors
    /// When the device refuses a buffer, or the system a thread.
    pub(super) fn start(
        transfer: &Arc<Transfer<D>>,
        buffers: StagingBuffers,
        mappings: &Arc<Mappings>,
    ) -> Result<Self, OffloadError> {
        let StagingBuffers { count, bytes } = buffers;
        let parallelism = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = count.min(parallelism).min(READERS);
        let idle = allocate(&transfer.device, count, bytes, threads)?;
        let (wanted, to_read) = bounded(count);
        let (filled, from_threads) = bounded(count);
        let mut readers = Self {
            wanted: Some(wanted),
            filled: from_threads,
            idle: idle.into(),
            buffer_bytes: bytes,
            started: 0,
            finished: 0,
            early: Vec::new(),
            threads: Vec::new(),
        };
        for _ in 0..threads {
            let (transfer, mappings) = (Arc::clone(transfer), Arc::clone(mappings));
            let (to_read, filled) = (to_read.clone(), filled.clone());
            let work = move || read(&transfer, &mappings, &to_read, &filled);
            readers.threads.push(spawn("offload-read", work)?);
        }
        Ok(readers)
    }

    /// Whether a buffer is idle.
    pub(super) fn are_free(&self) -> bool {
        !self.idle.is_empty()
    }

    /// How much of `left` bytes is one piece.
    pub(super) fn piece_len(&self, left: u64, past_cache: bool) -> usize {
        let room = match past_cache {
            true => self.buffer_bytes - 3 * DIRECT_ALIGN,
            false => self.buffer_bytes,
        };
        usize::try_from(left).unwrap_or(usize::MAX).min(room)
    }

    /// Begins to read a piece.
    ///
    /// # Panics
    /// When no buffer is idle.
    pub(super) fn read(&mut self, piece: Piece) {
        let wanted = Wanted {
            ordinal: self.started,
            piece,
            staging: self.idle.pop_front().expect("a buffer is idle"),
        };
        self.started += 1;
        let sender = self.wanted.as_ref().expect("open until it is dropped");
        assert!(sender.send(wanted).is_ok(), "the readers are gone");
    }

    /// Whether the oldest piece is read.
    pub(super) fn is_next_filled(&mut self) -> bool {
        self.early.extend(self.filled.try_iter());
        (self.early.iter()).any(|early| early.ordinal == self.finished)
    }

    /// Waits until a piece is read. If it is the oldest: its buffer, and where in it the bytes begin.
    pub(super) fn next(&mut self) -> Option<(D::Staging, Result<usize, ReadError>)> {
        let early = self.early.iter();
        let position = early
            .map(|early| early.ordinal)
            .position(|ordinal| ordinal == self.finished);
        let filled = match position {
            Some(position) => self.early.swap_remove(position),
            None => self
                .filled
                .recv()
                .expect("the threads outlive their handle"),
        };
        if filled.ordinal != self.finished {
            self.early.push(filled);
            return None;
        }
        self.finished += 1;
        Some((filled.staging, filled.result))
    }

    /// Gives a buffer back, with its copy to the device possibly under way.
    pub(super) fn give_back(&mut self, staging: D::Staging) {
        self.idle.push_back(staging);
    }
}

impl<D: Device> Drop for Readers<D> {
    fn drop(&mut self) {
        self.wanted = None;
        for thread in self.threads.drain(..) {
            // Panics were caught on the thread and reported.
            let _ = thread.join();
        }
    }
}

fn read<D: Device>(
    transfer: &Transfer<D>,
    mappings: &Mappings,
    wanted: &Receiver<Wanted<D>>,
    filled: &Sender<Filled<D>>,
) {
    while let Ok(Wanted {
        ordinal,
        piece,
        mut staging,
    }) = wanted.recv()
    {
        let fill = || {
            if piece.epoch != transfer.epoch.load(Ordering::Acquire) {
                return Ok(0);
            }
            let device = &transfer.device;
            let bytes = device
                .staging_bytes(&mut staging)
                .map_err(ReadError::Device)?;
            let read = if piece.past_cache {
                piece.source.read_direct(piece.offset, piece.len, bytes)
            } else {
                let buffer = &mut bytes[..piece.len];
                mappings
                    .read(&piece.source, piece.offset, buffer)
                    .map(|()| 0)
            };
            read.map_err(ReadError::Source)
        };
        let result = catch_unwind(AssertUnwindSafe(fill))
            .unwrap_or_else(|panic| Err(ReadError::Panic(message_of(&*panic))));
        if filled
            .send(Filled {
                ordinal,
                staging,
                result,
            })
            .is_err()
        {
            return;
        }
    }
}

pub(super) fn spawn(
    name: &str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, OffloadError> {
    let thread = std::thread::Builder::new().name(name.to_owned());
    thread.spawn(work).map_err(|error| {
        OffloadError::Device(DeviceError::Failed {
            call: "spawn",
            reason: error.to_string(),
        })
    })
}

pub(super) fn message_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_else(|| "no message".to_owned())
}
