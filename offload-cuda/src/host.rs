//! Host memory from which the device copies by itself: anonymous memory, and mappings of files.
//!
//! [`Locked`] is both. It is a mapping that is cut at fixed distances, each piece page-locked by itself: a copy must not
//! span two registrations, and registrations stay small because they take locks of the driver. Anonymous memory is
//! locked as a whole when it is made; a file piece by piece, as the plan asks for it.
//!
//! # Mappings of files
//!
//! - Only shared read-only mappings are locked: registering a private one never returns on some drivers.
//! - No Rust reference into a file's mapping is ever made, and the CPU never touches it: a file that is truncated or
//!   rewritten cannot bring the process down or break its rules. Locked pages stay what they were.
//! - The driver copies up to 64 KiB with the CPU, also from locked memory: [`LEAST_COPY`] keeps such copies away from
//!   mappings.
//! - A piece is locked only while all its pages are in the page cache: locking reads what is missing, page by page.

#![expect(
    unsafe_code,
    reason = "hands addresses of mapped memory to the driver and, where it is ours alone, to Rust"
)]

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use offload_core::device::DeviceError;
use offload_core::source::{SourceError, SourceFile};
use parking_lot::Mutex;

use crate::driver::{Context, Copies, Event, Registration, Stream, insist};
use crate::live::Count;

/// Bytes between cuts of anonymous memory. Below 2 GiB, which some drivers cannot register at once.
const MEMORY_CUT: usize = 1 << 30;

/// Bytes between cuts of a file: about 1 ms of locking, for which what was submitted before keeps the device busy, and
/// others wait for the driver. Shorter pieces take more copies in each visit, and longer to lock in all: 37 GB/s at 8 MiB,
/// 53 at 256 MiB.
pub(crate) const FILE_CUT: usize = 32 << 20;

/// A copy from the mapping of a file is this long at least. The driver reads shorter ones with the CPU, which is
/// stopped by a signal where the file was truncated.
pub(crate) const LEAST_COPY: usize = (64 << 10) + 1;

/// A piece of a file that takes longer than this to lock is the last: the driver does not do it well here.
const DEADLINE: Duration = Duration::from_secs(2);

/// Threads that fill a copy.
const FILLERS: usize = 8;

/// Bytes that a thread reads at a time while it fills a copy.
const FILL_BYTES: usize = 8 << 20;

/// Why a range was not locked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It may be another time.
    #[error("{0}")]
    Now(String),
    /// Memory that can be locked is short. It may be another time.
    #[error("{reason}")]
    Short {
        reason: String,
        /// What of it there is, as far as is known.
        free_bytes: u64,
    },
    /// It never will.
    #[error("{0}")]
    Always(String),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Memory, locked piece by piece.
pub(crate) struct Locked {
    context: Arc<Context>,
    /// `None` once it was given away to be leaked.
    memory: Option<MmapRaw>,
    cut: usize,
    pieces: Mutex<Pieces>,
    /// What the memory is a mapping of.
    file: Option<Arc<SourceFile>>,
    _count: Count,
}

#[derive(Default)]
struct Pieces {
    locked: Vec<Option<Registration>>,
    /// Why no more are locked.
    stopped: Option<String>,
}

impl Locked {
    /// Locks anonymous memory.
    fn memory(context: &Arc<Context>, memory: MmapMut) -> Result<Self, DeviceError> {
        let bytes = memory.len();
        let locked = Self {
            context: Arc::clone(context),
            memory: Some(memory.into()),
            cut: MEMORY_CUT,
            pieces: Mutex::default(),
            file: None,
            _count: Count::new(&context.live),
        };
        locked.lock(&(0..bytes)).map_err(|refused| match refused {
            Refused::Device(error) => error,
            Refused::Short { free_bytes, .. } => DeviceError::OutOfMemory {
                requested_bytes: bytes as u64,
                free_bytes,
            },
            Refused::Now(reason) | Refused::Always(reason) => DeviceError::Failed {
                call: "page-locking host memory",
                reason,
            },
        })?;
        Ok(locked)
    }

