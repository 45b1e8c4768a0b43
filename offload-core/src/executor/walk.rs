//! Where the executor stands in its passes: what is submitted when, and what waits for what.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::device::{Device, DeviceError};
use crate::executor::Offload;
use crate::executor::error::OffloadError;
use crate::executor::program::{OperationProgram, VisitProgram};
use crate::executor::report::Counters;
use crate::executor::transfer::{Arrival, Job, Turn};
use crate::plan::{LiveWindow, PassRef, Stage};

/// What follows the running pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
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
pub(super) struct Ended {
    pub(super) pass: u64,
    pub(super) epoch: u64,
    pub(super) kind: usize,
    pub(super) cold: bool,
    pub(super) complete: bool,
}

#[derive(Debug)]
pub(super) struct OpenLease<D: Device> {
    pub(super) visit: usize,
    pub(super) holds: [Option<D::Hold>; 2],
}

/// Where the executor stands. Kept here and not in [`Pass`], so that a forgotten pass loses nothing.
#[derive(Debug)]
pub(super) struct Progress<D: Device> {
    /// The next pass cannot build on what is prefetched.
    pub(super) cold: bool,
    /// Transfers were submitted that nobody's compute waited for; the next first transfer of a pass waits for them.
    pub(super) unread: bool,
    /// The same for the compute stream, on which packed blocks are decoded at use: it waits for no upload of theirs.
    pub(super) stray: bool,
    /// Number of the running pass, or of the next one.
    pub(super) pass: u64,
    epoch: u64,
    pub(super) kind: usize,
    pub(super) stream: Option<D::Stream>,
    open: bool,
    /// The kind of the pass before, if this one follows it warm.
    previous: Option<usize>,
    pub(super) next_visit: usize,
    /// So many parts of the next visit are decoded at its use.
    decoded: usize,
    pub(super) lease: Option<OpenLease<D>>,
    /// Operations of the running pass up to here are issued.
    issued: usize,
    any_issued: bool,
    pub(super) next: Next,
    /// Operations of the next pass up to here are issued, of this kind.
    head: usize,
    head_kind: usize,
    any_head: bool,
    live: LiveWindow,
    /// The error of this pass, once it was met.
    error: Option<OffloadError>,
    /// Whether the caller was given it.
    told: bool,
    /// An error that a pass ended with before the caller was given it; the next call that can fail does.
    owed: Option<OffloadError>,
    /// The pass and visit of an arrival that failed. Its error surfaces there; earlier visits still arrive.
    failed: Option<(u64, usize)>,
    /// The last passes that ended, older first, until their times are taken.
    pub(super) ended: [Option<Ended>; 2],
    /// A pass whose end is not marked yet, and its stream.
    unmarked: Option<(u64, D::Stream)>,
    /// Streams that read the open lease besides the compute stream, and events for them.
    pub(super) readers: Vec<D::Stream>,
    /// Of those, the ones that the compute stream could not be made to wait for yet.
    unjoined: Vec<D::Stream>,
    pub(super) reader_events: Vec<D::Event>,
}

/// A part, as plans count them.
fn number(part: usize) -> u32 {
    u32::try_from(part).expect("parts are fewer than tensors")
}

