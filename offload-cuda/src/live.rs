//! How much of the device's is alive: handles, so that tests see that nothing leaks, and page-locked host memory, so
//! that it stays within its budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of a device's handles and of page-locked host memory.
#[derive(Debug)]
pub(crate) struct Live {
    handles: AtomicU64,
    pinned_bytes: AtomicU64,
    pinned_budget: u64,
}

impl Live {
    pub(crate) fn new(pinned_budget: u64) -> Self {
        Self {
            handles: AtomicU64::new(0),
            pinned_bytes: AtomicU64::new(0),
            pinned_budget,
        }
    }

    pub(crate) fn handles(&self) -> u64 {
        self.handles.load(Ordering::Acquire)
    }

    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes.load(Ordering::Acquire)
    }

    pub(crate) fn pinned_budget(&self) -> u64 {
        self.pinned_budget
    }

    /// Bytes that are left of the budget for page-locked memory.
    pub(crate) fn free_pinned_bytes(&self) -> u64 {
        self.pinned_budget().saturating_sub(self.pinned_bytes())
    }

    /// Takes bytes from the budget for page-locked memory, if it has as many left.
    pub(crate) fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let fits = |used: u64| {
            used.checked_add(bytes as u64)
                .filter(|used| *used <= self.pinned_budget)
        };
        self.pinned_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .ok()?;
        Some(Reservation {
            live: Arc::clone(self),
            bytes,
        })
    }
}

/// One handle, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Count(Arc<Live>);

impl Count {
    pub(crate) fn new(live: &Arc<Live>) -> Self {
        live.handles.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(live))
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.handles.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Bytes of the budget for page-locked memory, given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    live: Arc<Live>,
    bytes: usize,
}

impl Reservation {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.live
            .pinned_bytes
            .fetch_sub(self.bytes as u64, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_for_pinned_memory_is_kept_and_given_back() {
        let live = Arc::new(Live::new(100));
        let first = live.reserve(60).expect("fits");
        assert!(live.reserve(41).is_none());
        let second = live.reserve(40).expect("fits");
        assert_eq!(live.pinned_bytes(), 100);
        drop(first);
        assert!(live.reserve(61).is_none());
        drop(second);
        assert_eq!(live.pinned_bytes(), 0);
        assert!(live.reserve(usize::MAX).is_none());
    }
}
