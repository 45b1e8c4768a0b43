//! Submission of uploads and decodes, with the fences that the plan demands.
//!
//! Two threads submit: the caller when every source is pinned, otherwise the feeder, and then all of it, so that the
//! upload and decode streams carry visits in the order of the plan.
//!
//! Passes are numbered. A pass uses set `pass % 3` of the events: while pass p runs, uploads of p+1 are recorded in
//! the next set and the times of p-1 can still be read from the one before.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::device::{Device, DeviceError, Generation, PinnedUpload};
use crate::executor::error::OffloadError;
use crate::executor::program::{KindProgram, PartProgram, UploadStep, VisitProgram};
use crate::plan::{Dependency, PassRef, Stage};

/// Sets of events in use.
pub(super) const SETS: u64 = 3;

/// The arena and what is baked into it.
#[derive(Debug)]
pub(super) struct Loaded<D: Device> {
    pub(super) arena: D::Arena,
    pub(super) program: D::Program,
}

/// Events of one visit to a streamed or packed block in one set.
#[derive(Debug)]
pub(super) struct VisitEvents<D: Device> {
    pub(super) parts: Vec<PartEvents<D>>,
    /// The compute stream passed its last use of the block.
    pub(super) compute: D::Event,
    /// The compute stream reached its wait for the block.
    pub(super) reach: D::Event,
}

/// Events of one part of a visit.
#[derive(Debug)]
pub(super) struct PartEvents<D: Device> {
    pub(super) upload: D::Event,
    pub(super) decode: D::Event,
    /// Beginnings, for traces.
    pub(super) begin: Option<[D::Event; 2]>,
}

/// How far a visit's arrival has come.
#[derive(Debug, Clone, Default)]
pub(super) enum Arrival {
    #[default]
    Idle,
    Queued,
    Failed(OffloadError),
}

/// What was recorded for a visit, and in which pass.
#[derive(Debug, Default)]
pub(super) struct VisitState {
    pub(super) pass: u64,
    pub(super) epoch: u64,
    pub(super) arrival: Arrival,
    /// So many parts were submitted.
    submitted: usize,
    /// Upload and decode of each part.
    parts: Vec<[Generation; 2]>,
    pub(super) compute: Generation,
    pub(super) reach: Generation,
}

impl VisitState {
    fn new(parts: usize) -> Self {
        Self {
            parts: vec![[Generation::default(); 2]; parts],
            ..Self::default()
        }
    }

    /// Forgets what was recorded before.
    pub(super) fn begin(&mut self, pass: u64, epoch: u64) {
        (self.pass, self.epoch) = (pass, epoch);
        self.arrival = Arrival::Queued;
        self.submitted = 0;
        self.parts.fill(Default::default());
        (self.compute, self.reach) = Default::default();
    }

    pub(super) fn generation(&self, stage: Stage, part: usize) -> Generation {
        match stage {
            Stage::Upload => self.parts[part][0],
            Stage::Decode => self.parts[part][1],
            Stage::Compute => self.compute,
        }
    }
}

/// An event and its last recording.
#[derive(Debug)]
pub(super) struct Mark<D: Device> {
    pub(super) event: D::Event,
    generation: AtomicU64,
}

impl<D: Device> Mark<D> {
    pub(super) fn new(device: &D) -> Result<Self, DeviceError> {
        Ok(Self {
            event: device.create_event()?,
            generation: AtomicU64::new(0),
        })
    }

    pub(super) fn record(&self, device: &D, stream: &D::Stream) -> Result<(), DeviceError> {
        let generation = device.record(stream, &self.event)?;
        self.generation.store(generation.0, Ordering::Release);
        Ok(())
    }

    /// The last recording, if there was one.
    pub(super) fn generation(&self) -> Option<Generation> {
        Some(Generation(self.generation.load(Ordering::Acquire)))
            .filter(|generation| generation.0 > 0)
    }

    pub(super) fn wait(&self, device: &D, stream: &D::Stream) -> Result<(), DeviceError> {
        match self.generation() {
            Some(generation) => device.wait(stream, &self.event, generation),
            None => Ok(()),
        }
    }

    pub(super) fn synchronize(&self, device: &D) -> Result<(), DeviceError> {
        match self.generation() {
            Some(generation) => device.synchronize(&self.event, generation),
            None => Ok(()),
        }
    }
}

