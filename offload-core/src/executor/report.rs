//! What happened: counters that any thread can read, and the report made from them.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::executor::pinner::HostReport;

use crate::executor::shortage::Shortage;

/// How many of the last passes a report lists one by one.
const LISTED_PASSES: usize = 1024;

/// Running totals. Readable from any thread while a pass runs.
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) load_bytes: AtomicU64,
    pub(super) past_end_bytes: AtomicU64,
    pub(super) passes: AtomicU64,
    pub(super) abandoned: AtomicU64,
    pub(super) visits: AtomicU64,
    pub(super) skipped: AtomicU64,
    pub(super) submission_waits: AtomicU64,
    pub(super) submission_wait_ns: AtomicU64,
    pub(super) pass_waits: AtomicU64,
    pub(super) pass_wait_ns: AtomicU64,
    pub(super) live_bytes: AtomicU64,
    pub(super) high_water_bytes: AtomicU64,
}

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        impl Counters {
            $($(#[$doc])*
            #[must_use]
            pub fn $name(&self) -> u64 {
                self.$name.load(Ordering::Relaxed)
            })*
        }
    };
}

getters! {
    /// Bytes moved to load residents and remainders.
    load_bytes;
    /// Bytes brought for a pass that never came.
    past_end_bytes;
    /// Passes begun.
    passes;
    /// Passes that were dropped or failed before their last visit.
    abandoned;
    /// Visits leased.
    visits;
    /// Visits skipped.
    skipped;
    /// Times `acquire` waited for a worker to submit an arrival.
    submission_waits;
    /// Nanoseconds of those waits.
    submission_wait_ns;
    /// Times the beginning of a pass waited for the end of the one before the last.
    pass_waits;
    /// Nanoseconds of those waits.
    pass_wait_ns;
    /// Planned bytes that hold something live at this moment, by submission.
    live_bytes;
    /// The most there ever were.
    high_water_bytes;
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn set_live(&self, bytes: u64) {
        self.live_bytes.store(bytes, Ordering::Relaxed);
        self.high_water_bytes.fetch_max(bytes, Ordering::Relaxed);
    }
}

/// A pass that was walked to its end and that the device has finished.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PassReport {
    /// Its number, from 0.
    pub pass: u64,
    /// Index of its kind.
    pub kind: usize,
    /// Seconds from its first to its last point on the compute stream.
    pub pass_s: f64,
    /// Seconds of those in which the compute stream waited for an arrival.
    pub stall_s: f64,
    /// Whether nothing had been prefetched for it.
    pub cold: bool,
}

/// A span of device time, for traces. Seconds since the executor was built.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Span {
    /// `upload`, `decode`, `compute` or `stall`.
    pub stage: &'static str,
    /// The block.
    pub block: String,
    /// The pass.
    pub pass: u64,
    /// When it began.
    pub begin_s: f64,
    /// When it ended.
    pub end_s: f64,
}

/// Times of finished passes.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) passes: VecDeque<PassReport>,
    /// Those of the listed passes.
    pub(super) spans: VecDeque<Span>,
}

impl History {
    pub(super) fn new() -> Self {
        Self {
            passes: VecDeque::with_capacity(LISTED_PASSES),
            spans: VecDeque::new(),
        }
    }

    pub(super) fn push(&mut self, pass: PassReport) {
        if self.passes.len() == LISTED_PASSES
            && let Some(oldest) = self.passes.pop_front()
        {
            let later = self.spans.iter().position(|span| span.pass > oldest.pass);
            self.spans.drain(..later.unwrap_or(self.spans.len()));
        }
        self.passes.push_back(pass);
    }
}

/// What happened so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The device.
    pub device: String,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// The budget it was planned for.
    pub budget_bytes: u64,
    /// What memory was short when it was built, and what was done, in order.
    pub shortages: Vec<Shortage>,
    /// How sources come to the device.
    pub host: HostReport,
    /// The most live bytes at once.
    pub high_water_bytes: u64,
    /// Bytes moved to load residents and remainders.
    pub load_bytes: u64,
    /// Bytes moved for visits of passes, without those of `past_end_bytes`.
    pub wire_bytes: u64,
    /// Bytes brought for a pass that never came, or came as another kind.
    pub past_end_bytes: u64,
    /// The last finished passes, oldest first.
    pub passes: Vec<PassReport>,
    /// Passes that were dropped or failed before their last visit.
    pub abandoned: u64,
    /// Visits leased.
    pub visits: u64,
    /// Visits skipped.
    pub skipped: u64,
    /// Times `acquire` waited for a worker's submission.
    pub submission_waits: u64,
    /// Seconds of those waits.
    pub submission_wait_s: f64,
    /// Times the beginning of a pass waited for the device.
    pub pass_waits: u64,
    /// Seconds of those waits.
    pub pass_wait_s: f64,
}

impl Report {
    /// Share of the listed passes' time in which the compute stream waited for an arrival; 0 if there is none.
    #[must_use]
    pub fn stall_fraction(&self) -> f64 {
        let total: f64 = self.passes.iter().map(|pass| pass.pass_s).sum();
        let stalled: f64 = self.passes.iter().map(|pass| pass.stall_s).sum();
        if total > 0.0 { stalled / total } else { 0.0 }
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "device            {}", self.device)?;
        writeln!(
            f,
            "arena             {:.1} MiB of {:.1} MiB budget, high water {:.1} MiB",
            mib(self.arena_bytes),
            mib(self.budget_bytes),
            mib(self.high_water_bytes)
        )?;
        for shortage in &self.shortages {
            writeln!(f, "short of memory   {shortage}")?;
        }
        let host = &self.host;
        writeln!(
            f,
            "sources           {:.1} MiB staged ({:.1} past the page cache), {:.1} MiB mapped, {:.1} MiB copied",
            mib(host.staged_bytes),
            mib(host.uncached_bytes),
            mib(host.mapped_bytes),
            mib(host.copied_bytes)
        )?;
        for note in &host.notes {
            writeln!(f, "staged because    {note}")?;
        }
        writeln!(f, "loaded once       {:.1} MiB", mib(self.load_bytes))?;
        writeln!(
            f,
            "moved in passes   {:.1} MiB, past the end {:.1} MiB",
            mib(self.wire_bytes),
            mib(self.past_end_bytes)
        )?;
        writeln!(
            f,
            "visits            {} leased, {} skipped",
            self.visits, self.skipped
        )?;
        writeln!(
            f,
            "host waits        {} for submissions ({:.3} s), {} for passes ({:.3} s)",
            self.submission_waits, self.submission_wait_s, self.pass_waits, self.pass_wait_s
        )?;
        write!(
            f,
            "stalled           {:.1} % of {} passes",
            100.0 * self.stall_fraction(),
            self.passes.len()
        )
    }
}
