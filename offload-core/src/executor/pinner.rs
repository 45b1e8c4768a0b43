//! A thread that pins what is streamed from files, piece by piece, beside the staging ring.
//!
//! The feeder asks and waits: while memory is being locked, drivers let other calls of the process wait, for hundreds
//! of milliseconds if locking goes on and on, so locking and submitting take turns. Neither is as fast as the wire, and
//! together they are faster: for up to two thirds of the time the feeder has pieces pinned, the next one that is not being
//! read first. The device copies meanwhile what was submitted before, and the readers read. What cannot be pinned yet,
//! because it is not in the page cache, is staged and asked for again in the next pass. Once all is pinned the caller
//! submits by itself. Small pieces and rests between them keep the driver open to others.
//!
//! Copies to pinned memory are another matter: they take longer than staging and make few calls of the driver. When an
//! answer is a copy the feeder stages the rest, and the thread copies it meanwhile, last visits first.
//!
//! Locking memory may never return on some systems. So it has a thread of its own and a deadline: when that has passed
//! the feeder stages all that is not pinned until the answer comes after all, and waits for no other answer either.
//! Whoever drops the executor before that leaves the thread behind.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use parking_lot::Mutex;
use tracing::{debug, warn};

use crate::device::{Device, Pinning, Rung};
use crate::executor::transfer::Transfer;
use crate::source::Source;

/// How long a source may take to be pinned, and how long dropping waits for the thread.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// After an answer nothing is asked for as long as it took, divided by this: others wait for the driver, too, among them
/// the caller, on whose progress uploads depend.
const REST_DIVISOR: u32 = 2;

/// After an answer that may be the same in each pass nothing is asked for this many times as long as it took: asking in
/// vain costs a twentieth of the time at most.
const REST_IN_VAIN: u32 = 20;

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
    /// Bytes of those that are read past the page cache, because it does not hold the model.
    pub uncached_bytes: u64,
    /// Why a better way was not taken, the first few reasons.
    pub notes: Vec<String>,
}

/// Which upload: kind, visit, and position in the visit.
type Step = (usize, usize, usize);

/// The uploads of one range of one file.
#[derive(Debug)]
struct Target {
    source: Source,
    past_cache: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Default)]
struct Shared(Mutex<HostReport>);

impl Shared {
    fn note(&self, reason: String) {
        let notes = &mut self.0.lock().notes;
        if notes.len() < NOTES && !notes.contains(&reason) {
            warn!(%reason, "a source does not come the best way");
            notes.push(reason);
        }
    }

    fn pinned(&self, rung: Rung, bytes: u64) {
        let mut report = self.0.lock();
        report.staged_bytes = report.staged_bytes.saturating_sub(bytes);
        match rung {
            Rung::Mapping => report.mapped_bytes += bytes,
            Rung::Copy => report.copied_bytes += bytes,
            Rung::Memory => {}
        }
        debug!(?rung, bytes, "a source is pinned");
    }
}

/// What became of a request.
enum Answer {
    Pinned,
    /// By a copy. The thread goes on to the others without being asked, and says [`Answer::Later`] when it is through.
    Copied,
    /// Not this time.
    Later,
    /// Never.
    Staged,
}

/// What became of the wish to have something pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// One was asked for.
    One,
    /// The next is not asked for before so much time.
    After(Duration),
    /// There is nothing to pin, or no use in asking now.
    Nothing,
}

/// The thread, and what is disconnected when it is about to end.
type Thread = (JoinHandle<()>, Receiver<()>);

/// Handle of the thread.
#[derive(Debug)]
pub(super) struct Pinner {
    shared: Arc<Shared>,
    thread: Option<Thread>,
}

/// Asks the thread.
pub(super) struct Requests {
    shared: Arc<Shared>,
    /// Of each kind, in the order of visits: visit and position in it, and the target.
    kinds: Vec<Vec<(usize, usize, usize)>>,
    /// By target: a pass in which it is not to be asked for, nor in any before.
    asked: Vec<Option<u64>>,
    /// The last request whose answer did not come in time, or that set the thread going on by itself. Nothing is asked
    /// before that is answered.
    open: Option<usize>,
    /// How long an answer is waited for: no more once one was late.
    patience: Duration,
    /// Nothing is asked for before.
    rests_until: Instant,
    /// `None` if nothing is to be pinned any more.
    thread: Option<(Sender<usize>, Receiver<Answer>)>,
}

impl Pinner {
    /// With nothing to pin.
    pub(super) fn idle() -> Self {
        Self {
            shared: Arc::default(),
            thread: None,
        }
    }

