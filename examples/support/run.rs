//! A model made ready on a device and walked, pass by pass, with an engine that computes.

use std::error::Error;

use clap::ValueEnum;
use offload_core::device::Device;
use offload_core::executor::{
    DeviceBudget, Offload, OffloadError, Report as OffloadReport, Settings, Span,
};
use offload_core::model::{Model, PassKind};
use offload_core::plan::{Budget, Form, Plan, PlanError};
use offload_core::testing::{Observed, Recorder};
use offload_cuda::CudaDevice;

use crate::engine::{Engine, Recorded};
use crate::program;

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceName {
    Auto,
    Cpu,
    Cuda,
}

impl DeviceName {
    /// The GPU, if that is to compute, and what is to be told about the choice.
    pub(crate) fn choose(self) -> Result<(Option<CudaDevice>, Vec<String>), Box<dyn Error>> {
        if self == Self::Cpu {
            return Ok((None, Vec::new()));
        }
        match CudaDevice::new(0) {
            Ok(device) => Ok((Some(device), Vec::new())),
            Err(reason) if self == Self::Auto => {
                let note = format!("computed on the CPU: {}", program::one_line(&reason));
                Ok((None, vec![note]))
            }
            Err(reason) => Err(reason.into()),
        }
    }
}

/// A model made ready on a device.
pub(crate) struct Run<D: Device> {
    device: Recorded<D>,
    offload: Offload<Recorded<D>>,
}

/// What came of the passes.
pub(crate) struct Outcome {
    /// Of each pass.
    pub(crate) digests: Vec<u64>,
    pub(crate) report: OffloadReport,
    pub(crate) spans: Vec<Span>,
    /// Bytes of all uploads, counted by a device around the device.
    pub(crate) uploaded_bytes: u64,
    /// Bytes of the model that were not page-locked, when each pass began.
    pub(crate) staged_bytes: Vec<u64>,
}

impl<D: Device> Run<D> {
    pub(crate) fn new(
        engine: &impl Engine<Device = D>,
        model: &Model,
        settings: Settings,
        budget: DeviceBudget,
        trace: bool,
    ) -> Result<Self, OffloadError> {
        let device = Observed::new(engine.device().clone(), Recorder::new());
        let offload = Offload::builder(&device)
            .model(model.clone())
            .settings(settings)
            .device_budget(budget)
            .trace(trace)
            .build()?;
        Ok(Self { device, offload })
    }

    pub(crate) fn plan(&self) -> &Plan {
        self.offload.plan()
    }

    /// Blocks that do not stay as they are computed with.
    pub(crate) fn moved_blocks(&self) -> usize {
        let plan = self.plan();
        blocks_of(plan, Form::Packed) + blocks_of(plan, Form::Streamed)
    }

    /// Makes a pass of each of `kinds`, in order; `visited` is called after each visit.
    pub(crate) fn passes(
        mut self,
        engine: &mut impl Engine<Device = D>,
        kinds: &[PassKind],
        mut visited: impl FnMut() -> Result<(), Box<dyn Error>>,
    ) -> Result<Outcome, Box<dyn Error>> {
        let (mut digests, mut staged_bytes) = (Vec::new(), Vec::new());
        for (number, &kind) in kinds.iter().enumerate() {
            engine.begin()?;
            staged_bytes.push(self.offload.host().staged_bytes);
            let mut pass = self.offload.pass(kind, engine.stream())?;
            match kinds.get(number + 1) {
                Some(&next) => pass.then(next)?,
                None => pass.last(),
            }
            while let Some(lease) = pass.acquire()? {
                for (name, role) in lease.tensor_roles() {
                    match lease.tensor(name) {
                        // An engine has kept what these gave.
                        Err(OffloadError::NotDemanded { .. }) => {}
                        tensor => engine.take(role, &tensor?)?,
                    }
                }
                drop(lease);
                visited()?;
            }
            drop(pass);
            digests.push(engine.finish()?);
        }
        let report = self.offload.report()?;
        let uploaded_bytes = self.device.observer().counts().upload_bytes;
        Ok(Outcome {
            digests,
            report,
            spans: self.offload.spans().cloned().collect(),
            uploaded_bytes,
            staged_bytes,
        })
    }
}

impl Outcome {
    /// How long each visit of each kind of `model` computed when it was made last, if spans were recorded.
    pub(crate) fn visit_seconds(&self, model: &Model) -> Vec<Vec<f64>> {
        let kinds = model.kinds().iter().enumerate();
        let of_kind = |(kind, _)| {
            let mut passes = self.report.passes.iter().rev();
            let Some(last) = passes.find(|pass| pass.kind == kind) else {
                // Never made; missing times are not known.
                return Vec::new();
            };
            let spans = self.spans.iter();
            spans
                .filter(|span| span.pass == last.pass && span.stage == "compute")
                .map(|span| (span.end_s - span.begin_s).max(0.0))
                .collect()
        };
        kinds.map(of_kind).collect()
    }
}

/// The one in the middle; of two, what is between them; of none, `None`.
pub(crate) fn median(seconds: &[f64]) -> Option<f64> {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some((lower + upper) / 2.0)
}

/// What everything resident takes on a device.
pub(crate) fn resident_bytes(model: &Model, settings: &Settings) -> Result<u64, PlanError> {
    let workload = settings.workload(model, true);
    let plan = settings.plan(&workload, Budget::Bytes(u64::MAX))?;
    Ok(plan.arena_bytes)
}

pub(crate) fn blocks_of(plan: &Plan, form: Form) -> usize {
    let blocks = plan.blocks.iter();
    blocks.filter(|block| block.form == form).count()
}
