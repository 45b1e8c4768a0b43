//! The `Device` contract: what a backend gives to the executor. No implementation, no policy.

use std::fmt::Debug;
use std::num::NonZeroU64;
use std::ops::Range;

use crate::decode::Scale;
use crate::encoding::Encoding;
use crate::plan::Place;
use crate::source::Source;

/// Why a device refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// An allocation does not fit. Everything stays usable.
    #[error("out of memory: {requested_bytes} bytes asked for, {free_bytes} free")]
    OutOfMemory {
        /// Bytes asked for.
        requested_bytes: u64,
        /// Bytes that were free.
        free_bytes: u64,
    },
    /// The device is gone. Nothing can be done with it any more.
    #[error("device lost: {reason}")]
    Lost {
        /// What the driver said.
        reason: String,
    },
    /// The device cannot do what was asked, now or later.
    #[error("unsupported: {reason}")]
    Unsupported {
        /// What, and why.
        reason: String,
    },
    /// A call failed; others may still succeed.
    #[error("{call} failed: {reason}")]
    Failed {
        /// The call.
        call: &'static str,
        /// What the driver said.
        reason: String,
    },
}

/// Memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Bytes that an allocation could take now.
    pub free_bytes: u64,
    /// Bytes there are.
    pub total_bytes: u64,
}

/// Which recording of an event is meant: the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub u64);

/// How one tensor is decoded.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeEntry {
    /// How it is stored.
    pub encoding: Encoding,
    /// What it becomes. Equal to `encoding`: the bytes are copied.
    pub arrived: Encoding,
    /// What its numbers are multiplied with, as [`decode_scaled`](crate::decode::decode_scaled) does. The device keeps
    /// the factors with its program; they are not part of the arena.
    pub scale: Option<Scale>,
    /// Where the encoded bytes lie in the arena.
    pub encoded: Place,
    /// Where the arrived bytes go in the arena.
    pub place: Place,
}

/// What one decode operation does: a block's tensors.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DecodeTable {
    /// Tensors, in any order; their places do not overlap.
    pub entries: Vec<DecodeEntry>,
    /// The staging that is free once the operation is done.
    pub staging: Option<Place>,
}

/// How a device reads a source in place: the rungs of the ladder of host memory that need no staging buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rung {
    /// Memory that was page-locked already, or needs no locking.
    Memory,
    /// The file's mapping, page-locked where it lies in the page cache: no second image in RAM.
    Mapping,
    /// A page-locked copy of the file's range.
    Copy,
}

/// What became of an attempt to pin a source.
#[derive(Debug, Clone)]
pub enum Pinning<P> {
    /// The device reads it in place from now on.
    Pinned {
        /// The handle to upload from.
        pinned: P,
        /// How.
        rung: Rung,
        /// Why no better way was taken, for people, if one was tried.
        note: Option<String>,
    },
    /// Not now; asking again may help.
    Later {
        /// Why, for people.
        reason: String,
    },
    /// It has to be staged, always.
    Staged {
        /// Why, for people.
        reason: String,
    },
}

impl<P> Pinning<P> {
    /// The handle, if it was pinned.
    pub fn pinned(self) -> Option<P> {
        match self {
            Self::Pinned { pinned, .. } => Some(pinned),
            Self::Later { .. } | Self::Staged { .. } => None,
        }
    }
}

/// A copy from pinned memory to the arena.
#[derive(Debug)]
pub struct PinnedUpload<'a, P> {
    /// Where in the arena it goes, in bytes.
    pub offset: u64,
    /// What it comes from.
    pub pinned: &'a P,
    /// Which bytes of that.
    pub source: Range<usize>,
}

