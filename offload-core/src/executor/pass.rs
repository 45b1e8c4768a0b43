//! A pass and its leases.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::device::{Device, DeviceError};
use crate::encoding::Encoding;
use crate::executor::Offload;
use crate::executor::error::OffloadError;
use crate::executor::layout::Location;
use crate::executor::program::VisitProgram;
use crate::executor::report::{Counters, PassReport, Span};
use crate::executor::transfer::{Arrival, Job, Turn, VisitState};
use crate::model::PassKind;
use crate::plan::{LiveWindow, Stage, VisitPlan};
use crate::swappable::Role;

/// What follows the running pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Kind(usize),
    Nothing,
}

/// Which pass an operation is submitted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ahead {
    This,
    Next,
}

/// A pass that has ended for the host and maybe not for the device.
#[derive(Debug, Clone, Copy)]
struct Ended {
    pass: u64,
    epoch: u64,
    kind: usize,
    cold: bool,
    complete: bool,
}

#[derive(Debug)]
struct OpenLease<D: Device> {
    visit: usize,
    holds: [Option<D::Hold>; 2],
}

/// Where the executor stands. Kept here and not in [`Pass`], so that a forgotten pass loses nothing.
#[derive(Debug)]
pub(super) struct Progress<D: Device> {
    /// The next pass cannot build on what is prefetched.
    pub(super) cold: bool,
    /// Transfers were submitted that nobody's compute waited for; the next first transfer of a pass waits for them.
    pub(super) unread: bool,
    /// Number of the running pass, or of the next one.
    pass: u64,
    epoch: u64,
    kind: usize,
    stream: Option<D::Stream>,
    open: bool,
    /// The kind of the pass before, if this one follows it warm.
    previous: Option<usize>,
    next_visit: usize,
    lease: Option<OpenLease<D>>,
    /// Operations of the running pass up to here are issued.
    issued: usize,
    any_issued: bool,
    next: Next,
    /// Operations of the next pass up to here are issued, of this kind.
    head: usize,
    head_kind: usize,
    any_head: bool,
    live: LiveWindow,
    /// The error of this pass, once it surfaced.
    error: Option<OffloadError>,
    /// The pass and visit of an arrival that failed. Its error surfaces there; earlier visits still arrive.
    failed: Option<(u64, usize)>,
    /// The last passes that ended, older first, until their times are taken.
    ended: [Option<Ended>; 2],
    /// A pass whose end is not marked yet, and its stream.
    unmarked: Option<(u64, D::Stream)>,
    /// Streams that read the open lease besides the compute stream, and events for them.
    readers: Vec<D::Stream>,
    /// Of those, the ones that the compute stream could not be made to wait for yet.
    unjoined: Vec<D::Stream>,
    reader_events: Vec<D::Event>,
}

impl<D: Device> Progress<D> {
    pub(super) fn new() -> Self {
        Self {
            cold: true,
            unread: false,
            pass: 0,
            epoch: 0,
            kind: 0,
            stream: None,
            open: false,
            previous: None,
            next_visit: 0,
            lease: None,
            issued: 0,
            any_issued: false,
            next: Next::Kind(0),
            head: 0,
            head_kind: 0,
            any_head: false,
            live: LiveWindow::default(),
            error: None,
            failed: None,
            ended: [None, None],
            unmarked: None,
            readers: Vec::new(),
            unjoined: Vec::new(),
            reader_events: Vec::new(),
        }
    }

    /// The pass for which a head was brought that no pass has taken yet.
    pub(super) fn pass_ahead(&self) -> Option<u64> {
        // While a pass runs `pass` is its own number, afterwards that of the next.
        self.any_head.then_some(self.pass + u64::from(self.open))
    }

    fn turn(&self) -> Turn {
        Turn {
            pass: self.pass,
            epoch: self.epoch,
            kind: self.kind,
            previous: self.previous,
        }
    }

    pub(super) fn forget_head(&mut self) {
        (self.head, self.any_head) = (0, false);
    }
}

