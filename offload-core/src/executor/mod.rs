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
//!   its transfers behind all that the streams hold; and so do its computes, if they decode what is packed.

mod builder;
mod costs;
mod error;
mod feeder;
mod harvest;
mod layout;
mod lease;
mod load;
mod mapped;
mod page_cache;
mod pass;
mod pinner;
mod program;
mod readers;
mod report;
mod shortage;
mod transfer;
mod walk;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub use builder::{DeviceBudget, HostBudget, OffloadBuilder, Settings};
pub use costs::Costs;
pub use error::OffloadError;
pub use layout::{Arrival, ArrivalPolicy};
pub use lease::{ArrivedTensor, Lease};
pub use pass::Pass;
pub use pinner::HostReport;
pub use readers::StagingBuffers;
pub use report::{Counters, PassReport, Report, Span};
pub use shortage::Shortage;

use crate::device::{Device, DeviceError};
use crate::model::{Model, PassKind, Residency};
use crate::plan::{Budget, Plan, Tier};
use crate::source::{Source, SourceFile};
use feeder::Feeder;
use layout::BlockLayout;
use mapped::Mappings;
use page_cache::PastCache;
use pinner::Pinner;
use program::PinnedSources;
use readers::Readers;
use report::History;
use shortage::{Ask, Refused};
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
    buffers: StagingBuffers,
    mappings: Arc<Mappings>,
    // Dropped before `transfer` and `loaded`: join the threads that use both.
    feeder: Option<Feeder<D>>,
    pinner: Pinner,
    /// Everything is pinned and the feeder rests: the caller submits.
    direct: bool,
    loaded: Option<Arc<Loaded<D>>>,
    transfer: Arc<Transfer<D>>,
    progress: Progress<D>,
    counters: Arc<Counters>,
    history: History,
    shortages: Vec<Shortage>,
    origin: Option<D::Event>,
    generation: u64,
}

impl<D: Device> Offload<D> {
    /// Begins with a device; see [`OffloadBuilder`] for the rest.
    pub fn builder(device: &D) -> OffloadBuilder<D, ()> {
        OffloadBuilder::new(device)
    }

    fn build(builder: OffloadBuilder<D>) -> Result<Self, OffloadError> {
        let (budget, host_bytes) = (builder.planner_budget()?, builder.host_bytes());
        let mut ask = Ask::new(budget, builder.staging, host_bytes);
        let layouts = builder.settings.layouts(&builder.model);
        let pinned = program::pin_sources(&builder.device, &builder.model)?;
        loop {
            match Self::attempt(&builder, &ask, layouts.clone(), pinned.clone()) {
                Ok(mut offload) => {
                    offload.shortages = ask.shortages;
                    return Ok(offload);
                }
                Err(refused) => ask.lower(refused)?,
            }
        }
    }