    /// Maps a file, and locks nothing yet.
    pub(crate) fn file(context: &Arc<Context>, file: &Arc<SourceFile>) -> Result<Self, Refused> {
        if !cfg!(target_os = "linux") {
            return Err(Refused::Always(
                "mappings are locked on Linux only".to_owned(),
            ));
        }
        let raw = file.file();
        file_system(raw)?;
        let memory = MmapOptions::new()
            .map_raw_read_only(raw)
            .map_err(|error| Refused::Always(format!("it cannot be mapped: {error}")))?;
        Ok(Self {
            context: Arc::clone(context),
            memory: Some(memory),
            cut: FILE_CUT,
            pieces: Mutex::default(),
            file: Some(Arc::clone(file)),
            _count: Count::new(&context.live),
        })
    }

    fn map(&self) -> &MmapRaw {
        self.memory.as_ref().expect("taken only in `drop`")
    }

    fn bytes(&self) -> usize {
        self.map().len()
    }

    /// Locks the pieces that `range` touches.
    pub(crate) fn lock(&self, range: &Range<usize>) -> Result<(), Refused> {
        if range.end > self.bytes() {
            return Err(Refused::Now(format!(
                "{range:?} of a mapping of {} bytes: the file was cut",
                self.bytes()
            )));
        }
        let mut pieces = self.pieces.lock();
        let indices = range.start / self.cut..range.end.div_ceil(self.cut);
        if pieces.locked.len() < indices.end {
            pieces.locked.resize_with(indices.end, || None);
        }
        for index in indices {
            if pieces.locked[index].is_some() {
                continue;
            }
            if let Some(reason) = &pieces.stopped {
                return Err(Refused::Always(reason.clone()));
            }
            let start = index * self.cut;
            let piece = start..(start + self.cut).min(self.bytes());
            let begin = Instant::now();
            let locked = self.lock_piece(&piece);
            let took = begin.elapsed();
            if self.file.is_some() && took > DEADLINE {
                let reason = format!(
                    "locking {} bytes of a mapping took {:.1} s",
                    piece.len(),
                    took.as_secs_f64()
                );
                pieces.stopped = Some(reason);
            }
            if let Err(Refused::Always(reason)) = &locked {
                pieces.stopped = Some(reason.clone());
            }
            pieces.locked[index] = Some(locked?);
        }
        Ok(())
    }

    fn lock_piece(&self, piece: &Range<usize>) -> Result<Registration, Refused> {
        let live = &self.context.live;
        let reserved = live.reserve(piece.len()).ok_or_else(|| {
            let (used, budget) = (live.pinned_bytes(), live.pinned_budget());
            Refused::Short {
                reason: format!(
                    "{} more bytes do not fit the budget for pinned memory, {used} of {budget} are used",
                    piece.len(),
                ),
                free_bytes: budget.saturating_sub(used),
            }
        })?;
        // SAFETY: the piece lies within the mapping.
        let pointer = unsafe { self.map().as_mut_ptr().add(piece.start) };
        if let Some(file) = &self.file {
            in_page_cache(file.file(), self.map(), piece)?;
        }
        // SAFETY: the mapping outlives its registrations: `drop` drops them first. A file's mapping is read only.
        let locked = unsafe {
            Registration::new(&self.context, pointer.cast(), reserved, self.file.is_some())
        };
        match locked {
            Ok(locked) => Ok(locked),
            Err(DeviceError::Failed { call, reason }) => {
                Err(Refused::Always(format!("{call}: {reason}")))
            }
            Err(DeviceError::OutOfMemory { free_bytes, .. }) => Err(Refused::Short {
                reason: format!("the system locks no {} more bytes", piece.len()),
                free_bytes,
            }),
            Err(error) => Err(Refused::Device(error)),
        }
    }

    /// The part of `range` that can be copied without ending or beginning in less than [`LEAST_COPY`] bytes at a cut.
    pub(crate) fn copyable(&self, range: &Range<usize>) -> Range<usize> {
        let mut range = range.clone();
        let first_cut = range.start.next_multiple_of(self.cut).min(range.end);
        if first_cut - range.start < LEAST_COPY {
            range.start = first_cut;
        }
        let last_cut = (range.end / self.cut * self.cut).max(range.start);
        if range.end - last_cut < LEAST_COPY {
            range.end = last_cut;
        }
        range
    }