impl<D: Device> Offload<D> {
    pub(super) fn begin_pass(
        &mut self,
        kind: usize,
        stream: &D::Stream,
    ) -> Result<(), OffloadError> {
        self.mark_end()?;
        self.harvest_oldest()?;
        // While this pass runs, the next one takes over the events of the pass before the last, on which arrivals of the
        // last depend.
        if let Some(last) = self.progress.ended[1] {
            self.await_last_submission(last);
        }
        let usable = self.progress.head_kind == kind || !self.progress.any_head;
        let warm = !self.progress.cold && usable;
        if !warm {
            self.abandon_transfers();
            self.progress.live = LiveWindow::default();
            self.progress.failed = None;
        }
        let transfer = Arc::clone(&self.transfer);
        let progress = &mut self.progress;
        progress.epoch = transfer.epoch.load(Ordering::Acquire);
        progress.previous = warm.then_some(progress.kind);
        progress.kind = kind;
        progress.stream = Some(stream.clone());
        progress.open = true;
        progress.cold = false;
        progress.next_visit = 0;
        progress.issued = progress.head;
        progress.any_issued = progress.any_head;
        progress.forget_head();
        progress.next = Next::Kind(kind);
        progress.head_kind = kind;
        progress.error = None;
        Counters::add(&self.counters.passes, 1);
        // Fences name the latest reader for all before it: computes of all passes run in one order, whatever stream an
        // engine uses for each.
        let begun = match progress.pass.checked_sub(1) {
            Some(before) => transfer.pass_end(before).wait(&transfer.device, stream),
            None => Ok(()),
        };
        let begin = transfer.pass_begin(progress.pass);
        if let Err(error) = begun.and_then(|()| begin.record(&transfer.device, stream)) {
            self.progress.error = Some(OffloadError::Device(error.clone()));
            self.close_pass();
            return Err(error.into());
        }
        self.pump();
        Ok(())
    }

    /// Ends the running pass, if there is one: as complete if every visit is closed, else as abandoned.
    pub(super) fn close_pass(&mut self) {
        if !self.progress.open {
            return;
        }
        self.close_lease();
        let transfer = Arc::clone(&self.transfer);
        let progress = &mut self.progress;
        progress.open = false;
        let stream = progress.stream.take().expect("an open pass has a stream");
        progress.unmarked = Some((progress.pass, stream));
        let complete = progress.next_visit == transfer.kinds[progress.kind].blocks.len()
            && progress.error.is_none();
        progress.ended[0] = progress.ended[1].replace(Ended {
            pass: progress.pass,
            epoch: progress.epoch,
            kind: progress.kind,
            cold: progress.previous.is_none(),
            complete,
        });
        progress.pass += 1;
        let marked = self.mark_end();
        if !complete || marked.is_err() {
            self.abandon_transfers();
            self.progress.live = LiveWindow::default();
        }
    }

    /// Marks the end of the last pass on its stream. Whatever overwrites its blocks waits for the mark, so a device
    /// that refuses it is asked again before anything else is submitted.
    pub(super) fn mark_end(&mut self) -> Result<(), DeviceError> {
        if let Some((pass, stream)) = &self.progress.unmarked {
            while let (Some(reader), Some(event)) = (
                self.progress.unjoined.last(),
                self.progress.reader_events.first(),
            ) {
                let device = &self.transfer.device;
                let generation = device.record(reader, event)?;
                device.wait(stream, event, generation)?;
                self.progress.unjoined.pop();
            }
            self.transfer
                .pass_end(*pass)
                .record(&self.transfer.device, stream)?;
            self.progress.unmarked = None;
        }
        Ok(())
    }

    /// Submits uploads and decodes as far as the plan's order allows: the rest of this pass, then the head of the next.
    fn pump(&mut self) {
        if self.progress.error.is_some() {
            return; // what comes next may wait for an event that was not recorded
        }
        let transfer = Arc::clone(&self.transfer);
        let closed = self.progress.next_visit - usize::from(self.progress.lease.is_some());
        let kind = self.progress.kind;
        while let Some(operation) = transfer.kinds[kind].operations.get(self.progress.issued) {
            if operation.stage == Stage::Compute {
                if operation.visit >= closed {
                    return;
                }
            } else {
                self.issue(Ahead::This, kind, operation.stage, operation.visit);
            }
            self.progress.issued += 1;
        }
        let Next::Kind(next) = self.progress.next else {
            return;
        };
        if next != self.progress.head_kind && self.progress.head > 0 {
            return; // the head already holds another kind: the next pass starts cold
        }
        self.progress.head_kind = next;
        while let Some(operation) = transfer.kinds[next].operations.get(self.progress.head) {
            if operation.stage == Stage::Compute || operation.needs_closed_before[kind] > closed {
                return;
            }
            self.issue(Ahead::Next, next, operation.stage, operation.visit);
            self.progress.head += 1;
        }
    }