    fn attempt(
        builder: &OffloadBuilder<D>,
        ask: &Ask,
        layouts: Vec<BlockLayout>,
        pinned: PinnedSources<D>,
    ) -> Result<Self, Refused> {
        let OffloadBuilder {
            device,
            model,
            settings,
            trace,
            amend,
            ..
        } = builder;
        let costs = &settings.costs;
        let pin_bytes = device.pin_bytes().filter(|_| settings.pin_files);
        let mut workload =
            program::workload::<D>(model, &layouts, &pinned, pin_bytes.is_some(), costs);
        let mut files: Vec<Arc<SourceFile>> = Vec::new();
        for tensor in model.blocks().iter().flat_map(|block| block.tensors()) {
            if let Source::File { file, .. } = tensor.source()
                && !files.iter().any(|known| Arc::ptr_eq(known, file))
            {
                files.push(Arc::clone(file));
            }
        }
        let cache_bytes = builder.page_cache_bytes();
        let plan = || settings.plan(&workload, ask.budget).map_err(Refused::Plan);
        let mut past = PastCache::decide(model, &layouts, cache_bytes, plan)?;
        past.check(model, &files, ask.buffers);
        past.tell(&mut workload);
        if ask.keeps() {
            for block in &mut workload.blocks {
                if block.tier != Tier::Pinned && block.residency == Residency::Planned {
                    block.residency = Residency::Always;
                }
            }
        }
        let make = |budget| settings.plan(&workload, budget);
        let plan = amend(make(ask.budget).map_err(Refused::Plan)?);
        // What is not to be pinned is staged in as few pieces as fit the buffers.
        let pin_bytes = |block| pin_bytes.filter(|_| !past.has(block));
        let (mut kinds, tables) = program::build(device, model, &layouts, &plan, pin_bytes)?;
        past.mark(&mut kinds);
        let streamed = || kinds.iter().flat_map(|kind| kind.visits.iter().flatten());
        let staged = !streamed().all(program::VisitProgram::is_pinned);
        if staged || !program::is_all_pinned::<D>(model, &pinned) {
            ask.check_buffers(staged)?;
        }
        // Uploads and decodes of two passes: handing one over never waits.
        let jobs_of = |kind: &program::KindProgram<D>| {
            let visits = kind.visits.iter().flatten();
            visits.map(|visit| 2 * visit.parts.len()).sum::<usize>()
        };
        let jobs_ahead = 2 * kinds.iter().map(jobs_of).max().unwrap_or(0);
        let names = model
            .blocks()
            .iter()
            .map(|block| block.name().to_owned())
            .collect();
        let transfer = Arc::new(Transfer::new(device, kinds, names, *trace)?);
        let tensors = (model.blocks().iter())
            .map(|block| {
                let names = block.tensors().iter().enumerate();
                names
                    .map(|(position, tensor)| (tensor.name().to_owned(), position))
                    .collect()
            })
            .collect();
        let origin = if *trace {
            Some(device.create_event()?)
        } else {
            None
        };
        let mappings = match builder.copy_mappings {
            true => Mappings::new(&files, &mut past.notes),
            false => Mappings::default(),
        };
        let mut offload = Self {
            progress: Progress::new(),
            model: model.clone(),
            layouts,
            tensors,
            files,
            pinned,
            plan,
            buffers: ask.buffers,
            mappings: Arc::new(mappings),
            feeder: None,
            pinner: Pinner::idle(),
            direct: !staged,
            loaded: None,
            transfer,
            counters: Arc::new(Counters::default()),
            history: History::new(),
            shortages: Vec::new(),
            origin,
            generation: 0,
        };
        let arena_bytes = offload.plan.arena_bytes;
        let of_arena = |error: OffloadError, held_bytes: u64| match error {
            OffloadError::Device(DeviceError::OutOfMemory {
                requested_bytes,
                free_bytes,
            }) => match make(Budget::Least) {
                Ok(least) => Refused::Arena {
                    arena_bytes,
                    least_bytes: least.arena_bytes,
                    requested_bytes: held_bytes + requested_bytes,
                    free_bytes: held_bytes + free_bytes,
                },
                Err(error) => Refused::Plan(error),
            },
            error => error.into(),
        };
        let arena = offload.allocate().map_err(|error| of_arena(error, 0))?;
        let of_staging = |error| Refused::of_staging(error, ask.buffers, staged);
        let mut readers = offload.readers().map_err(of_staging)?;
        // Beside the arena the device needs memory for what it knows of the plan.
        let loaded = offload.load(arena, &tables, readers.as_mut());
        loaded.map_err(|error| of_arena(error, arena_bytes))?;
        if staged {
            let patience = settings.pin_files.then_some(builder.patience);
            let (pinner, requests) = Pinner::start(&offload.transfer, patience, past.notes);
            offload.pinner = pinner;
            let readers = readers.expect("something is read");
            let feeder = Feeder::start(&offload.transfer, readers, jobs_ahead, requests);
            offload.feeder = Some(feeder?);
        }
        if let Some(origin) = &offload.origin {
            let generation = device.record(&offload.transfer.upload, origin)?;
            device.synchronize(origin, generation)?;
        }
        Ok(offload)
    }

