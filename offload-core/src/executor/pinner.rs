//! A thread that pins what is streamed from files, while passes already run.
//!
//! The feeder reads the front of the visit list into staging buffers, so this thread begins with the last visit. What
//! cannot be pinned yet, because it is not in the page cache, is tried again once a pass has read it. An upload that is
//! pinned needs no staging any more; once all are, the caller submits by itself and the workers rest.
//!
//! Locking memory may never return on some systems. Nothing waits for this thread: until it has pinned an upload, the
//! upload is staged, and whoever drops the executor leaves a thread behind that does not come back.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing::{debug, warn};

use crate::device::{Device, Pinning, Rung};
use crate::executor::transfer::Transfer;
use crate::source::Source;

/// How long dropping waits for the thread.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reasons that are kept. More would be the same for other ranges.
const NOTES: usize = 8;

/// How streamed sources come to the device.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
pub struct HostReport {
    /// Bytes that the device reads where they lie in the page cache.
    pub mapped_bytes: u64,
    /// Bytes of files that were copied to page-locked memory.
    pub copied_bytes: u64,
    /// Bytes that go through staging buffers at each visit, as of now.
    pub staged_bytes: u64,
    /// Why a better way was not taken, the first few reasons.
    pub notes: Vec<String>,
}

/// Which upload: kind, visit, and position in the visit.
type Step = (usize, usize, usize);

/// The uploads of one range of one file.
#[derive(Debug)]
struct Target {
    source: Source,
    steps: Vec<Step>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    stop: bool,
    /// A pass began since the thread last looked.
    pass: bool,
    report: HostReport,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.state.lock().stop
    }

    /// Waits for a pass to begin; false if there will be none.
    fn await_pass(&self) -> bool {
        let mut state = self.state.lock();
        while !state.stop && !state.pass {
            self.changed.wait(&mut state);
        }
        state.pass = false;
        !state.stop
    }

    fn note(&self, reason: String) {
        let notes = &mut self.state.lock().report.notes;
        if notes.len() < NOTES && !notes.contains(&reason) {
            warn!(%reason, "a source is staged");
            notes.push(reason);
        }
    }

    fn pinned(&self, rung: Rung, bytes: u64) {
        let report = &mut self.state.lock().report;
        report.staged_bytes = report.staged_bytes.saturating_sub(bytes);
        match rung {
            Rung::Mapping => report.mapped_bytes += bytes,
            Rung::Copy => report.copied_bytes += bytes,
            Rung::Memory => {}
        }
        debug!(?rung, bytes, "a source is pinned");
    }
}

/// Handle of the thread.
#[derive(Debug)]
pub(super) struct Pinner {
    shared: Arc<Shared>,
    ended: Option<Receiver<()>>,
}

impl Pinner {
    /// With nothing to pin.
    pub(super) fn idle() -> Self {
        Self {
            shared: Arc::default(),
            ended: None,
        }
    }

    /// Starts pinning, unless nothing is staged or nothing may be pinned.
    pub(super) fn start<D: Device>(transfer: &Arc<Transfer<D>>, may_pin: bool) -> Self {
        let targets = targets(transfer);
        let mut pinner = Self::idle();
        let staged = targets.iter().map(|target| target.source.len()).sum();
        pinner.shared.state.lock().report.staged_bytes = staged;
        if !may_pin {
            pinner
                .shared
                .note("pinning of files is switched off".to_owned());
        } else if !targets.is_empty() {
            let (shared, transfer) = (Arc::clone(&pinner.shared), Arc::clone(transfer));
            let (end, ended) = channel();
            let work = move || pin_all(&transfer, targets, &shared, end);
            let thread = std::thread::Builder::new().name("offload-pin".to_owned());
            match thread.spawn(work) {
                Ok(_) => pinner.ended = Some(ended),
                Err(error) => pinner.shared.note(format!("no thread to pin on: {error}")),
            }
        }
        pinner
    }

    /// Tells that a pass begins, which may bring what it reads to the page cache.
    pub(super) fn pass_begins(&self) {
        self.shared.state.lock().pass = true;
        self.shared.changed.notify_one();
    }

    pub(super) fn report(&self) -> HostReport {
        self.shared.state.lock().report.clone()
    }
}

impl Drop for Pinner {
    fn drop(&mut self) {
        self.shared.state.lock().stop = true;
        self.shared.changed.notify_one();
        if let Some(ended) = &self.ended
            && ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout)
        {
            warn!(
                seconds = PATIENCE.as_secs(),
                "pinning does not return; its thread is left behind"
            );
        }
    }
}

/// What is staged: the ranges of files, last visits first.
fn targets<D: Device>(transfer: &Transfer<D>) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    let mut known = HashMap::new();
    for (kind, program) in transfer.kinds.iter().enumerate() {
        for (visit, program) in program.visits.iter().enumerate().rev() {
            let uploads = program.iter().flat_map(|program| &program.uploads);
            for (position, upload) in uploads.enumerate() {
                let Source::File { file, range } = &upload.source else {
                    continue;
                };
                let step = (kind, visit, position);
                let key = (Arc::as_ptr(file), range.start, range.end);
                let index = *known.entry(key).or_insert(targets.len());
                if index == targets.len() {
                    targets.push(Target {
                        source: upload.source.clone(),
                        steps: Vec::new(),
                    });
                }
                targets[index].steps.push(step);
            }
        }
    }
    targets
}

/// `_end` is dropped when this returns, however it does.
fn pin_all<D: Device>(
    transfer: &Transfer<D>,
    mut targets: Vec<Target>,
    shared: &Shared,
    _end: Sender<()>,
) {
    loop {
        let mut later = Vec::new();
        for target in targets {
            if shared.stopped() {
                return;
            }
            let pin = || transfer.device.pin(&target.source);
            match catch_unwind(AssertUnwindSafe(pin)) {
                Ok(Ok(Pinning::Pinned { pinned, rung })) => {
                    for &(kind, visit, position) in &target.steps {
                        transfer.pinned(kind, visit, position, pinned.clone());
                    }
                    shared.pinned(rung, target.source.len());
                }
                Ok(Ok(Pinning::Later { reason })) => {
                    shared.note(reason);
                    later.push(target);
                }
                Ok(Ok(Pinning::Staged { reason })) => shared.note(reason),
                Ok(Err(error)) => return shared.note(error.to_string()),
                Err(_) => return shared.note("pinning panicked".to_owned()),
            }
        }
        if later.is_empty() || !shared.await_pass() {
            return;
        }
        targets = later;
    }
}