    /// Hands an upload or decode over, unless it may depend on one that failed.
    fn issue(&mut self, ahead: Ahead, kind: usize, stage: Stage, visit: usize) {
        let Progress {
            failed,
            epoch,
            pass,
            ..
        } = self.progress;
        let target = if ahead == Ahead::This { pass } else { pass + 1 };
        if failed.is_some_and(|failed| failed <= (target, visit)) {
            return;
        }
        let transfer = &self.transfer;
        let (pass, previous, issued) = match ahead {
            Ahead::This => (pass, self.progress.previous, &mut self.progress.any_issued),
            Ahead::Next => (
                pass + 1,
                Some(self.progress.kind),
                &mut self.progress.any_head,
            ),
        };
        let first = !std::mem::replace(issued, true);
        let behind_all = first && std::mem::take(&mut self.progress.unread);
        self.progress
            .live
            .submit(stage, &self.plan.kinds[kind].visits[visit]);
        self.counters
            .set_live(self.fixed_bytes() + self.progress.live.now());
        if first {
            transfer.pass_bytes(pass).store(0, Ordering::Relaxed);
        }
        if stage == Stage::Upload {
            transfer.update(pass, kind, visit, |state| {
                let arrival = Arrival::Queued;
                *state = VisitState {
                    pass,
                    epoch,
                    arrival,
                    ..VisitState::default()
                };
            });
        }
        let loaded = Arc::clone(self.loaded.as_ref().expect("passes run while loaded"));
        let job = Job {
            stage,
            pass,
            epoch,
            kind,
            visit,
            previous,
            first,
            behind_all,
            loaded,
        };
        match &self.feeder {
            Some(feeder) => feeder.send(job),
            None => {
                let outcome = transfer.submit(&job);
                if outcome.is_err() {
                    self.progress.failed = Some((pass, visit));
                }
                let block = transfer.block_name(kind, visit);
                transfer.settle(
                    &job,
                    outcome.map_err(|error| OffloadError::of_block(block, error)),
                );
            }
        }
    }

    /// Ends the open lease, if there is one: the block was read up to here.
    fn close_lease(&mut self) {
        let Some(OpenLease { visit, holds }) = self.progress.lease.take() else {
            return;
        };
        let transfer = Arc::clone(&self.transfer);
        let device = &transfer.device;
        let stream = self.progress.stream.clone().expect("a lease has a stream");
        let program = transfer.program(self.progress.kind, visit);
        let readers = std::mem::take(&mut self.progress.readers);
        let join = |(reader, event): (&D::Stream, &D::Event)| {
            let generation = device.record(reader, event)?;
            device.wait(&stream, event, generation)
        };
        let mut ended: Result<(), DeviceError> = Ok(());
        for (reader, event) in readers.iter().zip(&self.progress.reader_events) {
            if let Err(error) = join((reader, event)) {
                self.progress.unjoined.push(reader.clone());
                ended = ended.and(Err(error));
            }
        }
        // Whatever failed before: a hold that is not ended would forbid the range for good. A reader that was not joined
        // still reads; what is written there next waits for the end of the pass, which joins it.
        let reused = program.is_some() && ended.is_ok();
        for (hold, reused) in holds.into_iter().zip([reused, false]) {
            if let Some(hold) = hold {
                ended = ended.and(device.end_read(&stream, hold, reused));
            }
        }
        self.progress.readers = readers;
        self.progress.readers.clear();
        let ended = ended.and_then(|()| self.release(visit, &stream));
        if let Err(error) = ended {
            let block = transfer.block_name(self.progress.kind, visit);
            self.progress
                .error
                .get_or_insert(OffloadError::of_block(block, error));
        }
        self.pump();
    }

    /// Records that the compute stream is done with a visit, or passed over it.
    fn release(&mut self, visit: usize, stream: &D::Stream) -> Result<(), DeviceError> {
        let transfer = &self.transfer;
        let (pass, kind) = (self.progress.pass, self.progress.kind);
        if transfer.program(kind, visit).is_none() {
            return Ok(());
        }
        let event = &transfer.events(pass, kind, visit).compute;
        let generation = transfer.device.record(stream, event)?;
        transfer.update(pass, kind, visit, |state| state.compute = generation);
        self.progress
            .live
            .submit(Stage::Compute, &self.plan.kinds[kind].visits[visit]);
        self.counters
            .set_live(self.fixed_bytes() + self.progress.live.now());
        Ok(())
    }