impl<D: Device> Progress<D> {
    pub(super) fn new() -> Self {
        Self {
            cold: true,
            unread: false,
            stray: false,
            pass: 0,
            epoch: 0,
            kind: 0,
            stream: None,
            open: false,
            previous: None,
            next_visit: 0,
            decoded: 0,
            lease: None,
            issued: 0,
            any_issued: false,
            next: Next::Kind(0),
            head: 0,
            head_kind: 0,
            any_head: false,
            live: LiveWindow::default(),
            error: None,
            told: false,
            owed: None,
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

    pub(super) fn turn(&self) -> Turn {
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
        let last = self.progress.ended[1].map(|last| self.await_last_submissions(last));
        // An arrival failed that nobody waited for, because its visit was skipped. Whatever came after it was given up.
        let failed = matches!(last, Some(Err(_)));
        let epoch = self.transfer.epoch.load(Ordering::Acquire);
        if !self.direct && !self.transfer.has_failed(epoch) && self.transfer.is_all_pinned() {
            // Once: what the feeder has of this pass goes first.
            self.drain_feeder();
            self.direct = !self.transfer.has_failed(epoch);
        }
        let usable = self.progress.head_kind == kind || !self.progress.any_head;
        let warm = !self.progress.cold && usable && !failed;
        if !warm {
            self.abandon_transfers();
            self.progress.live = LiveWindow::default();
            self.progress.failed = None;
        }
        let transfer = Arc::clone(&self.transfer);
        let strays = transfer.packs_at_use && self.progress.stray;
        if strays && !warm {
            self.drain_feeder(); // it may be about to submit part of what was given up
        }
        let progress = &mut self.progress;
        progress.epoch = transfer.epoch.load(Ordering::Acquire);
        progress.previous = warm.then_some(progress.kind);
        progress.kind = kind;
        progress.stream = Some(stream.clone());
        progress.open = true;
        progress.cold = false;
        (progress.next_visit, progress.decoded) = (0, 0);
        progress.issued = progress.head;
        progress.any_issued = progress.any_head;
        progress.forget_head();
        progress.next = Next::Kind(kind);
        progress.head_kind = kind;
        (progress.error, progress.told) = (None, false);
        Counters::add(&self.counters.passes, 1);
        // Fences name the latest reader for all before it: computes of all passes run in one order, whatever stream an
        // engine uses for each.
        let begun = match progress.pass.checked_sub(1) {
            Some(before) => transfer.pass_end(before).wait(&transfer.device, stream),
            None => Ok(()),
        };
        let begun = begun.and_then(|()| {
            if strays {
                transfer.strays.record(&transfer.device, &transfer.upload)?;
                transfer.strays.wait(&transfer.device, stream)?;
                progress.stray = false;
            }
            Ok(())
        });
        let begin = transfer.pass_begin(progress.pass);
        if let Err(error) = begun.and_then(|()| begin.record(&transfer.device, stream)) {
            let error = self.fail(OffloadError::Device(error));
            self.close_pass();
            return Err(error);
        }
        // The head of the next pass waits for the first visit: before that the caller may say what follows.
        self.pump_this();
        Ok(())
    }

    /// The error that a pass ended with before anybody could be told.
    pub(super) fn take_owed(&mut self) -> Result<(), OffloadError> {
        self.progress.owed.take().map_or(Ok(()), Err)
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
        if !progress.told && progress.error.is_some() {
            progress.owed = progress.error.take();
        }
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

    /// Visits of the running pass that are closed.
    fn closed(&self) -> usize {
        self.progress.next_visit - usize::from(self.progress.lease.is_some())
    }

    /// Submits uploads and decodes of this pass as far as the plan's order allows. Returns whether that was all of them.
    fn pump_this(&mut self) -> bool {
        if self.progress.error.is_some() {
            return false; // what comes next may wait for an event that was not recorded
        }
        let transfer = Arc::clone(&self.transfer);
        let (kind, closed) = (self.progress.kind, self.closed());
        while let Some(operation) = transfer.kinds[kind].operations.get(self.progress.issued) {
            if operation.with_visit {
                let submitted = match operation.stage {
                    Stage::Compute => operation.visit < closed,
                    Stage::Upload | Stage::Decode => {
                        (operation.visit, operation.part)
                            < (self.progress.next_visit, self.progress.decoded)
                    }
                };
                if !submitted {
                    return false;
                }
            } else {
                self.issue(Ahead::This, kind, operation);
            }
            self.progress.issued += 1;
        }
        true
    }

    /// Submits the rest of this pass, then the head of the next, as far as the plan's order allows.
    fn pump(&mut self) {
        if !self.pump_this() {
            return;
        }
        let transfer = Arc::clone(&self.transfer);
        let (kind, closed) = (self.progress.kind, self.closed());
        let Next::Kind(next) = self.progress.next else {
            return;
        };
        if next != self.progress.head_kind && self.progress.head > 0 {
            return; // the head already holds another kind: the next pass starts cold
        }
        self.progress.head_kind = next;
        while let Some(operation) = transfer.kinds[next].operations.get(self.progress.head) {
            if operation.with_visit || operation.needs_closed_before[kind] > closed {
                return;
            }
            self.issue(Ahead::Next, next, operation);
            self.progress.head += 1;
        }
    }

    /// Hands an upload or decode over, unless it may depend on one that failed.
    fn issue(&mut self, ahead: Ahead, kind: usize, operation: &OperationProgram) {
        let &OperationProgram {
            stage, visit, part, ..
        } = operation;
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
            .submit(stage, number(part), &self.plan.kinds[kind].visits[visit]);
        self.counters
            .set_live(self.fixed_bytes() + self.progress.live.now());
        if first {
            transfer.pass_bytes(pass).store(0, Ordering::Relaxed);
        }
        let ahead = (transfer.program(kind, visit)).and_then(VisitProgram::ahead);
        if ahead.is_some_and(|[first, _]| (first, 0) == (stage, part)) {
            transfer.update(pass, kind, visit, |state| state.begin(pass, epoch));
        }
        let loaded = Arc::clone(self.loaded.as_ref().expect("passes run while loaded"));
        let job = Job {
            stage,
            pass,
            epoch,
            kind,
            visit,
            part,
            previous,
            first,
            behind_all,
            loaded,
        };
        match &self.feeder {
            Some(feeder) if !self.direct => feeder.send(job),
            _ => {
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
    pub(super) fn close_lease(&mut self) {
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
        if transfer.program(kind, visit).is_none() && !transfer.traces(kind, visit) {
            return Ok(());
        }
        let event = &transfer.events(pass, kind, visit).compute;
        let generation = transfer.device.record(stream, event)?;
        transfer.update(pass, kind, visit, |state| state.compute = generation);
        self.progress
            .live
            .submit(Stage::Compute, 0, &self.plan.kinds[kind].visits[visit]);
        self.counters
            .set_live(self.fixed_bytes() + self.progress.live.now());
        Ok(())
    }

    pub(super) fn acquire(&mut self) -> Result<bool, OffloadError> {
        self.close_lease();
        if let Some(error) = self.progress.error.clone() {
            return Err(self.fail(error));
        }
        let visit = self.progress.next_visit;
        if visit == self.transfer.kinds[self.progress.kind].blocks.len() {
            return Ok(false);
        }
        if visit == 0 {
            self.pump();
        }
        match self.open_lease(visit) {
            Ok(()) => {
                self.go_on();
                Counters::add(&self.counters.visits, 1);
                let program = self.transfer.program(self.progress.kind, visit);
                if program.is_some_and(|program| program.at_use && program.uploaded) {
                    self.pump(); // its staging is free once it is decoded
                }
                Ok(true)
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// The next visit is the one after.
    fn go_on(&mut self) {
        self.progress.next_visit += 1;
        self.progress.decoded = 0;
    }

    /// Keeps an error for the rest of the pass, and gives it to the caller.
    fn fail(&mut self, error: OffloadError) -> OffloadError {
        self.progress.told = true;
        self.progress.error.insert(error).clone()
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
        let loaded = Arc::clone(self.loaded.as_ref().expect("passes run while loaded"));
        if let Some(program) = transfer.program(kind, visit) {
            self.reach(program, visit)?;
            let events = transfer.events(pass, kind, visit);
            // Only what waits can stall.
            if program.ahead().is_some() || transfer.traces(kind, visit) {
                let generation = device.record(&stream, &events.reach).map_err(of_block)?;
                transfer.update(pass, kind, visit, |state| state.reach = generation);
            }
            let turn = self.progress.turn();
            if program.at_use {
                self.progress
                    .live
                    .submit(Stage::Decode, 0, &self.plan.kinds[kind].visits[visit]);
                self.counters
                    .set_live(self.fixed_bytes() + self.progress.live.now());
                for part in 0..program.parts.len() {
                    if part > 0 && program.uploaded {
                        // Its upload may wait for the staging of a part before it.
                        self.pump_this();
                        self.await_arrival(pass, kind, visit, part + 1)?;
                    }
                    transfer
                        .decode(&stream, turn, (visit, part), &loaded)
                        .map_err(of_block)?;
                    self.progress.decoded = part + 1;
                }
            }
            transfer
                .fence(&stream, program.after(Stage::Compute, 0), turn)
                .map_err(of_block)?;
        } else if transfer.traces(kind, visit) {
            let (epoch, events) = (self.progress.epoch, transfer.events(pass, kind, visit));
            let generation = device.record(&stream, &events.reach).map_err(of_block)?;
            transfer.update(pass, kind, visit, |state| {
                state.begin(pass, epoch);
                state.reach = generation;
            });
        }
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

    /// Why an arrival of this visit, or of one before it in this pass, was not submitted. Of one before only if that was
    /// skipped before all of it could be.
    fn failure_up_to(&self, visit: usize) -> Option<OffloadError> {
        let Progress { pass, kind, .. } = self.progress;
        let (_, failed) =
            (self.progress.failed).filter(|&(of, failed)| of == pass && failed <= visit)?;
        (self.transfer).with_state(pass, kind, failed, |state| match &state.arrival {
            Arrival::Failed(error) => Some(error.clone()),
            Arrival::Idle | Arrival::Queued => None,
        })
    }

    /// Waits until what arrives ahead of a visit is submitted. What does not has its state begin here.
    fn reach(&self, program: &VisitProgram<D>, visit: usize) -> Result<(), OffloadError> {
        if let Some(error) = self.failure_up_to(visit) {
            return Err(error);
        }
        let Progress {
            pass, epoch, kind, ..
        } = self.progress;
        if program.ahead().is_none() {
            (self.transfer).update(pass, kind, visit, |state| state.begin(pass, epoch));
        } else if program.at_use {
            self.await_arrival(pass, kind, visit, 1)?;
        } else {
            self.await_arrival(pass, kind, visit, program.parts.len())?;
        }
        if program.at_use {
            // What was uploaded to its place for a visit that was skipped.
            let uploads = program.after(Stage::Decode, 0).iter().filter(|one| {
                (one.pass, one.stage) == (PassRef::This, Stage::Upload)
                    && one.visit as usize != visit
            });
            for upload in uploads {
                self.await_arrival(pass, kind, upload.visit as usize, upload.part as usize + 1)?;
            }
        }
        Ok(())
    }

    fn await_arrival(
        &self,
        pass: u64,
        kind: usize,
        visit: usize,
        parts: usize,
    ) -> Result<(), OffloadError> {
        let begin = std::time::Instant::now();
        if self.transfer.await_submission(pass, kind, visit, parts)? {
            let ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
            Counters::add(&self.counters.submission_waits, 1);
            Counters::add(&self.counters.submission_wait_ns, ns);
        }
        Ok(())
    }

    pub(super) fn skip(&mut self) -> Result<bool, OffloadError> {
        self.close_lease();
        if let Some(error) = self.progress.error.clone() {
            return Err(self.fail(error));
        }
        let (kind, visit) = (self.progress.kind, self.progress.next_visit);
        if visit == self.transfer.kinds[kind].blocks.len() {
            return Ok(false);
        }
        if let Some(error) = self.failure_up_to(visit) {
            return Err(self.fail(error));
        }
        let stream = self
            .progress
            .stream
            .clone()
            .expect("an open pass has a stream");
        // Its arrival was issued, because everything it depends on is closed; only its reader is missing.
        if let Err(error) = self.pass_over(visit, &stream) {
            let error = OffloadError::of_block(self.transfer.block_name(kind, visit), error);
            return Err(self.fail(error));
        }
        self.go_on();
        let program = self.transfer.program(kind, visit);
        let moved = program.is_some_and(|program| program.ahead().is_some());
        self.progress.unread |= moved;
        self.progress.stray |= moved;
        Counters::add(&self.counters.skipped, 1);
        self.pump();
        Ok(true)
    }

    /// Records that nothing computes with a visit, nor decodes at its use.
    fn pass_over(&mut self, visit: usize, stream: &D::Stream) -> Result<(), DeviceError> {
        let transfer = Arc::clone(&self.transfer);
        let Progress {
            pass, epoch, kind, ..
        } = self.progress;
        if let Some(program) = transfer.program(kind, visit) {
            if program.ahead().is_none() {
                transfer.update(pass, kind, visit, |state| state.begin(pass, epoch));
            }
            if program.at_use {
                // For those who wait for the decodes.
                let plan = &self.plan.kinds[kind].visits[visit];
                self.progress.live.submit(Stage::Decode, 0, plan);
                for part in 0..program.parts.len() {
                    transfer.mark_decoded(stream, self.progress.turn(), (visit, part))?;
                }
            }
        }
        self.release(visit, stream)
    }
}