    /// Adds the copies of `range`, which is locked, to device memory at `to`: each from one piece. The memory itself stays
    /// until they are done: `drop` waits for the device.
    pub(crate) fn gather(
        &self,
        copies: &mut Copies,
        to: u64,
        range: &Range<usize>,
    ) -> Result<(), DeviceError> {
        assert!(
            range.start <= range.end && range.end <= self.bytes(),
            "contract: {range:?} of {} bytes of host memory",
            self.bytes()
        );
        let mut at = range.start;
        while at < range.end {
            let end = ((at / self.cut + 1) * self.cut).min(range.end);
            if self.file.is_some() && end - at < LEAST_COPY {
                let reason = format!(
                    "an upload of {} bytes from the mapping of a file, {LEAST_COPY} are the least",
                    end - at
                );
                return Err(DeviceError::Unsupported { reason });
            }
            // SAFETY: within the mapping.
            let from = unsafe { self.map().as_ptr().add(at) };
            copies.push(to + (at - range.start) as u64, from, end - at);
            at = end;
        }
        Ok(())
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        match insist(|| self.context.synchronize()) {
            // Nothing copies any more.
            Ok(()) | Err(DeviceError::Lost { .. }) => self.pieces.get_mut().locked.clear(),
            Err(_) => {
                // Something may still copy: better a leak than a copy from memory that is gone.
                std::mem::take(&mut self.pieces.get_mut().locked)
                    .into_iter()
                    .for_each(std::mem::forget);
                std::mem::forget(self.memory.take());
            }
        }
    }
}

impl fmt::Debug for Locked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locked")
            .field("bytes", &self.bytes())
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// Anonymous memory on huge pages, not yet touched.
fn anonymous(bytes: usize) -> Result<MmapMut, DeviceError> {
    let memory = MmapOptions::new()
        .len(bytes.max(1))
        .map_anon()
        .map_err(|_| DeviceError::OutOfMemory {
            requested_bytes: bytes as u64,
            free_bytes: 0,
        })?;
    #[cfg(target_os = "linux")]
    {
        // Both are wishes: without them locking is slower, and a forked child shares the pages.
        let _ = memory.advise(memmap2::Advice::HugePage);
        let _ = memory.advise(memmap2::Advice::DontFork);
    }
    Ok(memory)
}

/// Whether mappings of this file system are known to be safe to lock.
#[cfg(target_os = "linux")]
fn file_system(file: &File) -> Result<(), Refused> {
    use std::os::fd::AsRawFd;
    /// `f_type` of ext2 to ext4, xfs, btrfs, f2fs, tmpfs and overlayfs; see `statfs(2)`.
    const KNOWN: [i64; 6] = [
        0xEF53,
        0x5846_5342,
        0x9123_683E,
        0xF2F5_2010,
        0x0102_1994,
        0x794C_7630,
    ];
    let mut status = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the file is open, and the call writes the whole of `status`.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), status.as_mut_ptr()) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Refused::Always(format!("fstatfs: {error}")));
    }
    // SAFETY: written, since the call succeeded.
    let kind = unsafe { status.assume_init() }.f_type;
    if KNOWN.contains(&kind) {
        Ok(())
    } else {
        let reason = format!("mappings of file system {kind:#x} are not known to be safe to lock");
        Err(Refused::Always(reason))
    }
}

#[cfg(not(target_os = "linux"))]
fn file_system(_file: &File) -> Result<(), Refused> {
    Ok(())
}

/// Whether the page cache holds the whole of `range` of a mapped file; the range begins at a page.
#[cfg(target_os = "linux")]
fn in_page_cache(file: &File, map: &MmapRaw, range: &Range<usize>) -> Result<(), Refused> {
    let (cached, pages) = match cached_pages(file, range) {
        Some(counted) => counted,
        None => mapped_pages(map, range)?,
    };
    if cached >= pages {
        return Ok(());
    }
    Err(Refused::Now(format!(
        "{cached} of {pages} pages at {} of the file are in the page cache",
        range.start
    )))
}