    fn acquire(&mut self) -> Result<bool, OffloadError> {
        self.close_lease();
        if let Some(error) = &self.progress.error {
            return Err(error.clone());
        }
        let visit = self.progress.next_visit;
        if visit == self.transfer.kinds[self.progress.kind].blocks.len() {
            return Ok(false);
        }
        match self.open_lease(visit) {
            Ok(()) => {
                self.progress.next_visit += 1;
                Counters::add(&self.counters.visits, 1);
                Ok(true)
            }
            Err(error) => {
                self.progress.error = Some(error.clone());
                Err(error)
            }
        }
    }

    fn open_lease(&mut self, visit: usize) -> Result<(), OffloadError> {
        let transfer = Arc::clone(&self.transfer);
        let (device, pass, kind) = (&transfer.device, self.progress.pass, self.progress.kind);
        let stream = self
            .progress
            .stream
            .clone()
            .expect("an open pass has a stream");
        let block = transfer.kinds[kind].blocks[visit];
        let of_block = |error| OffloadError::of_block(&transfer.names[block], error);
        if let Some(program) = transfer.program(kind, visit) {
            self.await_arrival(pass, kind, visit)?;
            let generation = device
                .record(&stream, &transfer.events(pass, kind, visit).reach)
                .map_err(of_block)?;
            transfer.update(pass, kind, visit, |state| state.reach = generation);
            let after = program.after(Stage::Compute);
            transfer
                .fence(&stream, after, self.progress.turn())
                .map_err(of_block)?;
        }
        let loaded = self.loaded.as_ref().expect("passes run while loaded");
        let plan = &self.plan.blocks[block];
        let place = self.plan.kinds[kind].visits[visit].place.or(plan.resident);
        let mut holds = [None, None];
        for (index, range) in [place, plan.remainder].into_iter().enumerate() {
            let Some(range) = range else { continue };
            match device.begin_read(&stream, &loaded.arena, range.range()) {
                Ok(hold) => holds[index] = Some(hold),
                Err(error) => {
                    // The visit is not leased, so nobody else would end what was begun.
                    for hold in holds.into_iter().flatten() {
                        let _ = device.end_read(&stream, hold, false);
                    }
                    return Err(of_block(error));
                }
            }
        }
        self.progress.lease = Some(OpenLease { visit, holds });
        Ok(())
    }

    fn await_arrival(&self, pass: u64, kind: usize, visit: usize) -> Result<(), OffloadError> {
        let begin = std::time::Instant::now();
        if self.transfer.await_submission(pass, kind, visit)? {
            let ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            Counters::add(&self.counters.submission_waits, 1);
            Counters::add(&self.counters.submission_wait_ns, ns);
        }
        Ok(())
    }

    fn skip(&mut self) -> Result<bool, OffloadError> {
        self.close_lease();
        if let Some(error) = &self.progress.error {
            return Err(error.clone());
        }
        let (kind, visit) = (self.progress.kind, self.progress.next_visit);
        if visit == self.transfer.kinds[kind].blocks.len() {
            return Ok(false);
        }
        if self.progress.failed == Some((self.progress.pass, visit)) {
            let arrival = self.transfer.state(self.progress.pass, kind, visit).arrival;
            if let Arrival::Failed(error) = arrival {
                self.progress.error = Some(error.clone());
                return Err(error);
            }
        }
        let stream = self
            .progress
            .stream
            .clone()
            .expect("an open pass has a stream");
        // Its arrival was issued, because everything it depends on is closed; only its reader is missing.
        if let Err(error) = self.release(visit, &stream) {
            let error = OffloadError::of_block(self.transfer.block_name(kind, visit), error);
            self.progress.error = Some(error.clone());
            return Err(error);
        }
        self.progress.next_visit += 1;
        self.progress.unread |= self.transfer.program(kind, visit).is_some();
        Counters::add(&self.counters.skipped, 1);
        self.pump();
        Ok(true)
    }

    /// Waits for the pass before the last, and takes its times.
    fn harvest_oldest(&mut self) -> Result<(), OffloadError> {
        let Some(ended) = self.progress.ended[0] else {
            return Ok(());
        };
        let waited = self.timed_wait(|| self.await_end(ended))?;
        Counters::add(&self.counters.pass_waits, 1);
        Counters::add(&self.counters.pass_wait_ns, waited);
        self.progress.ended[0] = None;
        self.harvest(ended)
    }

