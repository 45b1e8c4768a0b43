//! The executor: runs a plan. The only part that sees blocks, plan and device together.
//!
//! [`Offload`] owns the arena and the streams; [`Pass`] walks a visit list and hands out one [`Lease`] at a time. What
//! has to wait for what is in the plan's operations: the executor submits each operation as early as its predecessors
//! are submitted, and otherwise only translates dependencies into event waits. It adds four rules of its own:
//!
//! - *Cold start.* The first pass, and a pass after one that was abandoned, failed, or prefetched for another kind,
//!   starts behind everything the streams still hold, and its dependencies on the pass before are void.
//! - *One pass ahead.* The beginning of pass p waits on the host until the device is done with pass p-2, its arrivals
//!   included, and until the arrivals of p-1 are submitted; its first upload waits on the device for p-2 too. So no
//!   dependency reaches back further than one pass.
//! - *One order.* A pass computes behind the end of the one before, whatever streams an engine uses for them: a
//!   dependency names the latest reader and means all before it.
//! - *Skips.* A skipped visit records its compute event where it would have computed, so whoever waits for it waits for
//!   everything that did compute. Nobody's compute waited for its arrival, so the next pass that moves anything starts
//!   its transfers behind all that the streams hold.

mod builder;
mod costs;
mod error;
mod feeder;
mod layout;
mod lease;
mod load;
mod pass;
mod program;
mod report;
mod transfer;
mod walk;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub use builder::{DeviceBudget, OffloadBuilder, Settings};
pub use costs::Costs;
pub use error::OffloadError;
pub use feeder::StagingBuffers;
pub use layout::{Arrival, ArrivalPolicy};
pub use lease::{ArrivedTensor, Lease};
pub use pass::Pass;
pub use report::{Counters, PassReport, Report, Span};

use crate::device::{Device, DeviceError};
use crate::model::{Model, PassKind};
use crate::plan::Plan;
use crate::source::{Source, SourceFile};
use feeder::Feeder;
use layout::BlockLayout;
use program::PinnedSources;
use report::History;
use transfer::{Loaded, Transfer};
use walk::Progress;

/// Offloading of one model on one device.
#[derive(Debug)]
pub struct Offload<D: Device> {
    model: Model,
    layouts: Vec<BlockLayout>,
    /// Position of each tensor, by block and name.
    tensors: Vec<BTreeMap<String, usize>>,
    files: Vec<Arc<SourceFile>>,
    pinned: PinnedSources<D>,
    plan: Plan,
    load_staging_bytes: usize,
    // Dropped before `transfer` and `loaded`: joins the threads that use both.
    feeder: Option<Feeder<D>>,
    loaded: Option<Arc<Loaded<D>>>,
    transfer: Arc<Transfer<D>>,
    progress: Progress<D>,
    counters: Arc<Counters>,
    history: History,
    origin: Option<D::Event>,
    generation: u64,
}

impl<D: Device> Offload<D> {
    /// Begins with a device; see [`OffloadBuilder`] for the rest.
    pub fn builder(device: &D) -> OffloadBuilder<D, ()> {
        OffloadBuilder::new(device)
    }

    fn build(builder: OffloadBuilder<D>) -> Result<Self, OffloadError> {
        let budget = builder.planner_budget()?;
        let OffloadBuilder {
            device,
            model,
            settings,
            staging,
            trace,
            amend,
            ..
        } = builder;
        let layouts = settings.layouts(&model);
        let pinned = program::pin_sources(&device, &model)?;
        let workload = program::workload::<D>(&model, &layouts, &pinned, &settings.costs);
        let plan = amend(settings.plan(&workload, budget)?);
        let (kinds, tables) = program::build::<D>(&model, &layouts, &pinned, &plan);
        let streamed = || kinds.iter().flat_map(|kind| kind.visits.iter().flatten());
        let staged = !streamed().all(program::VisitProgram::is_pinned);
        // Uploads and decodes of two passes: handing one over never waits.
        let jobs_ahead = 4 * kinds
            .iter()
            .map(|kind| kind.visits.len())
            .max()
            .unwrap_or(0);
        let names = model
            .blocks()
            .iter()
            .map(|block| block.name().to_owned())
            .collect();
        let transfer = Arc::new(Transfer::new(&device, kinds, names, trace)?);
        let tensors = (model.blocks().iter())
            .map(|block| {
                let names = block.tensors().iter().enumerate();
                names
                    .map(|(position, tensor)| (tensor.name().to_owned(), position))
                    .collect()
            })
            .collect();
        let mut files: Vec<Arc<SourceFile>> = Vec::new();
        for tensor in model.blocks().iter().flat_map(|block| block.tensors()) {
            if let Source::File { file, .. } = tensor.source()
                && !files.iter().any(|known| Arc::ptr_eq(known, file))
            {
                files.push(Arc::clone(file));
            }
        }
        let origin = if trace {
            Some(device.create_event()?)
        } else {
            None
        };
        let mut offload = Self {
            progress: Progress::new(),
            model,
            layouts,
            tensors,
            files,
            pinned,
            plan,
            load_staging_bytes: staging.bytes.max(1),
            feeder: None,
            loaded: None,
            transfer,
            counters: Arc::new(Counters::default()),
            history: History::new(),
            origin,
            generation: 0,
        };
        offload.load(&tables)?;
        if staged {
            offload.feeder = Some(Feeder::start(&offload.transfer, staging, jobs_ahead)?);
        }
        if let Some(origin) = &offload.origin {
            let generation = device.record(&offload.transfer.upload, origin)?;
            device.synchronize(origin, generation)?;
        }
        Ok(offload)
    }