    /// Starts the thread, unless nothing is staged. Without patience nothing is pinned.
    pub(super) fn start<D: Device>(
        transfer: &Arc<Transfer<D>>,
        patience: Option<Duration>,
        notes: Vec<String>,
    ) -> (Self, Requests) {
        let mut targets = targets(transfer);
        let mut pinner = Self::idle();
        let bytes = |targets: &[Target]| targets.iter().map(|target| target.source.len()).sum();
        let staged_bytes = bytes(&targets);
        // What is read past the page cache is not in it to be pinned.
        targets.retain(|target| !target.past_cache);
        let kept: u64 = bytes(&targets);
        *pinner.shared.0.lock() = HostReport {
            staged_bytes,
            uncached_bytes: staged_bytes - kept,
            ..HostReport::default()
        };
        for note in notes {
            pinner.shared.note(note);
        }
        let mut kinds = vec![Vec::new(); transfer.kinds.len()];
        for (index, target) in targets.iter().enumerate() {
            for &(kind, visit, position) in &target.steps {
                kinds[kind].push((visit, position, index));
            }
        }
        kinds.iter_mut().for_each(|kind| kind.sort_unstable());
        let mut requests = Requests {
            shared: Arc::clone(&pinner.shared),
            kinds,
            asked: vec![None; targets.len()],
            open: None,
            patience: Duration::ZERO,
            rests_until: Instant::now(),
            thread: None,
        };
        let Some(patience) = patience else {
            let reason = "pinning of files is switched off";
            pinner.shared.note(reason.to_owned());
            return (pinner, requests);
        };
        requests.patience = patience;
        if !targets.is_empty() {
            let (shared, transfer) = (Arc::clone(&pinner.shared), Arc::clone(transfer));
            let ((send, wanted), (answer, answers)) = (bounded(1), bounded(1));
            let (end, ended) = bounded::<()>(0);
            let work = move || {
                pin(&transfer, &targets, &shared, &wanted, &answer);
                // Whoever waits for the end may be the last to use the device.
                drop((transfer, targets));
                drop(end);
            };
            let thread = std::thread::Builder::new().name("offload-pin".to_owned());
            match thread.spawn(work) {
                Ok(thread) => {
                    pinner.thread = Some((thread, ended));
                    requests.thread = Some((send, answers));
                }
                Err(error) => pinner.shared.note(format!("no thread to pin on: {error}")),
            }
        }
        (pinner, requests)
    }

    pub(super) fn report(&self) -> HostReport {
        self.shared.0.lock().clone()
    }
}

impl Drop for Pinner {
    /// The requests are dropped by now, so that the thread ends once its last call returns.
    fn drop(&mut self) {
        let Some((thread, ended)) = self.thread.take() else {
            return;
        };
        if ended.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            let seconds = PATIENCE.as_secs();
            warn!(
                seconds,
                "pinning does not return; its thread is left behind"
            );
        } else {
            // Panics of the device were caught on the thread and noted.
            let _ = thread.join();
        }
    }
}