    /// The last streamed visit of a pass that is complete, once it is submitted. Somebody who leased it waited for that
    /// already; nobody did if it was skipped.
    fn await_last_submission(&self, ended: Ended) -> Option<usize> {
        let visits = &self.transfer.kinds[ended.kind].visits;
        let last = visits
            .iter()
            .rposition(Option::is_some)
            .filter(|_| ended.complete)?;
        // One that failed has nothing under way; its error surfaces where it is needed.
        self.transfer
            .await_submission(ended.pass, ended.kind, last)
            .ok()
            .map(|_| last)
    }

    /// Waits until the device is done with a pass: with its last compute and its last arrival. Arrivals of an abandoned
    /// pass are behind the cold start that follows.
    fn await_end(&self, ended: Ended) -> Result<(), DeviceError> {
        let transfer = &self.transfer;
        transfer
            .pass_end(ended.pass)
            .synchronize(&transfer.device)?;
        let Some(last) = self.await_last_submission(ended) else {
            return Ok(());
        };
        let state = transfer.state(ended.pass, ended.kind, last);
        let events = transfer.events(ended.pass, ended.kind, last);
        let stage = transfer
            .program(ended.kind, last)
            .map(VisitProgram::last_stage);
        let (event, generation) = match stage {
            Some(Stage::Decode) => (&events.decode, state.decode),
            _ => (&events.upload, state.upload),
        };
        // 0: a worker dropped it, because the pass after this one was abandoned in the meantime.
        if generation.0 == 0 {
            Ok(())
        } else {
            transfer.device.synchronize(event, generation)
        }
    }

    pub(super) fn harvest_all(&mut self) -> Result<(), OffloadError> {
        self.mark_end()?;
        for slot in 0..2 {
            if let Some(ended) = self.progress.ended[slot] {
                self.await_end(ended)?;
                self.progress.ended[slot] = None;
                self.harvest(ended)?;
            }
        }
        Ok(())
    }

    fn harvest(&mut self, ended: Ended) -> Result<(), OffloadError> {
        let Ended {
            pass,
            kind,
            cold,
            complete,
            epoch,
        } = ended;
        if !complete {
            // It may have ended before its events were recorded.
            Counters::add(&self.counters.abandoned, 1);
            return Ok(());
        }
        let transfer = Arc::clone(&self.transfer);
        let device = &transfer.device;
        let pass_s = device.elapsed(
            &transfer.pass_begin(pass).event,
            &transfer.pass_end(pass).event,
        )?;
        let mut stall_s = 0.0;
        for visit in 0..transfer.kinds[kind].visits.len() {
            let Some(program) = transfer.program(kind, visit) else {
                continue;
            };
            let state = transfer.state(pass, kind, visit);
            if (state.pass, state.epoch) != (pass, epoch) || state.reach.0 == 0 {
                continue; // skipped, or never reached
            }
            let events = transfer.events(pass, kind, visit);
            let arrived = if program.table.is_some() {
                &events.decode
            } else {
                &events.upload
            };
            let stalled = device.elapsed(&events.reach, arrived)?.max(0.0);
            stall_s += stalled;
            if let (Some(origin), Some([upload, decode])) = (&self.origin, &events.begin) {
                let block = transfer.block_name(kind, visit);
                let mut span = |stage, from: &D::Event, to: &D::Event, shift: f64| {
                    let begin_s = device.elapsed(origin, from)? + shift;
                    let end_s = device.elapsed(origin, to)?;
                    let block = block.to_owned();
                    self.history.spans.push(Span {
                        stage,
                        block,
                        pass,
                        begin_s,
                        end_s,
                    });
                    Ok::<_, DeviceError>(())
                };
                span("upload", upload, &events.upload, 0.0)?;
                if program.table.is_some() {
                    span("decode", decode, &events.decode, 0.0)?;
                }
                if stalled > 0.0 {
                    span("stall", &events.reach, arrived, 0.0)?;
                }
                if state.compute.0 > 0 {
                    span("compute", &events.reach, &events.compute, stalled)?;
                }
            }
        }
        self.history.push(PassReport {
            pass,
            kind,
            pass_s,
            stall_s,
            cold,
        });
        Ok(())
    }
}

/// One walk over the visits of a pass kind. Dropping it before the last visit abandons the rest.
#[must_use]
pub struct Pass<'a, D: Device> {
    offload: &'a mut Offload<D>,
}

