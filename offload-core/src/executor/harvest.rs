//! How long passes took: waits for those that have ended, and takes their times from the events.

use std::sync::Arc;

use crate::device::{Device, DeviceError};
use crate::executor::Offload;
use crate::executor::error::OffloadError;
use crate::executor::program::VisitProgram;
use crate::executor::report::{Counters, PassReport, Span};
use crate::executor::transfer::VisitState;
use crate::executor::walk::Ended;
use crate::plan::Stage;

impl<D: Device> Offload<D> {
    /// Waits for the pass before the last, and takes its times.
    pub(super) fn harvest_oldest(&mut self) -> Result<(), OffloadError> {
        let Some(ended) = self.progress.ended[0] else {
            return Ok(());
        };
        let waited = self.timed_wait(|| self.await_end(ended))?;
        Counters::add(&self.counters.pass_waits, 1);
        Counters::add(&self.counters.pass_wait_ns, waited);
        self.progress.ended[0] = None;
        self.harvest(ended)
    }

    /// The last visits of a pass that is complete whose arrivals are on either stream, once they are submitted. Somebody
    /// who leased them waited for that already; nobody did if they were skipped.
    ///
    /// # Errors
    /// When one failed, or an arrival before it. Nothing of it is under way then.
    pub(super) fn await_last_submissions(
        &self,
        ended: Ended,
    ) -> Result<[Option<usize>; 2], OffloadError> {
        let visits = &self.transfer.kinds[ended.kind].visits;
        let last_on = |stage: Stage| {
            let ends_there = |visit: &Option<VisitProgram<D>>| {
                let ahead = visit.as_ref().and_then(VisitProgram::ahead);
                ahead.is_some_and(|[_, last]| last == stage)
            };
            (visits.iter().rposition(ends_there)).filter(|_| ended.complete)
        };
        let last = [last_on(Stage::Upload), last_on(Stage::Decode)];
        for visit in last.into_iter().flatten() {
            let parts = visits[visit].as_ref().map_or(0, |visit| visit.parts.len());
            self.transfer
                .await_submission(ended.pass, ended.kind, visit, parts)?;
        }
        Ok(last)
    }

    /// Waits until the device is done with a pass: with its last compute and its last arrival. Arrivals of an abandoned
    /// pass are behind the cold start that follows.
    fn await_end(&self, ended: Ended) -> Result<(), DeviceError> {
        let transfer = &self.transfer;
        transfer
            .pass_end(ended.pass)
            .synchronize(&transfer.device)?;
        // One that failed concerns nobody but the visits that need it.
        let Ok([uploaded, decoded]) = self.await_last_submissions(ended) else {
            return Ok(());
        };
        for (visit, stage) in [(uploaded, Stage::Upload), (decoded, Stage::Decode)] {
            let Some(visit) = visit else { continue };
            let Ended { pass, kind, .. } = ended;
            let part = transfer
                .program(kind, visit)
                .map_or(0, VisitProgram::last_part);
            let event = transfer.event(pass, kind, visit, stage, part);
            let generation = transfer.generation(pass, kind, visit, stage, part);
            // 0: a worker dropped it, because the pass after this one was abandoned in the meantime.
            if generation.0 != 0 {
                transfer.device.synchronize(event, generation)?;
            }
        }
        Ok(())
    }

    pub(super) fn harvest_all(&mut self) -> Result<(), OffloadError> {
        self.mark_end()?;
        if let Some(last) = self.progress.ended[1]
            && self.await_last_submissions(last).is_err()
        {
            self.abandon_transfers(); // nobody asks about that pass any more once its times are taken
        }
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
            let program = transfer.program(kind, visit);
            if program.is_none() && !transfer.traces(kind, visit) {
                continue;
            }
            let state = |state: &VisitState| (state.pass, state.epoch, state.reach, state.compute);
            let (of_pass, of_epoch, reach, compute) = transfer.with_state(pass, kind, visit, state);
            if (of_pass, of_epoch) != (pass, epoch) || reach.0 == 0 {
                continue; // skipped, or never reached
            }
            let events = transfer.events(pass, kind, visit);
            let ahead = program.and_then(VisitProgram::ahead);
            let parts = &events.parts;
            // What the compute stream waits for, and from when: the last part, or at use each one in its turn.
            let waits = |part: usize| match ahead {
                Some([_, Stage::Decode]) if part + 1 < parts.len() => None,
                Some([_, Stage::Decode]) => Some((&events.reach, &parts[part].decode)),
                Some(_) => {
                    let before = part.checked_sub(1).map(|before| &parts[before].decode);
                    Some((before.unwrap_or(&events.reach), &parts[part].upload))
                }
                None => None,
            };
            let waits = || (0..parts.len()).filter_map(waits);
            let mut stalled = 0.0;
            for (from, arrived) in waits() {
                stalled += device.elapsed(from, arrived)?.max(0.0);
            }
            stall_s += stalled;
            if let Some(origin) = &self.origin {
                let block = transfer.block_name(kind, visit);
                let mut span = |stage, from: &D::Event, to: &D::Event, shift: f64| {
                    let begin_s = device.elapsed(origin, from)? + shift;
                    let end_s = device.elapsed(origin, to)?;
                    let block = block.to_owned();
                    self.history.spans.push_back(Span {
                        stage,
                        block,
                        pass,
                        begin_s,
                        end_s,
                    });
                    Ok::<_, DeviceError>(())
                };
                let parts = program.iter().flat_map(|program| &program.parts);
                for (part, events) in parts.zip(&events.parts) {
                    let Some([upload, decode]) = &events.begin else {
                        continue;
                    };
                    if program.is_some_and(|program| program.uploaded) {
                        span("upload", upload, &events.upload, 0.0)?;
                    }
                    if part.table.is_some() {
                        span("decode", decode, &events.decode, 0.0)?;
                    }
                }
                for (from, arrived) in waits() {
                    if device.elapsed(from, arrived)? > 0.0 {
                        span("stall", from, arrived, 0.0)?;
                    }
                }
                if compute.0 > 0 {
                    let at_use = program.is_some_and(|program| program.at_use);
                    let (from, shift) = match events.parts.last() {
                        Some(last) if at_use => (&last.decode, 0.0),
                        _ => (&events.reach, stalled),
                    };
                    span("compute", from, &events.compute, shift)?;
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
