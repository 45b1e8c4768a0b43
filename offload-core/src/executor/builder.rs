//! Settings of an [`Offload`].

use std::sync::Arc;
use std::time::Duration;

use crate::device::Device;
use crate::executor::Offload;
use crate::executor::costs::Costs;
use crate::executor::error::OffloadError;
use crate::executor::layout::{ArrivalPolicy, BlockLayout};
use crate::executor::pinner::PATIENCE;
use crate::executor::program;
use crate::executor::readers::StagingBuffers;
use crate::model::Model;
use crate::plan::{Budget, Decoding, Plan, PlanError, Wishes, Workload};

/// Device memory that offloading may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceBudget {
    /// So many bytes.
    Bytes(u64),
    /// As few as will do.
    Least,
    /// All that is free but so many bytes.
    LeaveFree(u64),
}

impl DeviceBudget {
    /// `count` GiB (2^30 bytes).
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self::Bytes(count << 30)
    }

    /// `count` MiB (2^20 bytes).
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self::Bytes(count << 20)
    }
}

/// Host memory that may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostBudget {
    /// So many bytes.
    Bytes(u64),
    /// What is available when building, by [`host::available_bytes`](crate::host::available_bytes).
    Available,
}

/// Settings that do not depend on a device.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The form in which tensors arrive.
    pub arrival: ArrivalPolicy,
    /// Runs of fewer bytes than this stay resident: small copies do not reach the rate of the wire. Default: 64 KiB.
    pub remainder_below_bytes: u64,
    /// Encoded blocks of more bytes than this may be staged in parts, cut between tensors, so that one is decoded while the
    /// next one comes. Default: 64 MiB.
    pub part_bytes: u64,
    /// Times for the planner.
    pub costs: Costs,
    /// How many streamed blocks can arrive while one computes; the planner chooses by default.
    pub blocks_ahead: Option<u32>,
    /// Where blocks that do not arrive as stored are decoded; the planner chooses by default.
    pub decoding: Option<Decoding>,
    /// Whether encoded blocks may stay on the device, to be decoded at each visit, where that is faster than streaming
    /// them. Default: yes.
    pub pack: bool,
    /// Whether what is streamed from files is page-locked, where the device can. Default: yes.
    pub pin_files: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            arrival: ArrivalPolicy::default(),
            remainder_below_bytes: 64 << 10,
            part_bytes: 64 << 20,
            costs: Costs::default(),
            blocks_ahead: None,
            decoding: None,
            pack: true,
            pin_files: true,
        }
    }
}

impl Settings {
    /// The plan for a workload that these settings describe.
    ///
    /// # Errors
    /// As [`Plan::make_as`].
    pub fn plan(&self, workload: &Workload, budget: Budget) -> Result<Plan, PlanError> {
        let wishes = Wishes {
            blocks_ahead: self.blocks_ahead,
            decoding: self.decoding,
            unpacked: !self.pack,
        };
        Plan::make_as(workload, &self.costs.rates, budget, wishes)
    }

    pub(super) fn layouts(&self, model: &Model) -> Vec<BlockLayout> {
        let layout = |block: &Arc<dyn crate::swappable::Swappable>| {
            BlockLayout::new(
                block.as_ref(),
                &self.arrival,
                self.remainder_below_bytes,
                self.part_bytes,
            )
        };
        model.blocks().iter().map(layout).collect()
    }

    /// What the planner is told about `model`, for planning without a device. Memory counts as pinned if `device_pins`,
    /// and so do files, once they were read, if these settings allow it.
    #[must_use]
    pub fn workload(&self, model: &Model, device_pins: bool) -> Workload {
        let device = crate::cpu::CpuDevice::builder().pins(device_pins).build();
        let pinned =
            program::pin_sources(&device, model).expect("pinning on the CPU device cannot fail");
        program::workload::<crate::cpu::CpuDevice>(
            model,
            &self.layouts(model),
            &pinned,
            device_pins && self.pin_files,
            &self.costs,
        )
    }
}

/// Begins an [`Offload`]; made by [`Offload::builder`].
#[derive(Debug)]
#[must_use]
pub struct OffloadBuilder<D: Device, M = Model> {
    pub(super) device: D,
    pub(super) model: M,
    pub(super) budget: DeviceBudget,
    pub(super) settings: Settings,
    pub(super) staging: StagingBuffers,
    pub(super) host: HostBudget,
    pub(super) page_cache: HostBudget,
    pub(super) copy_mappings: bool,
    pub(super) patience: Duration,
    pub(super) trace: bool,
    pub(super) amend: fn(Plan) -> Plan,
}

impl<D: Device> OffloadBuilder<D, ()> {
    pub(super) fn new(device: &D) -> Self {
        Self {
            device: device.clone(),
            model: (),
            // What the context and an engine's first allocations need.
            budget: DeviceBudget::LeaveFree(1 << 30),
            settings: Settings::default(),
            staging: StagingBuffers::default(),
            host: HostBudget::Available,
            page_cache: HostBudget::Available,
            copy_mappings: false,
            patience: PATIENCE,
            trace: false,
            amend: |plan| plan,
        }
    }

    /// The model whose blocks are offloaded.
    pub fn model(self, model: Model) -> OffloadBuilder<D, Model> {
        let Self {
            device,
            budget,
            settings,
            staging,
            host,
            page_cache,
            copy_mappings,
            patience,
            trace,
            amend,
            model: (),
        } = self;
        OffloadBuilder {
            device,
            model,
            budget,
            settings,
            staging,
            host,
            page_cache,
            copy_mappings,
            patience,
            trace,
            amend,
        }
    }
}