    /// Allocates the arena and fills in what stays.
    fn load(&mut self, tables: &[crate::device::DecodeTable]) -> Result<(), OffloadError> {
        let device = &self.transfer.device;
        self.files
            .iter()
            .try_for_each(|file| self.check_file(file))?;
        let arena = device.allocate_arena(self.plan.arena_bytes)?;
        let program = device.prepare(&arena, tables)?;
        let moved = load::load(
            &self.transfer,
            &arena,
            &self.model,
            &self.layouts,
            &self.pinned,
            &self.plan,
            self.load_staging_bytes,
        );
        let moved = match moved {
            Ok(moved) => moved,
            Err(error) => {
                // The streams may still write into the arena that is about to be freed.
                let _ = self.drain_streams();
                return Err(error);
            }
        };
        Counters::add(&self.counters.load_bytes, moved);
        self.loaded = Some(Arc::new(Loaded { arena, program }));
        self.generation += 1;
        self.progress.cold = true;
        self.counters.set_live(self.fixed_bytes());
        Ok(())
    }

    /// Planned bytes that are live all the time.
    fn fixed_bytes(&self) -> u64 {
        self.plan.arena.resident.bytes + self.plan.arena.staging.bytes
    }

    fn check_file(&self, file: &Arc<SourceFile>) -> Result<(), OffloadError> {
        file.check_unchanged().map_err(|source| {
            let uses = |tensor: &crate::swappable::TensorSpec| matches!(tensor.source(), Source::File { file: used, .. } if Arc::ptr_eq(used, file));
            let block = (self.model.blocks().iter()).find(|block| block.tensors().iter().any(uses));
            let block = block.map_or_else(String::new, |block| block.name().to_owned());
            OffloadError::Source { block, source }
        })
    }