impl<'a, D: Device> Pass<'a, D> {
    pub(super) fn new(offload: &'a mut Offload<D>) -> Self {
        Self { offload }
    }

    /// The lease of the next visit's block, or `None` after the last.
    ///
    /// The compute stream waits for the block; the host does not, except for a worker's submission. A lease that was
    /// forgotten is released first.
    ///
    /// # Errors
    /// When the block could not be brought. The error sticks for the pass; the next pass tries again.
    pub fn acquire(&mut self) -> Result<Option<Lease<'_, D>>, OffloadError> {
        Ok(if self.offload.acquire()? {
            Some(Lease {
                offload: self.offload,
            })
        } else {
            None
        })
    }

    /// Passes over the next visit; false after the last.
    ///
    /// Its bytes are moved all the same: a visit list without it (a pass kind) saves them.
    ///
    /// # Errors
    /// When the device fails.
    pub fn skip(&mut self) -> Result<bool, OffloadError> {
        self.offload.skip()
    }

    /// Says that a pass of `kind` will follow, so that its first blocks are brought while this one ends. Without it,
    /// the same kind is expected. A wrong hint costs an exposed copy, never wrong bytes.
    ///
    /// # Panics
    /// When the model has no such kind.
    pub fn then(&mut self, kind: PassKind) {
        let kind_count = self.offload.plan.kinds.len();
        assert!(
            kind.index() < kind_count,
            "contract: pass kind {} of {kind_count}",
            kind.0
        );
        self.offload.progress.next = Next::Kind(kind.index());
    }

    /// Says that no pass follows, so that nothing is brought for it.
    pub fn last(&mut self) {
        self.offload.progress.next = Next::Nothing;
    }

    /// Visits of this pass, closed ones included.
    #[must_use]
    pub fn visit_count(&self) -> usize {
        self.offload.transfer.kinds[self.offload.progress.kind]
            .blocks
            .len()
    }
}

impl<D: Device> Drop for Pass<'_, D> {
    fn drop(&mut self) {
        self.offload.close_pass();
    }
}

impl<D: Device> fmt::Debug for Pass<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = &self.offload.progress;
        f.debug_struct("Pass")
            .field("pass", &progress.pass)
            .field("kind", &progress.kind)
            .field("next_visit", &progress.next_visit)
            .finish_non_exhaustive()
    }
}

/// The right to compute with a block. Dropping it marks, on the compute stream, that the block was read.
#[must_use]
pub struct Lease<'p, D: Device> {
    offload: &'p mut Offload<D>,
}

impl<D: Device> Lease<'_, D> {
    fn open(&self) -> &OpenLease<D> {
        self.offload
            .progress
            .lease
            .as_ref()
            .expect("a lease is open while it lives")
    }

    /// Which visit of the pass this is.
    #[must_use]
    pub fn visit(&self) -> usize {
        self.open().visit
    }

    /// Index of the block in the model.
    #[must_use]
    pub fn block_index(&self) -> usize {
        self.visit_plan().block
    }

    /// The block's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.offload.model.blocks()[self.block_index()].name()
    }

    /// Whether the block was brought for this visit.
    #[must_use]
    pub fn is_streamed(&self) -> bool {
        self.visit_plan().place.is_some()
    }

    fn visit_plan(&self) -> &VisitPlan {
        &self.offload.plan.kinds[self.offload.progress.kind].visits[self.visit()]
    }

    /// Names of the block's tensors, in their order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.offload.model.blocks()[self.block_index()]
            .tensors()
            .iter()
            .map(|tensor| tensor.name())
    }

    /// Names and roles of the block's tensors, in their order.
    pub fn tensor_roles(&self) -> impl Iterator<Item = (&str, Role)> {
        let tensors = self.offload.model.blocks()[self.block_index()].tensors();
        tensors.iter().map(|tensor| (tensor.name(), tensor.role()))
    }

    /// A tensor as it arrived.
    ///
    /// # Errors
    /// When the block has no such tensor, or the pass kind does not demand it.
    pub fn tensor(&self, name: &str) -> Result<ArrivedTensor<'_, D>, OffloadError> {
        let block = self.block_index();
        let of_block = || self.name().to_owned();
        let Some(&position) = self.offload.tensors[block].get(name) else {
            return Err(OffloadError::NoSuchTensor {
                block: of_block(),
                tensor: name.to_owned(),
            });
        };
        let kind = &self.offload.model.kinds()[self.offload.progress.kind];
        if !kind.demands(block, position) {
            return Err(OffloadError::NotDemanded {
                block: of_block(),
                tensor: name.to_owned(),
                kind: kind.name().to_owned(),
            });
        }
        Ok(ArrivedTensor {
            lease: self,
            block,
            position,
        })
    }

    /// Has `stream` wait for the block, for engines that compute on several streams.
    ///
    /// # Errors
    /// When the device fails.
    pub fn wait_on(&self, stream: &D::Stream) -> Result<(), OffloadError> {
        let transfer = &self.offload.transfer;
        let progress = &self.offload.progress;
        let of_block = |error| OffloadError::of_block(self.name(), error);
        let visit = self.visit();
        if let Some(program) = transfer.program(progress.kind, visit) {
            let after = program.after(Stage::Compute);
            transfer
                .fence(stream, after, progress.turn())
                .map_err(of_block)?;
        }
        Ok(())
    }

    /// Counts the work that `stream` has when the lease drops as reading the block. The pass's own stream then waits
    /// for it too.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_on(&mut self, stream: &D::Stream) -> Result<(), OffloadError> {
        let progress = &mut self.offload.progress;
        if progress.reader_events.len() == progress.readers.len() {
            progress
                .reader_events
                .push(self.offload.transfer.device.create_event()?);
        }
        progress.readers.push(stream.clone());
        Ok(())
    }
}

