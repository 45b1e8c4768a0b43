#![expect(
    unsafe_code,
    reason = "device memory that several stream threads read and write, under an interval table"
)]
//! The CPU device's arena: memory shared by stream threads, and the table that keeps them apart.
//!
//! Every access holds its range in the table for as long as a reference to the bytes exists: shared or exclusive. Two
//! holds that overlap, one of them exclusive, are a breach of the executor's contract and panic with the names of
//! both. So a missing fence shows up as a panic rather than as a data race, and the references below are sound
//! whatever the executor does.

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::plan::PLACE_ALIGN;

const CHUNK: usize = 256;
const _: () = assert!(CHUNK as u64 == PLACE_ALIGN);

#[repr(align(256))]
#[expect(dead_code, reason = "its bytes are reached through pointers only")]
struct Chunk(UnsafeCell<[u8; CHUNK]>);

/// Who holds a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    Upload,
    Decode,
    Lease,
    View,
    Poison,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    range: Range<u64>,
    exclusive: bool,
    holder: Holder,
}

/// Memory and its interval table.
pub(super) struct Memory {
    chunks: Box<[Chunk]>,
    bytes: u64,
    table: Mutex<Vec<Entry>>,
    next_id: AtomicU64,
    on_free: Box<dyn Fn(u64) + Send + Sync>,
}

// SAFETY: bytes are reached only through `slice` and `slice_mut`, whose callers hold the range in `table`: shared holds
// give only `&[u8]`, an exclusive hold overlaps no other. The table is behind a lock, so taking and giving back a hold
// also orders the accesses between threads.
unsafe impl Sync for Memory {}

impl Memory {
    pub(super) fn new(
        bytes: u64,
        on_free: impl Fn(u64) + Send + Sync + 'static,
    ) -> Option<Arc<Self>> {
        let count = usize::try_from(bytes.div_ceil(PLACE_ALIGN)).ok()?;
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(count).ok()?;
        chunks.extend((0..count).map(|_| Chunk(UnsafeCell::new([0xA5; CHUNK]))));
        Some(Arc::new(Self {
            chunks: chunks.into_boxed_slice(),
            bytes,
            table: Mutex::new(Vec::with_capacity(64)),
            next_id: AtomicU64::new(1),
            on_free: Box::new(on_free),
        }))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn base(&self) -> u64 {
        self.chunks.as_ptr() as u64
    }

    pub(super) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Enters a hold. Panics if it clashes with another.
    fn enter(&self, id: u64, range: &Range<u64>, exclusive: bool, holder: Holder) {
        assert!(
            range.start <= range.end && range.end <= self.bytes,
            "contract: {holder:?} of bytes {range:?} lies outside an arena of {} bytes",
            self.bytes
        );
        let mut table = self.table.lock();
        if let Some(other) = table.iter().find(|other| {
            (exclusive || other.exclusive)
                && range.start < other.range.end
                && other.range.start < range.end
        }) {
            let message = format!(
                "contract: {holder:?} of bytes {range:?} overlaps {:?} of bytes {:?}",
                other.holder, other.range
            );
            drop(table);
            panic!("{message}");
        }
        table.push(Entry {
            id,
            range: range.clone(),
            exclusive,
            holder,
        });
    }

    fn leave(&self, id: u64) {
        let mut table = self.table.lock();
        let index = table
            .iter()
            .position(|entry| entry.id == id)
            .expect("a hold is left once");
        table.swap_remove(index);
    }

    /// Holds a range shared while `read` runs.
    pub(super) fn read<R>(
        &self,
        range: &Range<u64>,
        holder: Holder,
        read: impl FnOnce(&[u8]) -> R,
    ) -> R {
        let id = self.next_id();
        self.enter(id, range, false, holder);
        let _leave = Leave { memory: self, id };
        // SAFETY: the shared hold just entered lasts until `_leave` drops, after `read` has returned.
        read(unsafe { self.slice(range) })
    }

    /// Holds a range exclusively while `write` runs.
    pub(super) fn write<R>(
        &self,
        range: &Range<u64>,
        holder: Holder,
        write: impl FnOnce(&mut [u8]) -> R,
    ) -> R {
        let id = self.next_id();
        self.enter(id, range, true, holder);
        let _leave = Leave { memory: self, id };
        // SAFETY: the exclusive hold just entered lasts until `_leave` drops, after `write` has returned.
        write(unsafe { self.slice_mut(range) })
    }

    fn pointer(&self, range: &Range<u64>) -> (*mut u8, usize) {
        let start = usize::try_from(range.start).expect("the arena fits the address space");
        let len =
            usize::try_from(range.end - range.start).expect("the arena fits the address space");
        // `Chunk` is `repr(align(256))` around 256 bytes, so the chunks are contiguous bytes, and `UnsafeCell` allows
        // writing through a shared reference. `wrapping_add` keeps the provenance of the whole boxed slice.
        let base = self.chunks.as_ptr().cast::<u8>().cast_mut();
        (base.wrapping_add(start), len)
    }

    /// # Safety
    /// - `range` lies inside and is held shared until the reference is gone.
    unsafe fn slice(&self, range: &Range<u64>) -> &[u8] {
        let (pointer, len) = self.pointer(range);
        // SAFETY: `range` was checked against `bytes` when it was entered in the table; all chunks were initialised in
        // `new`; no `&mut` overlaps while the hold lasts.
        unsafe { std::slice::from_raw_parts(pointer, len) }
    }

    /// # Safety
    /// - `range` lies inside and is held exclusively until the reference is gone.
    #[expect(
        clippy::mut_from_ref,
        reason = "the interval table, not the borrow checker, keeps it exclusive"
    )]
    unsafe fn slice_mut(&self, range: &Range<u64>) -> &mut [u8] {
        let (pointer, len) = self.pointer(range);
        // SAFETY: as in `slice`; the exclusive hold overlaps no other.
        unsafe { std::slice::from_raw_parts_mut(pointer, len) }
    }
}