/// Bytes of a page.
#[cfg(target_os = "linux")]
fn page_bytes() -> usize {
    // SAFETY: no pointers.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(page).unwrap_or(4096)
}

/// Pages of a range that are cached, and all of them; `None` before Linux 6.5, which has no `cachestat(2)`. It looks at
/// folios, not at pages as `mincore(2)` does: 14 GiB are counted in milliseconds rather than in 0.2 s.
#[cfg(target_os = "linux")]
fn cached_pages(file: &File, range: &Range<usize>) -> Option<(usize, usize)> {
    use std::os::fd::AsRawFd;
    /// The number is the same on every architecture.
    const CACHESTAT: libc::c_long = 451;
    // `struct cachestat_range` and `struct cachestat` of `linux/mman.h`.
    let wanted = [range.start as u64, range.len() as u64];
    let mut counted = [0u64; 5];
    // SAFETY: the file is open; both structures are as long as the kernel's and live until the call returns.
    let result = unsafe {
        libc::syscall(
            CACHESTAT,
            file.as_raw_fd(),
            wanted.as_ptr(),
            counted.as_mut_ptr(),
            0,
        )
    };
    let cached = usize::try_from(counted[0]).unwrap_or(0);
    (result == 0).then(|| (cached, range.len().div_ceil(page_bytes())))
}

/// The same of a mapping.
#[cfg(target_os = "linux")]
fn mapped_pages(map: &MmapRaw, range: &Range<usize>) -> Result<(usize, usize), Refused> {
    let pages = range.len().div_ceil(page_bytes());
    let mut resident = vec![0u8; pages];
    // SAFETY: the range lies within the mapping.
    let start = unsafe { map.as_mut_ptr().add(range.start) };
    // SAFETY: the range begins at a cut, so at a page; the vector has a byte for each page.
    let result = unsafe { libc::mincore(start.cast(), range.len(), resident.as_mut_ptr()) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        return Err(Refused::Now(format!("mincore: {error}")));
    }
    let cached = resident.iter().filter(|&&page| page & 1 == 1).count();
    Ok((cached, pages))
}

#[cfg(not(target_os = "linux"))]
fn in_page_cache(_file: &File, _map: &MmapRaw, _range: &Range<usize>) -> Result<(), Refused> {
    Ok(())
}

/// Makes locked memory of `bytes` bytes that `fill` writes first.
pub(crate) fn locked_memory<E: From<DeviceError>>(
    context: &Arc<Context>,
    bytes: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Locked, E> {
    // Before it is filled in vain. Another thread may still be faster.
    let free_bytes = context.live.free_pinned_bytes();
    if free_bytes < bytes as u64 {
        return Err(E::from(DeviceError::OutOfMemory {
            requested_bytes: bytes as u64,
            free_bytes,
        }));
    }
    let mut memory = anonymous(bytes)?;
    fill(&mut memory[..bytes])?;
    Ok(Locked::memory(context, memory)?)
}

/// Why a range of a file was not copied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Makes a locked copy of a range of a file.
pub(crate) fn locked_copy(
    context: &Arc<Context>,
    file: &SourceFile,
    range: &Range<u64>,
) -> Result<Locked, CopyError> {
    let bytes = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
    locked_memory(context, bytes, |memory| {
        let slices = memory.chunks_mut(FILL_BYTES).enumerate();
        let slices = Mutex::new(slices);
        let fill = || -> Result<(), SourceError> {
            loop {
                let next = slices.lock().next();
                let Some((index, slice)) = next else {
                    return Ok(());
                };
                file.read_exact_at(slice, range.start + (index * FILL_BYTES) as u64)?;
            }
        };
        let threads = bytes.div_ceil(FILL_BYTES).min(FILLERS);
        std::thread::scope(|scope| {
            // Fewer will do where the system spawns no more.
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, fill).ok();
            let fillers: Vec<_> = (1..threads).map_while(spawn).collect();
            let own = fill();
            fillers.into_iter().fold(own, |outcome, filler| {
                let filled = filler.join().expect("reading does not panic");
                outcome.and(filled)
            })
        })?;
        // What was written over while it was read may be torn.
        file.check_unchanged()?;
        Ok(())
    })
}