impl<D: Device> Drop for Lease<'_, D> {
    fn drop(&mut self) {
        self.offload.close_lease();
    }
}

impl<D: Device> fmt::Debug for Lease<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("block", &self.name())
            .field("visit", &self.visit())
            .finish()
    }
}

/// A tensor on the device, for as long as its lease lives.
#[derive(Debug)]
pub struct ArrivedTensor<'l, D: Device> {
    lease: &'l Lease<'l, D>,
    block: usize,
    position: usize,
}

impl<'l, D: Device> ArrivedTensor<'l, D> {
    /// Its dimensions, slowest axis first.
    #[must_use]
    pub fn shape(&self) -> &'l [u64] {
        let lease: &'l Lease<'l, D> = self.lease;
        lease.offload.model.blocks()[self.block].tensors()[self.position].shape()
    }

    /// How its numbers are encoded now.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.lease.offload.layouts[self.block].tensors[self.position].arrived
    }

    /// Bytes it takes.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.lease.offload.layouts[self.block].tensors[self.position].arrived_bytes
    }

    /// Its offset in the arena, and which of the lease's holds covers it.
    fn locate(&self) -> (u64, usize) {
        let offload = &self.lease.offload;
        let plan = &offload.plan.blocks[self.block];
        match offload.layouts[self.block].tensors[self.position].location {
            Location::Remainder(offset) => (
                plan.remainder
                    .expect("the plan places every remainder")
                    .offset
                    + offset,
                1,
            ),
            Location::Place(offset) => {
                let place = self.lease.visit_plan().place.or(plan.resident);
                (place.map_or(0, |place| place.offset) + offset, 0)
            }
        }
    }

    /// Its device address. It is the caller's to stop using when the lease ends.
    #[must_use]
    pub fn address(&self) -> u64 {
        let offload = &self.lease.offload;
        let arena = &offload
            .loaded
            .as_ref()
            .expect("leases live while loaded")
            .arena;
        offload.transfer.device.address(arena, self.locate().0)
    }

    /// Names it to code that runs on the device.
    #[must_use]
    pub fn view(&self) -> D::View {
        let offload = &self.lease.offload;
        let arena = &offload
            .loaded
            .as_ref()
            .expect("leases live while loaded")
            .arena;
        let (offset, _) = self.locate();
        offload
            .transfer
            .device
            .view(arena, offset..offset + self.byte_len())
    }

    /// Its bytes, where the host can look at them: on the CPU device, over a stream that runs on the caller's thread.
    #[must_use]
    pub fn host_bytes(&self) -> Option<&'l [u8]> {
        let lease: &'l Lease<'l, D> = self.lease;
        if self.byte_len() == 0 {
            return Some(&[]);
        }
        let (offset, hold) = self.locate();
        let hold = lease.open().holds[hold].as_ref()?;
        lease
            .offload
            .transfer
            .device
            .host_bytes(hold, offset..offset + self.byte_len())
    }
}