struct Leave<'a> {
    memory: &'a Memory,
    id: u64,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.memory.leave(self.id);
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        (self.on_free)(self.bytes);
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// A shared hold that lasts from `begin_read` to `end_read`, which may run on another thread than the one that made it.
///
/// One that is dropped without `end_read` stays in the table for good: a later write to the range panics, and references
/// handed out stay sound.
#[derive(Debug)]
pub struct CpuHold {
    pub(super) memory: Arc<Memory>,
    pub(super) id: u64,
    pub(super) range: Range<u64>,
    /// Entered on the thread that made it, so that the host may look at the bytes.
    pub(super) inline: bool,
}

impl CpuHold {
    pub(super) fn enter(memory: &Memory, id: u64, range: &Range<u64>) {
        memory.enter(id, range, false, Holder::Lease);
    }

    pub(super) fn leave(memory: &Memory, id: u64) {
        memory.leave(id);
    }

    /// The bytes of `range` of the arena, if the hold was entered on this thread.
    ///
    /// # Panics
    /// When `range` is not inside the hold.
    #[must_use]
    pub fn bytes(&self, range: Range<u64>) -> Option<&[u8]> {
        assert!(
            self.range.start <= range.start
                && range.start <= range.end
                && range.end <= self.range.end,
            "contract: bytes {range:?} lie outside the hold of {:?}",
            self.range
        );
        // SAFETY: an inline hold was entered before it was handed out, and `end_read` consumes it before it is left, so
        // the shared hold lasts as long as this borrow of `self`; if it is forgotten it is never left.
        self.inline.then(|| unsafe { self.memory.slice(&range) })
    }
}

/// A range of an arena that work on a queued stream reads with [`read`](Self::read).
#[derive(Debug, Clone)]
pub struct CpuView {
    pub(super) memory: Arc<Memory>,
    pub(super) range: Range<u64>,
}

impl CpuView {
    /// Runs `read` on the bytes, which are held shared meanwhile.
    ///
    /// # Panics
    /// When something writes to the range at this time: a breach of contract.
    pub fn read<R>(&self, read: impl FnOnce(&[u8]) -> R) -> R {
        self.memory.read(&self.range, Holder::View, read)
    }

    /// Bytes in the range.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.range.end - self.range.start
    }
}
