//! What all handles of one CPU device share: progress, breach of contract, counts, jitter.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::device::DeviceError;

/// How a CPU device behaves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) memory_bytes: u64,
    pub(super) pins: bool,
    pub(super) copies_files: bool,
    pub(super) pin_bytes: NonZeroU64,
    pub(super) poison: bool,
    pub(super) jitter: Option<u64>,
}

/// Handles of a device that are alive. All zero once everything was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LiveCounts {
    /// Arenas, including dropped ones that submitted work still uses.
    pub arenas: i64,
    /// Their bytes.
    pub arena_bytes: i64,
    /// Staging buffers.
    pub staging: i64,
    /// Streams, each with a thread unless it runs inline.
    pub streams: i64,
    /// Events.
    pub events: i64,
    /// Pinned memory.
    pub pinned: i64,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) arenas: AtomicI64,
    pub(super) arena_bytes: AtomicI64,
    pub(super) staging: AtomicI64,
    pub(super) streams: AtomicI64,
    pub(super) events: AtomicI64,
    pub(super) pinned: AtomicI64,
}

/// Adds one to a count for as long as it lives.
pub(super) struct Counted {
    shared: Arc<Shared>,
    count: fn(&Counts) -> &AtomicI64,
}

impl Counted {
    pub(super) fn new(shared: &Arc<Shared>, count: fn(&Counts) -> &AtomicI64) -> Self {
        count(&shared.counts).fetch_add(1, Ordering::Relaxed);
        Self {
            shared: Arc::clone(shared),
            count,
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.count)(&self.shared.counts).fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counted")
    }
}

pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) counts: Counts,
    pub(super) streams_made: AtomicU64,
    progress: Mutex<()>,
    progressed: Condvar,
    broken: AtomicBool,
    breach: Mutex<String>,
}

impl Shared {
    pub(super) fn new(options: Options) -> Arc<Self> {
        Arc::new(Self {
            options,
            counts: Counts::default(),
            streams_made: AtomicU64::new(0),
            progress: Mutex::new(()),
            progressed: Condvar::new(),
            broken: AtomicBool::new(false),
            breach: Mutex::new(String::new()),
        })
    }

    /// Wakes all waiters to look again.
    pub(super) fn announce(&self) {
        // Taken so that no waiter sits between its look and its sleep.
        drop(self.progress.lock());
        self.progressed.notify_all();
    }

    /// Holds the calling thread until `done`.
    pub(super) fn wait_until(&self, mut done: impl FnMut() -> bool) -> Result<(), DeviceError> {
        let mut guard = self.progress.lock();
        while !done() {
            if self.broken.load(Ordering::Acquire) {
                drop(guard);
                return self.check();
            }
            self.progressed.wait(&mut guard);
        }
        Ok(())
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Remembers a panic of a stream thread; the device does nothing more.
    pub(super) fn break_with(&self, message: String) {
        {
            let mut breach = self.breach.lock();
            if breach.is_empty() {
                *breach = message;
            }
        }
        self.broken.store(true, Ordering::Release);
        self.announce();
    }

    /// Fails once a stream thread met a breach of contract.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        if self.is_broken() {
            Err(DeviceError::Lost {
                reason: self.breach.lock().clone(),
            })
        } else {
            Ok(())
        }
    }

    pub(super) fn live(&self) -> LiveCounts {
        let read = |count: &AtomicI64| count.load(Ordering::Relaxed);
        LiveCounts {
            arenas: read(&self.counts.arenas),
            arena_bytes: read(&self.counts.arena_bytes),
            staging: read(&self.counts.staging),
            streams: read(&self.counts.streams),
            events: read(&self.counts.events),
            pinned: read(&self.counts.pinned),
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("options", &self.options)
            .field("live", &self.live())
            .finish_non_exhaustive()
    }
}