/// An upload or decode to be submitted.
#[derive(Debug)]
pub(super) struct Job<D: Device> {
    pub(super) stage: Stage,
    pub(super) pass: u64,
    /// Counts cold starts: jobs of an earlier epoch are of no use any more.
    pub(super) epoch: u64,
    pub(super) kind: usize,
    pub(super) visit: usize,
    pub(super) part: usize,
    /// The kind of the pass before, if this pass follows it without a cold start.
    pub(super) previous: Option<usize>,
    /// The first of its pass.
    pub(super) first: bool,
    /// Transfers came before that nobody's compute waited for: of skipped visits, or of a pass that was abandoned.
    pub(super) behind_all: bool,
    pub(super) loaded: Arc<Loaded<D>>,
}

/// Which pass an operation belongs to, for finding what it waits for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) pass: u64,
    pub(super) epoch: u64,
    pub(super) kind: usize,
    pub(super) previous: Option<usize>,
}

impl<D: Device> Job<D> {
    fn turn(&self) -> Turn {
        Turn {
            pass: self.pass,
            epoch: self.epoch,
            kind: self.kind,
            previous: self.previous,
        }
    }
}

/// What caller and feeder share.
#[derive(Debug)]
pub(super) struct Transfer<D: Device> {
    pub(super) device: D,
    pub(super) kinds: Vec<KindProgram<D>>,
    pub(super) names: Vec<String>,
    pub(super) upload: D::Stream,
    pub(super) decode: D::Stream,
    /// Events by set, kind and visit; `None` for visits to residents, unless they are traced.
    events: Vec<Vec<Vec<Option<VisitEvents<D>>>>>,
    states: Mutex<States>,
    submitted: Condvar,
    /// Ends of passes, by set.
    pub(super) pass_ends: Vec<Mark<D>>,
    pub(super) pass_begins: Vec<Mark<D>>,
    pub(super) upload_tail: Mark<D>,
    pub(super) decode_tail: Mark<D>,
    /// Whether some packed block is decoded on the compute stream.
    pub(super) packs_at_use: bool,
    /// What such a decode waits for at the beginning of a pass.
    pub(super) strays: Mark<D>,
    /// The last epoch in which an arrival failed, plus 1.
    failed_epoch: AtomicU64,
    /// Jobs of an earlier epoch are dropped.
    pub(super) epoch: AtomicU64,
    /// Bytes submitted for visits, in all and by set.
    pub(super) wire_bytes: AtomicU64,
    pass_bytes: [AtomicU64; SETS as usize],
    /// Bytes submitted for passes that had been abandoned by then.
    pub(super) late_bytes: AtomicU64,
}

#[derive(Debug)]
struct States {
    visits: Vec<Vec<Vec<VisitState>>>,
    worker_panic: Option<String>,
}