/// A backend: memory, streams, events and copies.
///
/// Handles belong to the device that made them. Handing one to another device is a breach of contract.
///
/// # Contract
///
/// Each bullet is checked by [`testing::conformance`](crate::testing::conformance).
///
/// - A stream is an ordered queue: its operations run one after another, in the order of submission. Operations of
///   different streams run in any order unless events order them.
/// - [`record`](Self::record) marks a point of a stream; [`wait`](Self::wait) holds a stream until that point was
///   passed. `wait` takes the event's last recording at the time of the call; recording again later changes nothing
///   for waits already submitted.
/// - *Submission*: an operation is submitted only after all its predecessors were submitted. Waiting for a generation
///   that was not recorded yet is a breach of contract.
/// - Uploads and decodes take effect in the order of their stream, and never write outside their destination.
/// - An upload owns its source: pinned memory stays alive, and a staging buffer can be neither refilled nor freed,
///   until the copy is done, whatever the caller drops or forgets.
/// - Memory of an arena is freed once the arena was dropped and everything submitted on it is done. Arena contents are
///   undefined until written.
/// - Dropping an arena, a program, a staging buffer or pinned memory is allowed at any time. The drop may wait for what
///   was submitted with it.
/// - An arena begins at a multiple of [`PLACE_ALIGN`](crate::plan::PLACE_ALIGN) bytes on the device. One of 0 bytes is
///   made and dropped like any other, and uploads of 0 bytes to it succeed.
/// - An allocation that does not fit is [`DeviceError::OutOfMemory`] and leaves everything else usable.
/// - Within submission ([`upload_pinned`](Self::upload_pinned), [`upload_all_pinned`](Self::upload_all_pinned),
///   [`upload_staged`](Self::upload_staged), [`decode`](Self::decode), [`record`](Self::record),
///   [`wait`](Self::wait)) the host never waits for the device, except that a stream which runs on the caller's thread
///   runs there.
pub trait Device: Clone + Debug + Send + Sync + 'static {
    /// An ordered queue of work. Clones name the same queue.
    type Stream: Clone + Debug + Send + Sync + 'static;
    /// A point in a stream that others can wait for. Dropping one is always allowed.
    type Event: Debug + Send + Sync + 'static;
    /// The one allocation of device memory.
    type Arena: Debug + Send + Sync + 'static;
    /// Host memory from which the device copies by itself. Clones name the same memory.
    type Pinned: Clone + Debug + Send + Sync + 'static;
    /// A host buffer that is filled, uploaded from, and filled again.
    type Staging: Debug + Send + 'static;
    /// Decode tables made ready.
    type Program: Debug + Send + Sync + 'static;
    /// The right to read a range of the arena, from a point of a stream to another.
    type Hold: Debug + Send + Sync + 'static;
    /// Names a range of the arena to code that runs on the device.
    type View: Clone + Debug + Send + Sync + 'static;

    /// What the device is, for people.
    fn name(&self) -> String;

    /// Its memory.
    ///
    /// # Errors
    /// When the device does not answer.
    fn memory(&self) -> Result<DeviceMemory, DeviceError>;

    /// Allocates the arena. One of 0 bytes can be made: a plan in which nothing has bytes needs it.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], or a lost device.
    fn allocate_arena(&self, bytes: u64) -> Result<Self::Arena, DeviceError>;

    /// Allocates a staging buffer of `bytes` page-locked bytes.
    ///
    /// # Errors
    /// When host memory or the right to lock it is short.
    fn allocate_staging(&self, bytes: usize) -> Result<Self::Staging, DeviceError>;

    /// Makes a source readable by the device in place, or says why it has to be staged.
    ///
    /// May take long: it may lock or copy as much memory as the source is long. Called from any thread.
    ///
    /// # Errors
    /// When the device does not answer.
    fn pin(&self, source: &Source) -> Result<Pinning<Self::Pinned>, DeviceError>;

    /// Bytes of a file that [`pin`](Self::pin) pins best at a time; `None` where it pins no files, as far as is known
    /// without trying. Uploads from files that are to be pinned are cut at multiples of it in the file. Answers at once.
    fn pin_bytes(&self) -> Option<NonZeroU64>;

    /// Makes a stream that runs beside all others.
    ///
    /// # Errors
    /// When the device is out of resources.
    fn create_stream(&self, name: &str) -> Result<Self::Stream, DeviceError>;

    /// Makes an event.
    ///
    /// # Errors
    /// When the device is out of resources.
    fn create_event(&self) -> Result<Self::Event, DeviceError>;

    /// Makes decode tables ready, so that one call decodes a block.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] if a table holds a conversion that the device cannot do.
    ///
    /// # Panics
    /// When an entry's bytes contradict its encoding or its scale, or lie outside the arena.
    fn prepare(
        &self,
        arena: &Self::Arena,
        tables: &[DecodeTable],
    ) -> Result<Self::Program, DeviceError>;

    /// The buffer's bytes, to be filled. Waits until the copies submitted from it are done.
    ///
    /// # Errors
    /// When such a copy failed or the device is lost.
    fn staging_bytes<'a>(
        &self,
        staging: &'a mut Self::Staging,
    ) -> Result<&'a mut [u8], DeviceError>;

    /// Copies `source` of `pinned` to `offset` of the arena.
    ///
    /// # Errors
    /// When the device refuses. Parts of a pinned file that are shorter than the whole may be
    /// [`DeviceError::Unsupported`].
    ///
    /// # Panics
    /// When either range is outside.
    fn upload_pinned(
        &self,
        stream: &Self::Stream,
        arena: &Self::Arena,
        offset: u64,
        pinned: &Self::Pinned,
        source: Range<usize>,
    ) -> Result<(), DeviceError>;

    /// As [`upload_pinned`](Self::upload_pinned) for each, where a device has a faster way to submit many. None writes
    /// where another does, so their order is free. If it fails, some of them may have been submitted.
    ///
    /// # Errors
    /// As [`upload_pinned`](Self::upload_pinned).
    ///
    /// # Panics
    /// As [`upload_pinned`](Self::upload_pinned).
    fn upload_all_pinned<'a>(
        &self,
        stream: &Self::Stream,
        arena: &Self::Arena,
        mut uploads: impl Iterator<Item = PinnedUpload<'a, Self::Pinned>>,
    ) -> Result<(), DeviceError> {
        uploads.try_for_each(|upload| {
            let PinnedUpload {
                offset,
                pinned,
                source,
            } = upload;
            self.upload_pinned(stream, arena, offset, pinned, source)
        })
    }

    /// Copies `source` of `staging` to `offset` of the arena.
    ///
    /// # Errors
    /// When the device refuses.
    ///
    /// # Panics
    /// When either range is outside.
    fn upload_staged(
        &self,
        stream: &Self::Stream,
        arena: &Self::Arena,
        offset: u64,
        staging: &mut Self::Staging,
        source: Range<usize>,
    ) -> Result<(), DeviceError>;

    /// Runs table `table` of `program`.
    ///
    /// # Errors
    /// When the device refuses.
    ///
    /// # Panics
    /// When there is no such table.
    fn decode(
        &self,
        stream: &Self::Stream,
        arena: &Self::Arena,
        program: &Self::Program,
        table: usize,
    ) -> Result<(), DeviceError>;

    /// Marks this point of the stream.
    ///
    /// # Errors
    /// When the device refuses.
    fn record(&self, stream: &Self::Stream, event: &Self::Event)
    -> Result<Generation, DeviceError>;

    /// Holds the stream until `event` passed `generation` or a later recording.
    ///
    /// # Errors
    /// When the device refuses.
    ///
    /// # Panics
    /// When the generation was never recorded.
    fn wait(
        &self,
        stream: &Self::Stream,
        event: &Self::Event,
        generation: Generation,
    ) -> Result<(), DeviceError>;

    /// Holds the calling thread until `event` passed `generation`.
    ///
    /// # Errors
    /// When the work before the event failed or the device is lost.
    ///
    /// # Panics
    /// When the generation was never recorded.
    fn synchronize(&self, event: &Self::Event, generation: Generation) -> Result<(), DeviceError>;

    /// Seconds between two events that have both passed; negative if `to` was first.
    ///
    /// # Errors
    /// When either was not passed.
    fn elapsed(&self, from: &Self::Event, to: &Self::Event) -> Result<f64, DeviceError>;

    /// Declares that work on `stream` reads `range` of the arena from here on.
    ///
    /// # Errors
    /// When the device refuses.
    fn begin_read(
        &self,
        stream: &Self::Stream,
        arena: &Self::Arena,
        range: Range<u64>,
    ) -> Result<Self::Hold, DeviceError>;

    /// Declares that work on `stream` no longer reads the range from here on. `reused` says that something else will
    /// be written there.
    ///
    /// # Errors
    /// When the device refuses.
    fn end_read(
        &self,
        stream: &Self::Stream,
        hold: Self::Hold,
        reused: bool,
    ) -> Result<(), DeviceError>;

    /// The bytes of `range` of the arena, where the host may look at device memory while it holds it: only within the
    /// hold, and only on streams that run on the caller's thread.
    fn host_bytes<'a>(&self, hold: &'a Self::Hold, range: Range<u64>) -> Option<&'a [u8]>;

    /// Names a range of the arena to code that runs on the device.
    fn view(&self, arena: &Self::Arena, range: Range<u64>) -> Self::View;

    /// The device address of `offset` of the arena.
    fn address(&self, arena: &Self::Arena, offset: u64) -> u64;
}