    /// Allocates the arena.
    fn allocate(&self) -> Result<D::Arena, OffloadError> {
        self.files
            .iter()
            .try_for_each(|file| self.check_file(file))?;
        Ok(self.transfer.device.allocate_arena(self.plan.arena_bytes)?)
    }

    /// Readers, unless all sources are pinned.
    fn readers(&self) -> Result<Option<Readers<D>>, OffloadError> {
        let is_read = !program::is_all_pinned::<D>(&self.model, &self.pinned);
        let start = || Readers::start(&self.transfer, self.buffers, &self.mappings);
        is_read.then(start).transpose()
    }

    /// Fills in what stays.
    fn load(
        &mut self,
        arena: D::Arena,
        tables: &[crate::device::DecodeTable],
        readers: Option<&mut Readers<D>>,
    ) -> Result<(), OffloadError> {
        let program = self.transfer.device.prepare(&arena, tables)?;
        let moved = load::load(
            &self.transfer,
            &arena,
            &self.model,
            &self.layouts,
            &self.pinned,
            &self.plan,
            readers,
        )?;
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
    /// When there is no such kind, the executor is suspended, a file has changed, or the device fails; and with what the
    /// pass before failed when its last lease was released, if it ended without another call.
    pub fn pass(
        &mut self,
        kind: PassKind,
        stream: &D::Stream,
    ) -> Result<Pass<'_, D>, OffloadError> {
        let kind = self.kind_index(kind)?;
        if self.loaded.is_none() {
            return Err(OffloadError::Suspended);
        }
        self.close_pass();
        self.take_owed()?;
        self.files
            .iter()
            .try_for_each(|file| self.check_file(file))?;
        self.begin_pass(kind, stream)?;
        Ok(Pass::new(self))
    }

    fn kind_index(&self, kind: PassKind) -> Result<usize, OffloadError> {
        let kind_count = self.plan.kinds.len();
        if kind.index() < kind_count {
            Ok(kind.index())
        } else {
            Err(OffloadError::NoSuchKind {
                kind: kind.0,
                kind_count,
            })
        }
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

    /// How streamed sources come to the device, as of now. Waits for nothing.
    #[must_use]
    pub fn host(&self) -> HostReport {
        self.pinner.report()
    }

    /// What happened so far. Waits for the device to finish the passes that have ended.
    ///
    /// # Errors
    /// When the device fails.
    pub fn report(&mut self) -> Result<Report, OffloadError> {
        self.close_pass();
        self.take_owed()?;
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
            shortages: self.shortages.clone(),
            host: self.pinner.report(),
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

    /// Spans of the finished passes that a [`Report`] lists, oldest pass first, if tracing was asked for.
    pub fn spans(&self) -> impl ExactSizeIterator<Item = &Span> {
        self.history.spans.iter()
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
        self.take_owed().and(harvested).and(drained)
    }

    /// Allocates and loads again after [`suspend`](Self::suspend); does nothing if not suspended.
    ///
    /// # Errors
    /// When the device refuses the arena of the plan (no smaller one is planned here), or a source cannot be read. The
    /// executor stays suspended then, and may try again.
    pub fn resume(&mut self) -> Result<(), OffloadError> {
        if self.loaded.is_some() {
            return Ok(());
        }
        let device = &self.transfer.device;
        let (model, plan) = (&self.model, &self.plan);
        // Only for the tables, whatever the uploads.
        let (_, tables) = program::build(device, model, &self.layouts, plan, |_| None)?;
        let arena = self.allocate()?;
        let mut readers = self.readers()?;
        self.load(arena, &tables, readers.as_mut())
    }

    /// Gives up what was prefetched. What a worker has begun to submit still is.
    fn abandon_transfers(&mut self) {
        self.progress.cold = true;
        self.progress.unread = true;
        self.progress.stray = true;
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