impl<D: Device> Transfer<D> {
    pub(super) fn new(
        device: &D,
        kinds: Vec<KindProgram<D>>,
        names: Vec<String>,
        trace: bool,
    ) -> Result<Self, DeviceError> {
        let visit_events = |visit: &Option<VisitProgram<D>>| {
            let parts = match visit {
                Some(visit) => &visit.parts[..],
                // What is resident only computes, which concerns nobody but traces.
                None if trace => &[],
                None => return Ok(None),
            };
            let event = || device.create_event();
            let part_events = |_: &PartProgram| {
                let begin = match trace {
                    true => Some([event()?, event()?]),
                    false => None,
                };
                Ok(PartEvents {
                    upload: event()?,
                    decode: event()?,
                    begin,
                })
            };
            Ok(Some(VisitEvents {
                parts: (parts.iter().map(part_events)).collect::<Result<_, DeviceError>>()?,
                compute: event()?,
                reach: event()?,
            }))
        };
        let events = (0..SETS)
            .map(|_| {
                kinds
                    .iter()
                    .map(|kind| kind.visits.iter().map(visit_events).collect())
                    .collect()
            })
            .collect::<Result<_, DeviceError>>()?;
        let set = |kind: &KindProgram<D>| {
            let parts = |visit: &Option<VisitProgram<D>>| {
                VisitState::new(visit.as_ref().map_or(0, |visit| visit.parts.len()))
            };
            kind.visits.iter().map(parts).collect()
        };
        let visits = (0..SETS).map(|_| kinds.iter().map(set).collect()).collect();
        let marks = || {
            (0..SETS)
                .map(|_| Mark::new(device))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            upload: device.create_stream("upload")?,
            decode: device.create_stream("decode")?,
            events,
            states: Mutex::new(States {
                visits,
                worker_panic: None,
            }),
            submitted: Condvar::new(),
            pass_ends: marks()?,
            pass_begins: marks()?,
            upload_tail: Mark::new(device)?,
            decode_tail: Mark::new(device)?,
            packs_at_use: kinds
                .iter()
                .flat_map(|kind| kind.visits.iter().flatten())
                .any(|visit| visit.at_use && !visit.uploaded),
            strays: Mark::new(device)?,
            failed_epoch: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            wire_bytes: AtomicU64::new(0),
            pass_bytes: Default::default(),
            late_bytes: AtomicU64::new(0),
            device: device.clone(),
            kinds,
            names,
        })
    }

    pub(super) fn program(&self, kind: usize, visit: usize) -> Option<&VisitProgram<D>> {
        self.kinds[kind].visits[visit].as_ref()
    }

    pub(super) fn block_name(&self, kind: usize, visit: usize) -> &str {
        &self.names[self.kinds[kind].blocks[visit]]
    }

    /// Whether the beginnings and ends of all visits are recorded.
    pub(super) fn traces(&self, kind: usize, visit: usize) -> bool {
        let events = self.events[0][kind][visit].as_ref();
        events.is_some_and(|events| events.parts.iter().all(|part| part.begin.is_some()))
    }

    pub(super) fn events(&self, pass: u64, kind: usize, visit: usize) -> &VisitEvents<D> {
        self.events[set_of(pass)][kind][visit]
            .as_ref()
            .expect("visits with a program have events")
    }

    pub(super) fn event(
        &self,
        pass: u64,
        kind: usize,
        visit: usize,
        stage: Stage,
        part: usize,
    ) -> &D::Event {
        let events = self.events(pass, kind, visit);
        match stage {
            Stage::Upload => &events.parts[part].upload,
            Stage::Decode => &events.parts[part].decode,
            Stage::Compute => &events.compute,
        }
    }

    pub(super) fn pass_end(&self, pass: u64) -> &Mark<D> {
        &self.pass_ends[set_of(pass)]
    }

    pub(super) fn pass_begin(&self, pass: u64) -> &Mark<D> {
        &self.pass_begins[set_of(pass)]
    }

    pub(super) fn with_state<R>(
        &self,
        pass: u64,
        kind: usize,
        visit: usize,
        read: impl FnOnce(&VisitState) -> R,
    ) -> R {
        read(&self.states.lock().visits[set_of(pass)][kind][visit])
    }

    /// What was recorded last for an operation of a visit, in whatever pass.
    pub(super) fn generation(
        &self,
        pass: u64,
        kind: usize,
        visit: usize,
        stage: Stage,
        part: usize,
    ) -> Generation {
        self.with_state(pass, kind, visit, |state| state.generation(stage, part))
    }

    pub(super) fn update(
        &self,
        pass: u64,
        kind: usize,
        visit: usize,
        update: impl FnOnce(&mut VisitState),
    ) {
        update(&mut self.states.lock().visits[set_of(pass)][kind][visit]);
    }

    /// Tells the waiting caller how a job came out.
    pub(super) fn settle(&self, job: &Job<D>, outcome: Result<(), OffloadError>) {
        if outcome.is_err() {
            self.failed_epoch.fetch_max(job.epoch + 1, Ordering::AcqRel);
        }
        let mut states = self.states.lock();
        let state = &mut states.visits[set_of(job.pass)][job.kind][job.visit];
        // A later epoch may already have queued the same visit again.
        if (state.pass, state.epoch) == (job.pass, job.epoch) {
            let ahead = self.visit_program(job).ahead();
            let last = ahead.is_some_and(|[_, last]| last == job.stage);
            match (outcome, &state.arrival) {
                (_, Arrival::Failed(_)) => {}
                (Err(error), _) => state.arrival = Arrival::Failed(error),
                (Ok(()), _) if last => state.submitted = job.part + 1,
                (Ok(()), _) => {}
            }
        }
        drop(states);
        self.submitted.notify_all();
    }

    /// Whether an arrival of this epoch failed.
    pub(super) fn has_failed(&self, epoch: u64) -> bool {
        self.failed_epoch.load(Ordering::Acquire) > epoch
    }

    pub(super) fn worker_panicked(&self, message: String) {
        self.states.lock().worker_panic.get_or_insert(message);
        self.submitted.notify_all();
    }

    /// Waits until `parts` of an arrival are submitted; true if they were not yet.
    pub(super) fn await_submission(
        &self,
        pass: u64,
        kind: usize,
        visit: usize,
        parts: usize,
    ) -> Result<bool, OffloadError> {
        let mut states = self.states.lock();
        let mut waited = false;
        loop {
            let state = &states.visits[set_of(pass)][kind][visit];
            match &state.arrival {
                Arrival::Failed(error) => return Err(error.clone()),
                Arrival::Queued if state.submitted >= parts => return Ok(waited),
                Arrival::Queued => {}
                Arrival::Idle => panic!("contract: visit {visit} is acquired before it was issued"),
            }
            if let Some(message) = &states.worker_panic {
                return Err(OffloadError::WorkerPanicked {
                    message: message.clone(),
                });
            }
            waited = true;
            self.submitted.wait(&mut states);
        }
    }

    /// Waits, on `stream`, for what `after` lists.
    ///
    /// What a worker still submits for a pass that was abandoned may no longer find what it depends on: later passes
    /// use the same events. It is given up then.
    pub(super) fn fence(
        &self,
        stream: &D::Stream,
        after: &[Dependency],
        turn: Turn,
    ) -> Result<(), DeviceError> {
        for dependency in after {
            let (pass, kind) = match dependency.pass {
                PassRef::This => (turn.pass, turn.kind),
                PassRef::Previous(kind) if turn.previous == Some(kind) => (turn.pass - 1, kind),
                // The pass before was of another kind, or a cold start already waited for it.
                PassRef::Previous(_) => continue,
            };
            let (visit, part) = (dependency.visit as usize, dependency.part as usize);
            let (of_pass, generation) = self.with_state(pass, kind, visit, |state| {
                (state.pass, state.generation(dependency.stage, part))
            });
            let event = self.event(pass, kind, visit, dependency.stage, part);
            if of_pass != pass || generation.0 == 0 {
                assert!(
                    turn.epoch != self.epoch.load(Ordering::Acquire),
                    "contract: {dependency:?} of pass {pass} was not submitted"
                );
                let reason = "its pass was abandoned".to_owned();
                return Err(DeviceError::Failed {
                    call: "fence",
                    reason,
                });
            }
            self.device.wait(stream, event, generation)?;
        }
        Ok(())
    }

    /// What the first job of a pass waits for.
    fn begin_pass(&self, job: &Job<D>) -> Result<(), DeviceError> {
        let (device, streams) = (&self.device, [&self.upload, &self.decode]);
        if job.first {
            // Passes older than the one before have ended for the host, or will have by this mark; a cold start also
            // waits for the pass before and for whatever the abandoned transfers still write.
            let ends = if job.behind_all { 1..=2 } else { 2..=2 };
            for age in ends.filter(|age| *age <= job.pass) {
                for stream in streams {
                    self.pass_end(job.pass - age).wait(device, stream)?;
                }
            }
            if job.behind_all {
                self.upload_tail.record(device, &self.upload)?;
                self.decode_tail.record(device, &self.decode)?;
                self.upload_tail.wait(device, &self.decode)?;
                self.decode_tail.wait(device, &self.upload)?;
            }
        }
        Ok(())
    }

    /// Everything that has to be submitted before the uploads of `job`.
    pub(super) fn begin_upload(&self, job: &Job<D>) -> Result<(), DeviceError> {
        self.begin_pass(job)?;
        let after = self.visit_program(job).after(Stage::Upload, job.part);
        self.fence(&self.upload, after, job.turn())?;
        let events = &self.events(job.pass, job.kind, job.visit).parts[job.part];
        if let Some([begin, _]) = &events.begin {
            self.device.record(&self.upload, begin)?;
        }
        Ok(())
    }

    /// Submits uploads of `job` that are pinned.
    pub(super) fn upload_pinned(
        &self,
        job: &Job<D>,
        uploads: &[UploadStep<D>],
    ) -> Result<(), DeviceError> {
        let mut bytes = 0;
        let uploads = uploads.iter().map(|upload| {
            bytes += upload.bytes();
            PinnedUpload {
                offset: upload.offset,
                pinned: (upload.pinned.get()).expect("what is not staged is pinned"),
                source: 0..upload.bytes(),
            }
        });
        self.device
            .upload_all_pinned(&self.upload, &job.loaded.arena, uploads)?;
        self.count(job, bytes);
        Ok(())
    }

    /// Notes that an upload is pinned from now on.
    pub(super) fn pinned(&self, kind: usize, visit: usize, upload: usize, pinned: D::Pinned) {
        let program = (self.program(kind, visit)).expect("only streamed visits have uploads");
        // Set once: the thread that pins has each upload on its list once.
        let _ = program.uploads[upload].pinned.set(pinned);
    }

    /// Whether no visit of any kind needs a staging buffer any more.
    pub(super) fn is_all_pinned(&self) -> bool {
        let visits = self
            .kinds
            .iter()
            .flat_map(|kind| kind.visits.iter().flatten());
        { visits }.all(VisitProgram::is_pinned)
    }

    /// Counts bytes that were submitted for `job`.
    pub(super) fn count(&self, job: &Job<D>, bytes: usize) {
        let abandoned = job.epoch != self.epoch.load(Ordering::Acquire);
        let of_pass = if abandoned {
            &self.late_bytes
        } else {
            self.pass_bytes(job.pass)
        };
        of_pass.fetch_add(bytes as u64, Ordering::Relaxed);
        self.wire_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes submitted for the visits of a pass.
    pub(super) fn pass_bytes(&self, pass: u64) -> &AtomicU64 {
        &self.pass_bytes[set_of(pass)]
    }

    /// Marks the end of the uploads of `job`.
    pub(super) fn end_upload(&self, job: &Job<D>) -> Result<(), DeviceError> {
        let events = self.events(job.pass, job.kind, job.visit);
        let uploaded = self
            .device
            .record(&self.upload, &events.parts[job.part].upload)?;
        self.update(job.pass, job.kind, job.visit, |state| {
            state.parts[job.part][0] = uploaded
        });
        Ok(())
    }

    /// Submits the decode of a part of a visit on `stream`.
    pub(super) fn decode(
        &self,
        stream: &D::Stream,
        turn: Turn,
        (visit, part): (usize, usize),
        loaded: &Loaded<D>,
    ) -> Result<(), DeviceError> {
        let (device, program) = (&self.device, self.program(turn.kind, visit));
        let program = program.expect("decodes are planned for visits with a program");
        let table = program.parts[part]
            .table
            .expect("decodes are planned for blocks with a table");
        self.fence(stream, program.after(Stage::Decode, part), turn)?;
        let begin = &self.events(turn.pass, turn.kind, visit).parts[part].begin;
        if let Some([_, begin]) = begin {
            device.record(stream, begin)?;
        }
        device.decode(stream, &loaded.arena, &loaded.program, table)?;
        // What is packed stays, and whoever overwrites its place waits for the reader.
        if program.at_use && !program.uploaded && begin.is_none() {
            return Ok(());
        }
        self.mark_decoded(stream, turn, (visit, part))
    }

    /// Marks that a part of a visit is decoded, or passed over.
    pub(super) fn mark_decoded(
        &self,
        stream: &D::Stream,
        turn: Turn,
        (visit, part): (usize, usize),
    ) -> Result<(), DeviceError> {
        let event = &self.events(turn.pass, turn.kind, visit).parts[part].decode;
        let decoded = self.device.record(stream, event)?;
        self.update(turn.pass, turn.kind, visit, |state| {
            state.parts[part][1] = decoded
        });
        Ok(())
    }

    /// Has `stream` wait for what was decoded at use on `compute`.
    pub(super) fn wait_for_decode(
        &self,
        stream: &D::Stream,
        compute: &D::Stream,
        turn: Turn,
        visit: usize,
    ) -> Result<(), DeviceError> {
        let program = self.program(turn.kind, visit);
        let part = program.map_or(0, VisitProgram::last_part);
        let decoded = || self.generation(turn.pass, turn.kind, visit, Stage::Decode, part);
        if decoded().0 == 0 {
            self.mark_decoded(compute, turn, (visit, part))?;
        }
        let event = self.event(turn.pass, turn.kind, visit, Stage::Decode, part);
        self.device.wait(stream, event, decoded())
    }

    /// Submits a job that reads no staging buffer.
    pub(super) fn submit(&self, job: &Job<D>) -> Result<(), DeviceError> {
        if job.stage == Stage::Decode {
            self.begin_pass(job)?;
            let of = (job.visit, job.part);
            return self.decode(&self.decode, job.turn(), of, &job.loaded);
        }
        self.begin_upload(job)?;
        self.upload_pinned(job, self.visit_program(job).uploads_of(job.part))?;
        self.end_upload(job)
    }

    pub(super) fn visit_program(&self, job: &Job<D>) -> &VisitProgram<D> {
        self.program(job.kind, job.visit)
            .expect("jobs are of visits with a program")
    }
}

pub(super) fn set_of(pass: u64) -> usize {
    usize::try_from(pass % SETS).expect("a remainder of 3")
}
