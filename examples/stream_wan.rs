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
//! everything resident, once within the budget, and compares the results bit for bit. Of a pair of experts the one for
//! high noise makes the first half of the passes.

#[path = "support/log.rs"]
mod log;
#[path = "support/matrix.rs"]
mod matrix;
#[path = "support/program.rs"]
mod program;
#[path = "support/size.rs"]
mod size;
#[path = "support/swap.rs"]
mod swap;
#[path = "support/wan.rs"]
mod wan;

use std::error::Error;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use matrix::Activation;
use offload_core::cpu::CpuDevice;
use offload_core::decode::{self, Float};
use offload_core::executor::{
    Arrival, ArrivalPolicy, DeviceBudget, Offload, OffloadError, Report as OffloadReport, Span,
};
use offload_core::model::{Model, PassKind};
use offload_core::plan::{Form, Plan, PlanError, Verdict};
use offload_core::swappable::Role;
use offload_core::testing::{Observed, Recorder};
use offload_wan::{
    BlockSwap, Checkpoint, Expert, ExpertChange, StepPass, SynthesizeSpec, Variant, WanModel,
    synthesize,
};
use serde::Serialize;
use serde_json::json;
use swap::SwapArguments;
use wan::{LowArguments, PassArguments, Subject};

/// Streams a WAN checkpoint through a device budget and computes with every block as it arrives.
#[derive(Debug, Parser)]
#[command(name = "stream_wan")]
struct Arguments {
    /// The checkpoint; several files are the shards of one model. Without one, a small checkpoint is made.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = DeviceName::Auto)]
    device: DeviceName,
    /// Device memory: a size such as 8GiB or 900MiB, or `least`. Default: 60 % of what everything resident
    /// takes, or the least that will do if that is more.
    #[arg(long, value_parser = parse_budget, conflicts_with_all = ["blocks_to_swap", "preset"])]
    budget: Option<DeviceBudget>,
    /// What the checkpoint is, whatever it looks like, such as wan2.2-t2v-a14b.
    #[arg(long, value_name = "NAME", value_parser = wan::parse_variant)]
    variant: Option<Variant>,
    #[command(flatten)]
    low: LowArguments,
    #[command(flatten)]
    which_passes: PassArguments,
    #[command(flatten)]
    swap: SwapArguments,
    /// How often to walk the model.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    passes: u32,
    /// The form in which matrices arrive; `stored` is for vectors too, which arrive as f32 otherwise.
    #[arg(long, value_enum, default_value_t = ArrivalName::Bf16)]
    arrive: ArrivalName,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// Write what moved when, for chrome://tracing or Perfetto.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DeviceName {
    Auto,
    Cpu,
    Cuda,
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

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    variant: Option<String>,
    device: String,
    /// Both runs gave the same bits.
    identical: bool,
    budget_bytes: u64,
    peak_bytes: u64,
    /// What everything resident takes.
    resident_peak_bytes: u64,
    streamed_blocks: usize,
    /// Bytes moved once, before the first pass.
    load_bytes: u64,
    /// Of the first kind of pass.
    wire_bytes_per_pass: u64,
    /// Bytes brought for a pass that never came.
    prefetched_past_end_bytes: u64,
    /// Bytes of all uploads, counted by a device around the device.
    uploaded_bytes: u64,
    pass_seconds: Vec<f64>,
    stall_seconds: Vec<f64>,
    predicted_pass_seconds: f64,
    bound_seconds: f64,
    verdict: Verdict,
    /// Every kind of pass that the model has.
    kinds: Vec<KindReport>,
    /// Which kind each pass was of.
    pass_kinds: Vec<u32>,
    /// What the change from one expert to the other costs; `null` without a pair.
    expert_change: Option<ExpertChange>,
    /// Bytes of keys and values that an engine keeps for a prompt of 512 tokens and an image of 257.
    cached_bytes: u64,
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

fn main() -> ExitCode {
    program::run(stream)
}

fn stream(arguments: Arguments, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    choose_device(arguments.device)?;
    // Opened first: a run of hours must not end with a bad path.
    let trace = match &arguments.trace {
        Some(path) => {
            Some(File::create(path).map_err(|error| format!("{}: {error}", path.display()))?)
        }
        None => None,
    };
    let folder = tempfile::tempdir()?;
    if arguments.swap.is_debug() {
        log::to_stderr();
    }
    let checkpoint = if arguments.files.is_empty() {
        let path = folder.path().join("wan_demo.gguf");
        synthesize(&SynthesizeSpec::default(), &path)?;
        Checkpoint::open(path)?
    } else {
        let checkpoint = Checkpoint::open_all(&arguments.files)?;
        match arguments.variant {
            Some(variant) => checkpoint.taken_for(variant),
            None => checkpoint,
        }
    };
    let passes = arguments.passes;
    let low = arguments.low.open()?;
    let subject = Subject::new(&checkpoint, low.as_ref(), &arguments.which_passes, passes)?;
    let swap = arguments.swap.swap(subject.wan.as_ref())?;
    let kinds = first_passes(subject.wan.as_ref(), passes);
    let model = &subject.model;
    let policy = arguments.arrive.policy();
    let traces = trace.is_some() || arguments.swap.is_debug();

    let everything = Run::new(model, policy, DeviceBudget::LeaveFree(0), false, None)?;
    let resident_peak_bytes = everything.offload.plan().arena_bytes;
    let visits = |kind: &PassKind| model.kinds()[kind.index()].visits().len() as u64;
    let bar = ProgressBar::new(2 * kinds.iter().map(visits).sum::<u64>());
    if arguments.json {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let style = "{msg:10} {bar:40} {pos}/{len} visits, {elapsed}";
    bar.set_style(ProgressStyle::with_template(style).expect("a fixed template"));
    bar.set_message("resident");
    let expected = everything.passes(&kinds, &bar)?;

    let within = match (&swap, arguments.budget) {
        (Some(swap), _) => Run::swapped(subject.wan.as_ref(), swap, policy, traces)?,
        (None, Some(budget)) => Run::new(model, policy, budget, traces, None)?,
        (None, None) => {
            let budget = DeviceBudget::Bytes(resident_peak_bytes / 5 * 3);
            match Run::new(model, policy, budget, traces, None) {
                Err(OffloadError::Plan(PlanError::BudgetTooSmall { .. })) => {
                    Run::new(model, policy, DeviceBudget::Least, traces, None)?
                }
                run => run?,
            }
        }
    };
    let plan = within.offload.plan().clone();
    if !arguments.json {
        writeln!(out, "{plan}")?;
        out.flush()?;
    }
    bar.set_message("streamed");
    let streamed = within.passes(&kinds, &bar)?;
    bar.finish_and_clear();
    if let Some(swap) = &swap {
        swap.log_spans(&streamed.spans);
    }
    if let (Some(file), Some(path)) = (trace, &arguments.trace) {
        write_trace(file, &streamed.spans)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }

    let variant = checkpoint
        .detection()
        .variant
        .map(|variant| variant.to_string());
    let report = Report {
        identical: streamed.digests == expected.digests,
        pass_kinds: kinds.iter().map(|kind| kind.0).collect(),
        ..Report::new(variant, &subject, &plan, &streamed, resident_peak_bytes)
    };
    if arguments.json {
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

/// The first `count` passes of a run: of a pair the expert for low noise makes the second half.
fn first_passes(wan: Option<&WanModel>, count: u32) -> Vec<PassKind> {
    let Some(wan) = wan else {
        return vec![PassKind::FULL; count as usize];
    };
    let run = |expert: Option<Expert>, count: u32| {
        let first = wan.step(expert, true);
        let later = std::iter::repeat_with(move || wan.step(expert, false)).flatten();
        let passes = first
            .into_iter()
            .chain(later)
            .map(|pass: StepPass| pass.kind);
        passes.take(count as usize)
    };
    match wan.boundary() {
        None => run(None, count).collect(),
        Some(_) => {
            let high = count.div_ceil(2);
            let low = run(Some(Expert::Low), count - high);
            run(Some(Expert::High), high).chain(low).collect()
        }
    }
}

/// The only device that can be streamed to so far is the CPU device; asking for another is an error.
fn choose_device(name: DeviceName) -> Result<(), Box<dyn Error>> {
    match name {
        DeviceName::Cpu | DeviceName::Auto => Ok(()),
        DeviceName::Cuda => {
            offload_cuda::probe()?;
            Err("CUDA is there, but this version cannot stream to it yet: use --device cpu".into())
        }
    }
}

type RecordedDevice = Observed<CpuDevice, Recorder>;

/// A model made ready on a device of its own.
struct Run {
    device: RecordedDevice,
    offload: Offload<RecordedDevice>,
}

/// What came of the passes.
struct Outcome {
    /// Of each pass.
    digests: Vec<u64>,
    report: OffloadReport,
    spans: Vec<Span>,
    uploaded_bytes: u64,
}

impl Run {
    fn new(
        model: &Model,
        policy: ArrivalPolicy,
        budget: DeviceBudget,
        trace: bool,
        blocks_ahead: Option<u32>,
    ) -> Result<Self, OffloadError> {
        let device = Observed::new(CpuDevice::new(), Recorder::new());
        let builder = Offload::builder(&device)
            .model(model.clone())
            .arrival(policy)
            .device_budget(budget)
            .trace(trace);
        let builder = match blocks_ahead {
            Some(blocks) => builder.blocks_ahead(blocks),
            None => builder,
        };
        let offload = builder.build()?;
        Ok(Self { device, offload })
    }

    /// The original block swap: so many blocks leave the device, all else stays.
    fn swapped(
        wan: Option<&WanModel>,
        swap: &BlockSwap,
        policy: ArrivalPolicy,
        trace: bool,
    ) -> Result<Self, Box<dyn Error>> {
        let wan = wan.ok_or("only a WAN transformer is swapped")?;
        let wan = swap.apply(wan.clone())?;
        let ahead = (swap.prefetch_blocks > 0).then_some(swap.prefetch_blocks);
        Ok(Self::new(
            wan.model(),
            policy,
            DeviceBudget::Least,
            trace,
            ahead,
        )?)
    }

    fn passes(mut self, kinds: &[PassKind], bar: &ProgressBar) -> Result<Outcome, Box<dyn Error>> {
        let stream = self.device.inner().inline_stream();
        let mut digests = Vec::new();
        for (number, &kind) in kinds.iter().enumerate() {
            let mut activation = Activation::new(256);
            let mut pass = self.offload.pass(kind, &stream)?;
            match kinds.get(number + 1) {
                Some(&next) => pass.then(next)?,
                None => pass.last(),
            }
            while let Some(lease) = pass.acquire()? {
                for (name, role) in lease.tensor_roles() {
                    let tensor = match lease.tensor(name) {
                        // An engine has kept what these gave.
                        Err(OffloadError::NotDemanded { .. }) => continue,
                        tensor => tensor?,
                    };
                    let bytes = tensor.host_bytes().expect("inline streams give bytes");
                    match (role, tensor.shape().first()) {
                        (Role::Matrix, Some(&rows)) if is_number(tensor.encoding()) => {
                            let rows = usize::try_from(rows)?;
                            activation.multiply(bytes, tensor.encoding(), rows)?;
                        }
                        _ => activation.read(bytes),
                    }
                }
                drop(lease);
                bar.inc(1);
            }
            digests.push(activation.digest());
        }
        let report = self.offload.report()?;
        let uploaded_bytes = self.device.observer().counts().upload_bytes;
        Ok(Outcome {
            digests,
            report,
            spans: self.offload.spans().cloned().collect(),
            uploaded_bytes,
        })
    }
}

/// Whether the activation can be multiplied with it; integers are only looked at.
fn is_number(encoding: offload_core::encoding::Encoding) -> bool {
    Float::from_encoding(encoding).is_some() || decode::is_supported(encoding)
}

impl Report {
    fn new(
        variant: Option<String>,
        subject: &Subject,
        plan: &Plan,
        outcome: &Outcome,
        resident_peak_bytes: u64,
    ) -> Self {
        let kind = &plan.kinds[PassKind::FULL.index()];
        let report = &outcome.report;
        let streamed = plan
            .blocks
            .iter()
            .filter(|block| block.form == Form::Streamed);
        Self {
            variant,
            device: report.device.clone(),
            identical: false,
            budget_bytes: report.budget_bytes,
            peak_bytes: report.arena_bytes,
            resident_peak_bytes,
            streamed_blocks: streamed.count(),
            load_bytes: report.load_bytes,
            wire_bytes_per_pass: kind.wire_bytes_per_pass,
            prefetched_past_end_bytes: report.past_end_bytes,
            uploaded_bytes: outcome.uploaded_bytes,
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
            pass_kinds: Vec::new(),
            expert_change: subject.wan.as_ref().and_then(|wan| wan.expert_change(plan)),
            cached_bytes: subject.wan.as_ref().map_or(0, |wan| {
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
            "moved       {} once, {} each pass for {} streamed blocks, {past_end} past the end",
            ByteSize(self.load_bytes),
            ByteSize(self.wire_bytes_per_pass),
            self.streamed_blocks
        )?;
        if self.kinds.len() > 1 {
            for kind in &self.kinds {
                let (name, bytes) = (&kind.name, ByteSize(kind.wire_bytes_per_pass));
                writeln!(out, "kind        {name}: {bytes} each pass")?;
            }
        }
        if let Some(change) = &self.expert_change {
            writeln!(
                out,
                "change      of expert within the same {}: {} of the one and {} of the other stay; at most {:.3} s",
                ByteSize(change.arena_bytes),
                ByteSize(change.high_resident_bytes),
                ByteSize(change.low_resident_bytes),
                change.unhinted_s
            )?;
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
        writeln!(
            out,
            "result      {verdict} the run with everything resident"
        )
    }
}

/// Chrome's trace format: complete events, times in microseconds, a row for each stage.
fn write_trace(file: File, spans: &[Span]) -> Result<(), Box<dyn Error>> {
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
    let mut file = BufWriter::new(file);
    serde_json::to_writer(&mut file, &json!({ "traceEvents": events }))?;
    Ok(file.flush()?)
}