/// Locked memory that was filled once and is only read since.
#[derive(Debug)]
pub(crate) struct Filled(pub(crate) Arc<Locked>);

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        let locked = &*self.0;
        // SAFETY: anonymous memory, written before it was locked and by nobody since; it lives as long as `self`. Only
        // `allocate_pinned` makes this type, and a mapping of a file never becomes one.
        unsafe { std::slice::from_raw_parts(locked.map().as_ptr(), locked.bytes()) }
    }
}

impl Filled {
    /// Where `bytes` lie in it, if they do.
    pub(crate) fn position(locked: &Locked, bytes: &[u8]) -> Option<usize> {
        let start = (bytes.as_ptr() as usize).checked_sub(locked.map().as_ptr() as usize)?;
        (start + bytes.len() <= locked.bytes()).then_some(start)
    }
}

/// A buffer that is filled, uploaded from, and filled again.
#[derive(Debug)]
pub struct CudaStaging {
    locked: Locked,
    bytes: usize,
    copied: Event,
    /// The last copy from it that may be under way.
    pending: Option<u64>,
}

impl CudaStaging {
    pub(crate) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            locked: locked_memory(context, bytes, |memory| {
                // So that the system brings the pages, here, where several threads can have it do so at once, rather than
                // under the driver's lock.
                memory.iter_mut().step_by(4096).for_each(|byte| *byte = 0);
                Ok::<_, DeviceError>(())
            })?,
            bytes,
            copied: Event::new(context)?,
            pending: None,
        })
    }

    /// Waits for the copies from it, then lends its bytes.
    pub(crate) fn bytes_mut(&mut self) -> Result<&mut [u8], DeviceError> {
        if let Some(generation) = self.pending {
            self.copied.synchronize(generation)?;
            self.pending = None;
        }
        // SAFETY: anonymous memory that this buffer owns; no copy reads it, and `&mut self` keeps new ones away as long
        // as the slice lives.
        Ok(unsafe { std::slice::from_raw_parts_mut(self.locked.map().as_mut_ptr(), self.bytes) })
    }

    /// # Safety
    /// Until the stream is past this point `to` is device memory of as many bytes as `source` has.
    pub(crate) unsafe fn upload(
        &mut self,
        stream: &Stream,
        to: u64,
        source: &Range<usize>,
    ) -> Result<(), DeviceError> {
        assert!(
            source.end <= self.bytes,
            "contract: upload of {source:?} from a staging buffer of {} bytes",
            self.bytes
        );
        if let Some(generation) = self.pending {
            // The event has one recording for all copies, whatever their streams.
            self.copied.hold(stream, generation)?;
        }
        // SAFETY: the buffer is locked as a whole, and nobody writes to it before `bytes_mut` has waited for the copy; the
        // rest is asked for.
        let submitted = unsafe { stream.upload(|copies| self.locked.gather(copies, to, source)) };
        // Part of it may be under way even if it failed.
        match self.copied.record(stream) {
            Ok(generation) => self.pending = Some(generation),
            Err(error) => {
                stream.synchronize()?;
                self.pending = None;
                return Err(error);
            }
        }
        submitted
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn both_ways_to_count_cached_pages_agree() {
        let mut file = tempfile::NamedTempFile::new().expect("a file can be made");
        file.write_all(&vec![7; 3 << 20]).expect("written");
        let file = file.as_file();
        let map = MmapOptions::new().map_raw_read_only(file).expect("mapped");
        let range = 1 << 20..(3 << 20) - 5;
        let mapped = mapped_pages(&map, &range).expect("counted");
        assert_eq!(mapped, (512, 512), "just written");
        if let Some(cached) = cached_pages(file, &range) {
            assert_eq!(cached, mapped);
        }
        in_page_cache(file, &map, &range).expect("all of it");
    }
}