impl<D: Device, M> OffloadBuilder<D, M> {
    /// Device memory that may be taken. Default: all that is free but 1 GiB.
    pub fn device_budget(mut self, budget: DeviceBudget) -> Self {
        self.budget = budget;
        self
    }

    /// All settings that do not depend on a device, at once: those of [`Settings::default`] and of earlier calls are gone.
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// The form in which tensors arrive. Default: matrices bf16, vectors f32.
    pub fn arrival(mut self, arrival: ArrivalPolicy) -> Self {
        self.settings.arrival = arrival;
        self
    }

    /// Runs of fewer bytes than this stay resident. Default: 64 KiB.
    pub fn remainder_below(mut self, bytes: u64) -> Self {
        self.settings.remainder_below_bytes = bytes;
        self
    }

    /// Times for the planner. Default: assumptions that [`Costs::default`] lists.
    pub fn costs(mut self, costs: Costs) -> Self {
        self.settings.costs = costs;
        self
    }

    /// Host memory that may be taken for the staging buffers. Default: what is available. The model's own bytes are not in
    /// it: for those see [`page_cache`](Self::page_cache).
    ///
    /// Where it does not hold the staging buffers, smaller ones are used, down to two of 64 KiB; then what would stream
    /// through them stays on the device, if that is allowed as much. Each step is logged and stands in the report.
    pub fn host_budget(mut self, budget: HostBudget) -> Self {
        self.host = budget;
        self
    }

    /// Bytes of the model's files that the system's page cache is to hold. Default: three quarters of what is available.
    ///
    /// Of a model with more, a fixed part of so many bytes, spread over the blocks, is read through the page cache and
    /// stays there; the rest stays on the device if it can, or is read past the cache in each pass, at the rate of the
    /// drive. Read through the cache, each byte would have been given up for another when its turn came again.
    pub fn page_cache(mut self, budget: HostBudget) -> Self {
        self.page_cache = budget;
        self
    }

    /// How many streamed blocks can arrive while one computes. Default: the planner chooses. Blocks are then decoded ahead;
    /// together with [`Decoding::AtUse`] it is refused.
    pub fn blocks_ahead(mut self, blocks: u32) -> Self {
        self.settings.blocks_ahead = Some(blocks);
        self
    }

    /// Where blocks that do not arrive as stored are decoded. Default: the planner chooses.
    pub fn decoding(mut self, decoding: Decoding) -> Self {
        self.settings.decoding = Some(decoding);
        self
    }

    /// Whether encoded blocks may stay on the device, to be decoded at each visit. Default: yes, where that is faster
    /// than streaming them.
    pub fn pack(mut self, pack: bool) -> Self {
        self.settings.pack = pack;
        self
    }

    /// Buffers between files and the device.
    pub fn staging_buffers(mut self, staging: StagingBuffers) -> Self {
        self.staging = staging;
        self
    }

    /// Records when uploads, decodes and visits begin and end; see [`Offload::spans`]. Default: off.
    pub fn trace(mut self, trace: bool) -> Self {
        self.trace = trace;
        self
    }

    /// Whether ranges of files that are streamed are page-locked, where the device can: the fastest way, for as much
    /// host memory as is streamed. Otherwise only the staging buffers are. Default: yes.
    pub fn pin_files(mut self, pin: bool) -> Self {
        self.settings.pin_files = pin;
        self
    }

    /// Fills staging buffers from mappings of the files rather than by reading: it can be faster, and is without the
    /// protection that reading has. Linux; elsewhere files are read as ever.
    ///
    /// # Safety
    /// As long as the executor lives no process writes to the files or makes them shorter. A file that is cut off as it is
    /// copied ends this process with a signal (`SIGBUS`).
    #[expect(unsafe_code, reason = "its caller makes a promise")]
    pub unsafe fn copy_from_mappings(mut self) -> Self {
        self.copy_mappings = true;
        self
    }

    /// How long page-locking may take before it counts as late, for tests.
    #[doc(hidden)]
    pub fn pin_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Changes the plan before it is executed, so that tests can show that each fence is needed.
    #[doc(hidden)]
    pub fn amend_plan(mut self, amend: fn(Plan) -> Plan) -> Self {
        self.amend = amend;
        self
    }
}

impl<D: Device> OffloadBuilder<D, Model> {
    /// Plans, allocates and loads what stays.
    ///
    /// If the device refuses the arena, a smaller one is planned, down to the least for which there is a plan; each
    /// refusal is logged and stands in the report.
    ///
    /// # Errors
    /// When no plan fits the budget, the device or the host refuses the least memory, or a source cannot be read.
    pub fn build(self) -> Result<Offload<D>, OffloadError> {
        Offload::build(self)
    }

    pub(super) fn host_bytes(&self) -> Option<u64> {
        match self.host {
            HostBudget::Bytes(bytes) => Some(bytes),
            HostBudget::Available => crate::host::available_bytes(),
        }
    }

    pub(super) fn page_cache_bytes(&self) -> Option<u64> {
        match self.page_cache {
            HostBudget::Bytes(bytes) => Some(bytes),
            HostBudget::Available => crate::host::available_bytes().map(|bytes| bytes / 4 * 3),
        }
    }

    pub(super) fn planner_budget(&self) -> Result<Budget, OffloadError> {
        Ok(match self.budget {
            DeviceBudget::Bytes(bytes) => Budget::Bytes(bytes),
            DeviceBudget::Least => Budget::Least,
            DeviceBudget::LeaveFree(bytes) => {
                Budget::Bytes(self.device.memory()?.free_bytes.saturating_sub(bytes))
            }
        })
    }
}