impl Requests {
    /// Has one source of a kind pinned and waits for that: the first at or after a visit and a position in it, or from the
    /// beginning again. In each pass each is asked for once.
    pub(super) fn pin_next<D: Device>(
        &mut self,
        transfer: &Transfer<D>,
        kind: usize,
        pass: u64,
        from: (usize, usize),
    ) -> Asked {
        if let (Some(target), Some((_, answers))) = (self.open, &self.thread) {
            match answers.try_recv() {
                Ok(answer) => self.take(target, &answer),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.thread = None,
            }
        }
        let Some((send, answers)) = self.thread.as_ref().filter(|_| self.open.is_none()) else {
            return Asked::Nothing;
        };
        let steps = &self.kinds[kind];
        let begin = steps.partition_point(|&(visit, position, _)| (visit, position) < from);
        let mut steps = steps[begin..].iter().chain(&steps[..begin]);
        let is_wanted = |&&(visit, position, target): &&(usize, usize, usize)| {
            self.asked[target] < Some(pass)
                && (transfer.program(kind, visit))
                    .is_some_and(|program| !program.uploads[position].is_pinned())
        };
        let Some(&(_, _, target)) = steps.find(is_wanted) else {
            return Asked::Nothing;
        };
        let begin = Instant::now();
        let rest = self.rests_until.saturating_duration_since(begin);
        if !rest.is_zero() {
            return Asked::After(rest);
        }
        self.asked[target] = Some(pass);
        let answer = match send.send(target) {
            Ok(()) => answers.recv_timeout(self.patience),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        let end = Instant::now();
        let took = end - begin;
        let rest = match answer {
            Ok(Answer::Later) => took * REST_IN_VAIN,
            _ => took / REST_DIVISOR,
        };
        self.rests_until = end + rest;
        match answer {
            Ok(answer) => self.take(target, &answer),
            Err(RecvTimeoutError::Timeout) => {
                if !self.patience.is_zero() {
                    let patience = std::mem::take(&mut self.patience);
                    let reason = format!("a source was not pinned within {patience:?}");
                    self.shared.note(reason);
                }
                self.open = Some(target);
            }
            // It has noted why.
            Err(RecvTimeoutError::Disconnected) => self.thread = None,
        }
        Asked::One
    }

    /// Takes in what became of `target`.
    fn take(&mut self, target: usize, answer: &Answer) {
        self.open = matches!(answer, Answer::Copied).then_some(target);
        if matches!(answer, Answer::Staged) {
            self.asked[target] = Some(u64::MAX);
        }
    }
}

/// What is staged: the ranges of files.
fn targets<D: Device>(transfer: &Transfer<D>) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    let mut known = HashMap::new();
    for (kind, program) in transfer.kinds.iter().enumerate() {
        for (visit, program) in program.visits.iter().enumerate() {
            let uploads = program.iter().flat_map(|program| &program.uploads);
            for (position, upload) in uploads.enumerate() {
                let Source::File { file, range } = &upload.source else {
                    continue;
                };
                let key = (Arc::as_ptr(file), range.start, range.end);
                let index = *known.entry(key).or_insert(targets.len());
                if index == targets.len() {
                    targets.push(Target {
                        source: upload.source.clone(),
                        past_cache: upload.past_cache,
                        steps: Vec::new(),
                    });
                }
                targets[index].steps.push((kind, visit, position));
            }
        }
    }
    targets
}

fn pin<D: Device>(
    transfer: &Transfer<D>,
    targets: &[Target],
    shared: &Shared,
    wanted: &Receiver<usize>,
    answers: &Sender<Answer>,
) {
    while let Ok(index) = wanted.recv() {
        let Some(answer) = pin_target(transfer, &targets[index], shared) else {
            return;
        };
        let copied = matches!(answer, Answer::Copied);
        if answers.send(answer).is_err() {
            return;
        }
        if copied {
            let left = targets.iter().rev();
            for target in left.filter(|target| !target.is_pinned(transfer)) {
                if wanted.try_recv() == Err(TryRecvError::Disconnected) {
                    return;
                }
                match pin_target(transfer, target, shared) {
                    // Locking takes turns with the feeder.
                    Some(Answer::Pinned) => break,
                    Some(Answer::Copied | Answer::Later | Answer::Staged) => {}
                    None => return,
                }
            }
            if answers.send(Answer::Later).is_err() {
                return;
            }
        }
    }
}

/// `None` if there is no use in trying others.
fn pin_target<D: Device>(
    transfer: &Transfer<D>,
    target: &Target,
    shared: &Shared,
) -> Option<Answer> {
    let pin = || transfer.device.pin(&target.source);
    match catch_unwind(AssertUnwindSafe(pin)) {
        Ok(Ok(Pinning::Pinned { pinned, rung, note })) => {
            if let Some(note) = note {
                shared.note(note);
            }
            for &(kind, visit, position) in &target.steps {
                transfer.pinned(kind, visit, position, pinned.clone());
            }
            shared.pinned(rung, target.source.len());
            Some(match rung {
                Rung::Copy => Answer::Copied,
                Rung::Mapping | Rung::Memory => Answer::Pinned,
            })
        }
        Ok(Ok(Pinning::Later { reason })) => {
            shared.note(reason);
            Some(Answer::Later)
        }
        Ok(Ok(Pinning::Staged { reason })) => {
            shared.note(reason);
            Some(Answer::Staged)
        }
        Ok(Err(error)) => {
            shared.note(error.to_string());
            None
        }
        Err(_) => {
            shared.note("pinning panicked".to_owned());
            None
        }
    }
}

impl Target {
    fn is_pinned<D: Device>(&self, transfer: &Transfer<D>) -> bool {
        self.steps.iter().all(|&(kind, visit, position)| {
            let program = transfer.program(kind, visit);
            program.is_some_and(|program| program.uploads[position].pinned.get().is_some())
        })
    }
}