    /// Begins a pass over the visits of `kind`, computed on `stream`.
    ///
    /// Waits for the device to finish the pass before the last. A pass still open, because it was forgotten, counts as
    /// abandoned.
    ///
    /// # Errors
    /// When there is no such kind, the executor is suspended, a file has changed, or the device fails.
    pub fn pass(
        &mut self,
        kind: PassKind,
        stream: &D::Stream,
    ) -> Result<Pass<'_, D>, OffloadError> {
        let kind_count = self.plan.kinds.len();
        if kind.index() >= kind_count {
            return Err(OffloadError::NoSuchKind {
                kind: kind.0,
                kind_count,
            });
        }
        if self.loaded.is_none() {
            return Err(OffloadError::Suspended);
        }
        self.close_pass();
        self.files
            .iter()
            .try_for_each(|file| self.check_file(file))?;
        self.begin_pass(kind.index(), stream)?;
        Ok(Pass::new(self))
    }

    /// The plan being executed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Counts how often the arena was laid out: device addresses hold for one generation.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Totals that any thread can read while passes run.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// What happened so far. Waits for the device to finish the passes that have ended.
    ///
    /// # Errors
    /// When the device fails.
    pub fn report(&mut self) -> Result<Report, OffloadError> {
        self.close_pass();
        self.harvest_all()?;
        self.drain_feeder();
        let counters = &self.counters;
        let submitted = self.transfer.wire_bytes.load(Ordering::Relaxed);
        // Bytes of a prefetched head count as past the end until a pass takes them.
        let late_bytes = self.transfer.late_bytes.load(Ordering::Relaxed);
        let past_end_bytes = counters.past_end_bytes() + self.bytes_ahead() + late_bytes;
        Ok(Report {
            device: self.transfer.device.name(),
            arena_bytes: self.plan.arena_bytes,
            budget_bytes: self.plan.budget_bytes,
            high_water_bytes: counters.high_water_bytes(),
            load_bytes: counters.load_bytes(),
            wire_bytes: submitted.saturating_sub(past_end_bytes),
            past_end_bytes,
            passes: self.history.passes.iter().copied().collect(),
            abandoned: counters.abandoned(),
            visits: counters.visits(),
            skipped: counters.skipped(),
            submission_waits: counters.submission_waits(),
            submission_wait_s: counters.submission_wait_ns() as f64 * 1e-9,
            pass_waits: counters.pass_waits(),
            pass_wait_s: counters.pass_wait_ns() as f64 * 1e-9,
        })
    }

    /// Spans of finished passes, if tracing was asked for.
    #[must_use]
    pub fn spans(&self) -> &[Span] {
        &self.history.spans
    }

    /// Frees the device memory and keeps the host side. Waits for the device.
    ///
    /// # Errors
    /// When the device fails; the memory is given up all the same.
    pub fn suspend(&mut self) -> Result<(), OffloadError> {
        self.close_pass();
        let harvested = self.harvest_all();
        self.abandon_transfers();
        let drained = self.drain_streams();
        self.loaded = None;
        self.counters.set_live(0);
        harvested.and(drained)
    }

    /// Allocates and loads again after [`suspend`](Self::suspend); does nothing if not suspended.
    ///
    /// # Errors
    /// As [`OffloadBuilder::build`]; the executor stays suspended then.
    pub fn resume(&mut self) -> Result<(), OffloadError> {
        if self.loaded.is_some() {
            return Ok(());
        }
        let (_, tables) = program::build::<D>(&self.model, &self.layouts, &self.pinned, &self.plan);
        self.load(&tables)
    }

    /// Gives up what was prefetched. What a worker has begun to submit still is.
    fn abandon_transfers(&mut self) {
        self.progress.cold = true;
        self.progress.unread = true;
        self.transfer.epoch.fetch_add(1, Ordering::AcqRel);
        if let Some(pass) = self.progress.pass_ahead() {
            let wasted = self.transfer.pass_bytes(pass).swap(0, Ordering::Relaxed);
            Counters::add(&self.counters.past_end_bytes, wasted);
        }
        self.progress.forget_head();
    }

    /// Waits until the workers have submitted or dropped all that they were handed.
    fn drain_feeder(&self) {
        if let Some(feeder) = &self.feeder {
            feeder.drain();
        }
    }

    /// Bytes submitted for a pass that has not begun.
    fn bytes_ahead(&self) -> u64 {
        let ahead = self.progress.pass_ahead();
        ahead.map_or(0, |pass| {
            self.transfer.pass_bytes(pass).load(Ordering::Relaxed)
        })
    }

    /// Waits until the device has done everything that was submitted on the arena.
    fn drain_streams(&mut self) -> Result<(), OffloadError> {
        self.drain_feeder();
        let mut outcome: Result<(), DeviceError> = self.mark_end();
        let Transfer {
            device,
            upload,
            decode,
            upload_tail,
            decode_tail,
            pass_ends,
            ..
        } = &*self.transfer;
        for end in pass_ends {
            outcome = outcome.and(end.synchronize(device));
        }
        for (mark, stream) in [(upload_tail, upload), (decode_tail, decode)] {
            outcome = outcome.and(
                mark.record(device, stream)
                    .and_then(|()| mark.synchronize(device)),
            );
        }
        Ok(outcome?)
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &D {
        &self.transfer.device
    }

    fn timed_wait(
        &self,
        wait: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<u64, DeviceError> {
        let begin = Instant::now();
        wait()?;
        Ok(u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

impl<D: Device> Drop for Offload<D> {
    fn drop(&mut self) {
        self.close_pass();
        if self.loaded.is_some() {
            self.abandon_transfers();
            // Whatever failed was already reported, or nobody asks any more; memory must not be freed under a copy.
            let _ = self.drain_streams();
        }
        self.feeder = None;
    }
}
