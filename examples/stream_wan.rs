//! Streams a WAN checkpoint through a device budget and computes with every block as it arrives.
//!
//! ```text
//! cargo run --example stream_wan
//! cargo run --example stream_wan -- wan2.1_t2v_1.3B_Q4_K_M.gguf --budget 600MiB --passes 8
//! cargo run --example stream_wan -- t2v_high_noise.gguf --low t2v_low_noise.gguf --budget 8GiB
//! cargo run --example stream_wan -- vace.gguf --blocks-to-swap 20 --prefetch-blocks 1 --block-swap-debug
//! ```
//!
//! Without a file it writes a small checkpoint to a temporary folder first. It runs the passes twice: once with
//! everything resident, once within the budget, and compares the results bit for bit. Where the device does not hold
//! everything the first run is in the least memory instead.
//!
//! The passes are those of a run of as many steps as they make, two each with `--guidance separate`. Of a pair of experts
//! the one for high noise makes the steps from 1 down to the boundary, at noise levels that are even but for WAN's shift
//! of 5: half of them at the usual boundaries, and each expert one at least.
//!
//! On a GPU the planner is told what was measured: the rate of the wire before, and how long each visit computes in the
//! run with everything resident.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/engine.rs"]
mod engine;
#[path = "support/inputs.rs"]
mod inputs;
#[path = "support/log.rs"]
mod log;
#[path = "support/matrix.rs"]
mod matrix;
#[path = "support/output.rs"]
mod output;
#[path = "support/program.rs"]
mod program;
#[path = "support/run.rs"]
mod run;
#[path = "support/size.rs"]
mod size;
#[path = "support/swap.rs"]
mod swap;
#[path = "support/wan.rs"]
mod wan;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use cuda::CudaEngine;
use engine::{CpuEngine, Engine};
use indicatif::{ProgressBar, ProgressStyle};
use offload_core::decode::Float;
use offload_core::device::Device;
use offload_core::executor::{
    Arrival, ArrivalPolicy, Costs, DeviceBudget, HostReport, Settings, Shortage, Span,
};
use offload_core::model::PassKind;
use offload_core::plan::{Budget, Form, Plan, PlanError, Tier, Verdict, Workload};
use offload_wan::{
    BlockSwap, Checkpoint, CheckpointError, Evaluates, Expert, ExpertChange, Guidance, StepPass,
    SynthesizeSpec, Variant, WanModel, synthesize,
};
use output::Output;
use run::{DeviceName, Outcome, Run, blocks_of, median, resident_bytes};
use serde::Serialize;
use serde_json::json;
use swap::SwapArguments;
use wan::{LowArguments, PassArguments, StepReport, Subject, high_steps};

/// Streams a WAN checkpoint through a device budget and computes with every block as it arrives.
#[derive(Debug, Parser)]
#[command(name = "stream_wan")]
struct Arguments {
    /// The checkpoint; several files are the shards of one model. Without one, a small checkpoint is made.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where to compute; auto: on the GPU if there is one that can be used.
    #[arg(long, value_enum, default_value_t = DeviceName::Auto)]
    device: DeviceName,
    /// Device memory: a size such as 8GiB or 900MiB, or `least`. Default: 60 % of what everything resident
    /// takes, or the least that will do if that is more; where everything would stay in it, encoded, half of the way from
    /// the least to what that takes.
    #[arg(long, value_name = "SIZE", value_parser = parse_budget, conflicts_with_all = ["blocks_to_swap", "preset"])]
    budget: Option<DeviceBudget>,
    /// What the checkpoint is, whatever it looks like, such as wan2.2-t2v-a14b.
    #[arg(long, value_name = "NAME", requires = "files", value_parser = wan::parse_variant)]
    variant: Option<Variant>,
    #[command(flatten)]
    low: LowArguments,
    #[command(flatten)]
    which_passes: PassArguments,
    #[command(flatten)]
    swap: SwapArguments,
    /// How often to walk the model, all its steps together.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=MOST_PASSES))]
    passes: u32,
    /// What the streamed run is compared with. Default: resident if the device holds that, else least.
    #[arg(long, value_enum, value_name = "RUN")]
    compare_with: Option<ComparedWith>,
    /// The form in which matrices arrive; `stored` is for vectors too, which arrive as f32 otherwise. Matrices that are
    /// no floats are read but not multiplied.
    #[arg(long, value_enum, default_value_t = ArrivalName::Bf16)]
    arrive: ArrivalName,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// Write what moved when, for chrome://tracing or Perfetto.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

/// More than anyone waits for.
const MOST_PASSES: i64 = 100_000;

/// A run whose results those of the streamed run are to equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum ComparedWith {
    /// Everything stays on the device.
    Resident,
    /// In the least memory that will do.
    Least,
    /// In all memory that is free but a little.
    Most,
}

impl ComparedWith {
    fn name(self) -> &'static str {
        match self {
            Self::Resident => "with everything resident",
            Self::Least => "in the least memory",
            Self::Most => "in the most memory",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ArrivalName {
    Stored,
    F32,
    F16,
    Bf16,
}

impl ArrivalName {
    fn policy(self) -> ArrivalPolicy {
        let matrices = match self {
            Self::Stored => return ArrivalPolicy::STORED,
            Self::F32 => Float::F32,
            Self::F16 => Float::F16,
            Self::Bf16 => Float::BF16,
        };
        ArrivalPolicy {
            matrices: Arrival::Decoded(matrices),
            ..ArrivalPolicy::default()
        }
    }
}

fn parse_budget(text: &str) -> Result<DeviceBudget, String> {
    match text {
        "least" => Ok(DeviceBudget::Least),
        _ => size::parse_size(text).map(DeviceBudget::Bytes),
    }
}

/// What came of comparing the two runs.
struct Comparison {
    identical: bool,
    with: ComparedWith,
    resident_peak_bytes: u64,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    variant: Option<String>,
    device: String,
    /// Both runs gave the same bits.
    identical: bool,
    /// What the other run was.
    compared_with: ComparedWith,
    /// What each pass of the streamed run gave, in hexadecimal digits: the same on every device.
    digests: Vec<String>,
    budget_bytes: u64,
    peak_bytes: u64,
    /// What everything resident takes.
    resident_peak_bytes: u64,
    streamed_blocks: usize,
    packed_blocks: usize,
    /// Bytes moved once, before the first pass.
    load_bytes: u64,
    /// Of the first kind of pass.
    wire_bytes_per_pass: u64,
    /// Bytes brought for a pass that never came.
    prefetched_past_end_bytes: u64,
    /// Bytes of all uploads, counted by a device around the device.
    uploaded_bytes: u64,
    /// How streamed sources come to the device.
    host: HostReport,
    /// What memory was short, and what was done.
    shortages: Vec<Shortage>,
    /// What the planner was told: measured on a GPU, assumed elsewhere.
    wire_bytes_per_second: f64,
    decode_bytes_per_second: f64,
    /// Of the last 1024 passes, if there are more.
    pass_seconds: Vec<f64>,
    stall_seconds: Vec<f64>,
    predicted_pass_seconds: f64,
    bound_seconds: f64,
    verdict: Verdict,
    /// Every kind of pass that the model has.
    kinds: Vec<KindReport>,
    /// Which kind each pass was of.
    pass_kinds: Vec<u32>,
    /// What was computed in each pass; `null` for an encoder.
    pass_evaluates: Option<Vec<Evaluates>>,
    /// What the steps of a run take; none of an encoder.
    steps: Vec<StepReport>,
    /// What the change from one expert to the other costs; `null` without a pair.
    expert_change: Option<ChangeReport>,
    /// Bytes of keys and values that an engine keeps for a prompt of 512 tokens and an image of 257.
    cached_bytes: u64,
}

#[derive(Debug, Serialize)]
struct ChangeReport {
    /// What the planner says.
    #[serde(flatten)]
    predicted: ExpertChange,
    /// Where it takes the streamed blocks of the second expert to come from, the slowest; `null` if none are streamed.
    planned_tier: Option<Tier>,
    /// What came of it; `null` if no pass of the second expert was made.
    measured: Option<MeasuredChange>,
}

/// What the change to the other expert took.
#[derive(Debug, Serialize)]
struct MeasuredChange {
    /// The first pass of the second expert.
    pass: usize,
    pass_seconds: f64,
    stall_seconds: f64,
    /// The median of later passes of the same kind; `null` if there is none.
    later_pass_seconds: Option<f64>,
    /// How far the two differ.
    extra_seconds: Option<f64>,
    /// Bytes that were not page-locked when the pass began, of both experts: brought through staging buffers, or locked
    /// just before.
    staged_bytes: u64,
    /// Bytes of all uploads but those for loading and those that passes of these kinds take: what was brought in vain, at
    /// the change or past the end.
    extra_bytes: u64,
}

impl MeasuredChange {
    fn new(job: &Job, plan: &Plan, outcome: &Outcome) -> Option<Self> {
        let wan = job.subject.wan.as_ref()?;
        let is_low = |kind: &PassKind| wan.expert_of(*kind) == Some(Expert::Low);
        let change = job.kinds.iter().position(is_low).filter(|&pass| pass > 0)?;
        let passes = &outcome.report.passes;
        let first = passes.iter().find(|pass| pass.pass == change as u64)?;
        let later = passes
            .iter()
            .filter(|pass| pass.pass > first.pass && pass.kind == first.kind);
        let later: Vec<f64> = later.map(|pass| pass.pass_s).collect();
        let later_pass_seconds = median(&later);
        let of_kinds = job
            .kinds
            .iter()
            .map(|kind| plan.kinds[kind.index()].wire_bytes_per_pass);
        let expected = outcome.report.load_bytes + of_kinds.sum::<u64>();
        Some(Self {
            pass: change,
            pass_seconds: first.pass_s,
            stall_seconds: first.stall_s,
            later_pass_seconds,
            extra_seconds: later_pass_seconds.map(|later| first.pass_s - later),
            staged_bytes: outcome.staged_bytes.get(change).copied()?,
            extra_bytes: outcome.uploaded_bytes.saturating_sub(expected),
        })
    }
}

impl ChangeReport {
    fn new(job: &Job, plan: &Plan, outcome: &Outcome) -> Option<Self> {
        let wan = job.subject.wan.as_ref()?;
        let streamed = plan.blocks.iter().enumerate().filter(|(index, block)| {
            block.form == Form::Streamed && wan.part(*index).1 == Some(Expert::Low)
        });
        Some(Self {
            predicted: wan.expert_change(plan)?,
            planned_tier: streamed.map(|(_, block)| block.tier).max(),
            measured: MeasuredChange::new(job, plan, outcome),
        })
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let predicted = &self.predicted;
        write!(
            out,
            "change      of expert within the same {}: {} of the one and {} of the other stay; at most {:.3} s more",
            ByteSize(predicted.arena_bytes),
            ByteSize(predicted.high_resident_bytes),
            ByteSize(predicted.low_resident_bytes),
            predicted.unhinted_s
        )?;
        match self.planned_tier {
            Some(Tier::Pinned) => writeln!(out, ", if what is streamed is page-locked by then")?,
            _ => writeln!(out)?,
        }
        let Some(measured) = &self.measured else {
            return Ok(());
        };
        write!(
            out,
            "changed     in pass {}: {:.3} s, {:.3} s of them stalled",
            measured.pass, measured.pass_seconds, measured.stall_seconds
        )?;
        if let Some(extra) = measured.extra_seconds {
            // What is less than half a millisecond has no sign.
            let extra = (extra * 1e3).round() / 1e3 + 0.0;
            write!(out, ", {extra:+.3} s against later ones")?;
        }
        writeln!(
            out,
            "; {} more moved, {} not page-locked when it began",
            ByteSize(measured.extra_bytes),
            ByteSize(measured.staged_bytes)
        )
    }
}

#[derive(Debug, Serialize)]
struct KindReport {
    name: String,
    wire_bytes_per_pass: u64,
    predicted_pass_seconds: f64,
    verdict: Verdict,
}

/// Tokens of a prompt, and of an image that CLIP encodes.
const CACHED_TOKENS: (u64, u64) = (512, 257);

/// Device memory that the run in the most memory leaves to others.
const HEADROOM: u64 = 256 << 20;

fn main() -> ExitCode {
    program::run(stream)
}

fn stream(arguments: Arguments, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let (cuda, notes) = arguments.device.choose()?;
    if arguments.swap.is_debug() {
        log::to_stderr();
    }
    let folder = tempfile::tempdir()?;
    let checkpoint = if arguments.files.is_empty() {
        let path = folder.path().join("wan_demo.gguf");
        synthesize(&SynthesizeSpec::default(), &path)?;
        Checkpoint::open(path)?
    } else {
        taken_for(Checkpoint::open_all(&arguments.files)?, arguments.variant)?
    };
    let (passes, asked) = (arguments.passes, &arguments.which_passes);
    let per_step = match asked.guidance {
        Guidance::Separate => 2,
        Guidance::Off | Guidance::Lockstep => 1,
    };
    let steps = passes.div_ceil(per_step);
    let low = arguments.low.open()?;
    let low = low
        .map(|low| taken_for(low, arguments.variant))
        .transpose()?;
    // Opened before: a run of hours must not end with a bad path.
    let trace = arguments.trace.as_ref();
    let trace = trace.map(|path| Output::open(path, [&checkpoint].into_iter().chain(&low), &[]));
    let trace = trace.transpose()?;
    let subject = Subject::new(&checkpoint, low.as_ref(), asked, steps)?;
    let swap = arguments.swap.swap(subject.wan.as_ref())?;
    let variant = checkpoint.detection().variant;
    let wan = subject.wan.as_ref();
    let of_steps = wan.map(|wan| first_passes(wan, steps, passes as usize));
    let job = Job {
        kinds: match &of_steps {
            Some(passes) => passes.iter().map(|pass| pass.kind).collect(),
            None => vec![PassKind::FULL; passes as usize],
        },
        evaluates: of_steps.map(|passes| passes.iter().map(|pass| pass.evaluates).collect()),
        policy: arguments.arrive.policy(),
        variant: variant.map(|variant| variant.to_string()),
        subject,
        swap,
        trace,
        notes,
        arguments,
    };
    match cuda {
        Some(device) => {
            let engine = CudaEngine::new(device, &job.subject.model)?;
            job.run(engine, out)
        }
        None => job.run(CpuEngine::new(), out),
    }
}

/// What the checkpoint is by the caller's word, if there is one.
fn taken_for(
    checkpoint: Checkpoint,
    variant: Option<Variant>,
) -> Result<Checkpoint, CheckpointError> {
    Ok(match variant {
        None => checkpoint,
        Some(variant) => checkpoint.taken_for(variant)?,
    })
}

/// What is asked for, whatever the device.
struct Job {
    arguments: Arguments,
    variant: Option<String>,
    subject: Subject,
    swap: Option<BlockSwap>,
    policy: ArrivalPolicy,
    kinds: Vec<PassKind>,
    evaluates: Option<Vec<Evaluates>>,
    trace: Option<Output>,
    /// To be told at the end: an error is the only line on standard error.
    notes: Vec<String>,
}

impl Job {
    fn run<E: Engine>(mut self, mut engine: E, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
        let measured = engine.measure()?;
        let mut costs = measured.clone().unwrap_or_default();
        let settings = self.settings(&Costs::default());
        let resident_peak_bytes = resident_bytes(&self.subject.model, &settings)?;
        let (reference, compared_with) =
            self.reference(&engine, resident_peak_bytes, &costs, measured.is_some())?;
        let bar = self.progress_bar();
        bar.set_message("reference");
        let visited = || {
            bar.inc(1);
            Ok(())
        };
        let expected = reference.passes(&mut engine, &self.kinds, visited)?;
        if measured.is_some() && compared_with == ComparedWith::Resident {
            costs.compute_s = expected.visit_seconds(&self.subject.model);
        }

        let within = self.within(&engine, resident_peak_bytes, &costs)?;
        let plan = within.plan().clone();
        if !self.arguments.json {
            writeln!(out, "{plan}")?;
            out.flush()?;
        }
        bar.set_message("streamed");
        let streamed = within.passes(&mut engine, &self.kinds, visited)?;
        bar.finish_and_clear();
        if let Some(swap) = &self.swap {
            swap.log_spans(&streamed.spans);
        }
        if let Some(trace) = &mut self.trace {
            trace.write(&trace_of(&streamed.spans)?)?;
        }

        let comparison = Comparison {
            identical: streamed.digests == expected.digests,
            with: compared_with,
            resident_peak_bytes,
        };
        let report = Report::new(&self, &plan, &streamed, comparison, &costs);
        for note in &self.notes {
            program::tell(&format!("note: {note}"));
        }
        if self.arguments.json {
            serde_json::to_writer_pretty(&mut *out, &report)?;
            writeln!(out)?;
        } else {
            report.print(out)?;
        }
        if report.identical {
            Ok(())
        } else {
            Err("the results of the two runs differ".into())
        }
    }

    fn progress_bar(&self) -> ProgressBar {
        let kinds = self.subject.model.kinds();
        let visits = |kind: &PassKind| kinds[kind.index()].visits().len() as u64;
        let bar = ProgressBar::new(2 * self.kinds.iter().map(visits).sum::<u64>());
        if self.arguments.json {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        let style = "{msg:10} {bar:40} {pos}/{len} visits, {elapsed}";
        bar.set_style(ProgressStyle::with_template(style).expect("a fixed template"));
        bar
    }

    fn settings(&self, costs: &Costs) -> Settings {
        Settings {
            arrival: self.policy,
            costs: costs.clone(),
            ..Settings::default()
        }
    }

    /// Makes the run ready that the streamed one is compared with.
    fn reference<E: Engine>(
        &mut self,
        engine: &E,
        resident_bytes: u64,
        costs: &Costs,
        trace: bool,
    ) -> Result<Reference<E::Device>, Box<dyn Error>> {
        let settings = self.settings(costs);
        let run = |budget| {
            let model = &self.subject.model;
            Run::new(engine, model, settings.clone(), budget, trace)
        };
        let asked = self.arguments.compare_with;
        if asked.is_none_or(|asked| asked == ComparedWith::Resident) {
            let free_bytes = engine.device().memory()?.free_bytes;
            if resident_bytes <= free_bytes {
                let run = run(DeviceBudget::LeaveFree(0))?;
                // The device may have refused as much, and got a smaller arena.
                if run.moved_blocks() == 0 {
                    return Ok((run, ComparedWith::Resident));
                }
            }
            let reason = format!(
                "everything resident takes {resident_bytes} bytes, the device has {free_bytes} free"
            );
            if asked.is_some() {
                return Err(reason.into());
            }
            self.notes
                .push(format!("{reason}: two streamed runs are compared"));
        }
        // Two runs within the same budget would say little.
        let least = self.arguments.budget == Some(DeviceBudget::Least);
        let with = asked.unwrap_or(if least {
            ComparedWith::Most
        } else {
            ComparedWith::Least
        });
        let run = run(match with {
            ComparedWith::Least => DeviceBudget::Least,
            ComparedWith::Resident | ComparedWith::Most => DeviceBudget::LeaveFree(HEADROOM),
        })?;
        Ok((run, with))
    }

    /// The run that is asked for.
    fn within<E: Engine>(
        &self,
        engine: &E,
        resident_bytes: u64,
        costs: &Costs,
    ) -> Result<Run<E::Device>, Box<dyn Error>> {
        let traces = self.trace.is_some() || self.arguments.swap.is_debug();
        let run = |budget| {
            let model = &self.subject.model;
            Run::new(engine, model, self.settings(costs), budget, traces)
        };
        if let Some(swap) = &self.swap {
            // The original block swap: so many blocks leave the device, all else stays.
            let wan = self.subject.wan.clone();
            let wan = swap.apply(wan.ok_or("only a WAN transformer is swapped")?)?;
            let settings = swap.settings(self.settings(costs));
            let budget = DeviceBudget::Least;
            return Ok(Run::new(engine, wan.model(), settings, budget, traces)?);
        }
        if let Some(budget) = self.arguments.budget {
            return Ok(run(budget)?);
        }
        let settings = self.settings(costs);
        let pins = engine.device().pin_bytes().is_some();
        let workload = settings.workload(&self.subject.model, pins);
        Ok(run(usual_budget(resident_bytes, &settings, &workload)?)?)
    }
}

/// 60 % of what everything resident takes. Where a pass would move nothing all the same, because blocks stay encoded, half
/// of the way from the least to what that takes.
fn usual_budget(
    resident_bytes: u64,
    settings: &Settings,
    workload: &Workload,
) -> Result<DeviceBudget, PlanError> {
    let least = settings.plan(workload, Budget::Least)?.arena_bytes;
    let usual = resident_bytes / 5 * 3;
    if usual <= least {
        return Ok(DeviceBudget::Least);
    }
    let plan = settings.plan(workload, Budget::Bytes(usual))?;
    let moves = plan.kinds.iter().all(|kind| kind.wire_bytes_per_pass > 0);
    Ok(DeviceBudget::Bytes(match moves {
        true => usual,
        false => least + (plan.arena_bytes - least) / 2,
    }))
}

/// The first `count` passes of a run of `steps` steps.
fn first_passes(wan: &WanModel, steps: u32, count: usize) -> Vec<StepPass> {
    let run = |expert, steps: u32| {
        let passes = (0..steps).flat_map(move |step| wan.step(expert, step == 0));
        passes.collect::<Vec<_>>()
    };
    let passes = match wan.boundary() {
        None => run(None, steps),
        Some(boundary) => {
            let high = high_steps(steps, boundary);
            let low = run(Some(Expert::Low), steps.saturating_sub(high));
            [run(Some(Expert::High), high), low].concat()
        }
    };
    passes.into_iter().take(count).collect()
}

/// The run that the streamed one is compared with, and which that is.
type Reference<D> = (Run<D>, ComparedWith);

impl Report {
    fn new(
        job: &Job,
        plan: &Plan,
        outcome: &Outcome,
        comparison: Comparison,
        costs: &Costs,
    ) -> Self {
        let wan = job.subject.wan.as_ref();
        let kind = &plan.kinds[PassKind::FULL.index()];
        let report = &outcome.report;
        let digests = outcome.digests.iter();
        Self {
            variant: job.variant.clone(),
            device: report.device.clone(),
            identical: comparison.identical,
            compared_with: comparison.with,
            digests: digests.map(|digest| format!("{digest:016x}")).collect(),
            budget_bytes: report.budget_bytes,
            peak_bytes: report.arena_bytes,
            resident_peak_bytes: comparison.resident_peak_bytes,
            streamed_blocks: blocks_of(plan, Form::Streamed),
            packed_blocks: blocks_of(plan, Form::Packed),
            load_bytes: report.load_bytes,
            wire_bytes_per_pass: kind.wire_bytes_per_pass,
            prefetched_past_end_bytes: report.past_end_bytes,
            uploaded_bytes: outcome.uploaded_bytes,
            host: report.host.clone(),
            shortages: report.shortages.clone(),
            wire_bytes_per_second: costs.rates.wire_bytes_per_s,
            decode_bytes_per_second: costs.decode_bytes_per_s,
            pass_seconds: report.passes.iter().map(|pass| pass.pass_s).collect(),
            stall_seconds: report.passes.iter().map(|pass| pass.stall_s).collect(),
            predicted_pass_seconds: kind.predicted_pass_s,
            bound_seconds: kind.certificate.placement_bound_s,
            verdict: kind.verdict,
            kinds: plan
                .kinds
                .iter()
                .map(|kind| KindReport {
                    name: kind.name.clone(),
                    wire_bytes_per_pass: kind.wire_bytes_per_pass,
                    predicted_pass_seconds: kind.predicted_pass_s,
                    verdict: kind.verdict,
                })
                .collect(),
            pass_kinds: job.kinds.iter().map(|kind| kind.0).collect(),
            pass_evaluates: job.evaluates.clone(),
            steps: wan.map_or(Vec::new(), |wan| StepReport::all(wan, plan)),
            expert_change: ChangeReport::new(job, plan, outcome),
            cached_bytes: wan.map_or(0, |wan| {
                let (text, image) = CACHED_TOKENS;
                wan.cached_bytes(text, image)
            }),
        }
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let share = 100.0 * self.peak_bytes as f64 / self.resident_peak_bytes as f64;
        let seconds = |list: &[f64]| {
            list.iter()
                .map(|seconds| format!("{seconds:.3}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let past_end = ByteSize(self.prefetched_past_end_bytes);
        writeln!(
            out,
            "variant     {}",
            self.variant.as_deref().unwrap_or("unknown")
        )?;
        writeln!(out, "device      {}", self.device)?;
        writeln!(out, "budget      {}", ByteSize(self.budget_bytes))?;
        writeln!(
            out,
            "peak        {}, {share:.0} % of {} with everything resident",
            ByteSize(self.peak_bytes),
            ByteSize(self.resident_peak_bytes)
        )?;
        writeln!(
            out,
            "moved       {} once, {} each pass for {} streamed blocks, {past_end} past the end; {} blocks packed",
            ByteSize(self.load_bytes),
            ByteSize(self.wire_bytes_per_pass),
            self.streamed_blocks,
            self.packed_blocks
        )?;
        let host = &self.host;
        writeln!(
            out,
            "sources     {} mapped, {} copied, {} staged ({} past the page cache)",
            ByteSize(host.mapped_bytes),
            ByteSize(host.copied_bytes),
            ByteSize(host.staged_bytes),
            ByteSize(host.uncached_bytes)
        )?;
        for note in &host.notes {
            writeln!(out, "because     {note}")?;
        }
        for shortage in &self.shortages {
            writeln!(out, "short       {shortage}")?;
        }
        if self.kinds.len() > 1 {
            for kind in &self.kinds {
                let (name, bytes) = (&kind.name, ByteSize(kind.wire_bytes_per_pass));
                writeln!(out, "kind        {name}: {bytes} each pass")?;
            }
        }
        for step in &self.steps {
            step.print(out)?;
        }
        if let Some(change) = &self.expert_change {
            change.print(out)?;
        }
        if self.cached_bytes > 0 {
            let cached = ByteSize(self.cached_bytes);
            writeln!(out, "kept        {cached} of keys and values by the engine")?;
        }
        writeln!(out, "passes      {} s", seconds(&self.pass_seconds))?;
        writeln!(out, "stalled     {} s", seconds(&self.stall_seconds))?;
        writeln!(out, "verdict     {}", self.verdict)?;
        let verdict = if self.identical {
            "identical to"
        } else {
            "DIFFERENT from"
        };
        let with = self.compared_with.name();
        writeln!(out, "result      {verdict} the run {with}")
    }
}

/// Chrome's trace format: complete events, times in microseconds, a row for each stage.
fn trace_of(spans: &[Span]) -> Result<Vec<u8>, serde_json::Error> {
    let stages = ["upload", "decode", "stall", "compute"];
    let events = spans.iter().map(|span| {
        json!({
            "name": span.block,
            "cat": span.stage,
            "ph": "X",
            "ts": span.begin_s * 1e6,
            "dur": (span.end_s - span.begin_s) * 1e6,
            "pid": 0,
            "tid": stages.iter().position(|stage| *stage == span.stage),
            "args": { "pass": span.pass },
        })
    });
    let names = stages.iter().enumerate().map(|(tid, stage)| {
        json!({
            "name": "thread_name", "ph": "M", "pid": 0, "tid": tid, "args": { "name": stage },
        })
    });
    let events: Vec<_> = names.chain(events).collect();
    serde_json::to_vec(&json!({ "traceEvents": events }))
}
