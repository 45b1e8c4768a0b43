//! What swapping blocks costs and saves: the measuring script of the original block swap, with a model that is opened and
//! walked.
//!
//! ```text
//! cargo run --release --example block_swap_performance -- --model-path wan2.1_t2v_14B_Q4_K_M.gguf
//! cargo run --release --example block_swap_performance -- --model-path vace.gguf --blocks-to-swap 10
//! cargo run --release --example block_swap_performance -- --model-path t2v.gguf --test-all --html report.html
//! ```
//!
//! A model is run twice: with everything resident, and with so many of its main blocks fetched at each visit. Both must
//! give the same bits. Nothing is simulated: every figure is of one of these runs, except `predicted_pass_seconds`.
//!
//! # Results
//!
//! `block_swap_performance_results.json` is a list with an object for each number of blocks. It has the original's keys,
//! and an MB is 2^20 bytes as there:
//!
//! | key | holds |
//! |---|---|
//! | `memory_no_swap`, `memory_with_swap` | memory of the two runs |
//! | .. `initial_gpu`, `peak_gpu` | of the device before anything is loaded, and the most until the last pass |
//! | .. .. `allocated_mb` | what holds something live, in what the run reserved; counted by the executor |
//! | .. .. `reserved_mb` | what the run took from the device, its arena; holds `allocated_mb` and is not added to it |
//! | .. .. `total_mb` | what is in use of the device, whoever uses it, as the device says; holds `reserved_mb` |
//! | .. `gpu_increase_mb` | `total_mb` of the peak less that before |
//! | .. `initial_cpu`, `peak_cpu` | `rss_mb` and `vms_mb` of the process, looked at after each visit; `null` where the system does not tell |
//! | .. `cpu_increase_mb` | `rss_mb` of the peak less that before |
//! | .. `load_time_seconds` | from opening the file to the first pass |
//! | `gpu_savings_mb`, `cpu_increase_mb` | how far the two runs' increases differ |
//! | `time_difference_s` | how far their load times do; `pass_time_difference_s` is that of a pass |
//! | .. `_percent` | of what it is without swapping; `null` where that is nothing |
//!
//! The memory of the CPU device is memory of the process. It is taken from `rss_mb` and `vms_mb`, so that nothing is counted
//! twice. All files are read once before, so that no run pays for a disk that the other does not pay for.
//!
//! The times of the CPU device say nothing about speed.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/engine.rs"]
mod engine;
#[path = "support/inputs.rs"]
mod inputs;
#[path = "support/matrix.rs"]
mod matrix;
#[path = "support/output.rs"]
mod output;
#[path = "support/page.rs"]
mod page;
#[path = "support/process.rs"]
mod process;
#[path = "support/program.rs"]
mod program;
#[path = "support/run.rs"]
mod run;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use cuda::CudaEngine;
use engine::{CpuEngine, Engine};
use offload_core::device::Device;
use offload_core::executor::{DeviceBudget, Settings};
use offload_core::model::PassKind;
use offload_core::plan::Form;
use offload_wan::{BlockSwap, Checkpoint, Part, PassOptions, WanModel};
use output::Output;
use process::ProcessMemory;
use run::{DeviceName, Outcome, Run, blocks_of, median, resident_bytes};
use serde::Serialize;

/// Measures what swapping blocks costs and saves.
#[derive(Debug, Parser)]
#[command(name = "block_swap_performance")]
struct Arguments {
    /// The checkpoint of a WAN transformer; given several times, the shards of one.
    #[arg(long = "model-path", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Main blocks that are fetched at each visit. Default: 20, or all if there are fewer.
    #[arg(long, value_name = "N", conflicts_with = "test_all")]
    blocks_to_swap: Option<u64>,
    /// Measure with 0, 5, 10 and so on to 35 blocks, as far as there are so many.
    #[arg(long)]
    test_all: bool,
    /// Places for so many fetched blocks beside the one that computes; 0: none, the least memory.
    #[arg(long, value_name = "N", default_value_t = 0)]
    prefetch_blocks: u32,
    /// Where to compute; auto: on the GPU if there is one that can be used.
    #[arg(long, value_enum, default_value_t = DeviceName::Auto)]
    device: DeviceName,
    /// How often each run walks the model.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    passes: u32,
    /// Where the results go.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "block_swap_performance_results.json"
    )]
    out: PathBuf,
    /// Write a page with a table and plots, too.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What the original measures without an argument.
const DEFAULT_BLOCKS: u64 = 20;

/// What the original measures with `--test-all`.
const ALL_BLOCKS: [u64; 8] = [0, 5, 10, 15, 20, 25, 30, 35];

/// Bytes that are read from a file at once.
const CHUNK_BYTES: usize = 8 << 20;

/// What was measured with a number of blocks swapped, beside the run without swapping.
#[derive(Debug, Serialize)]
struct Measured {
    model_path: String,
    blocks_to_swap: u64,
    gpu_savings_mb: f64,
    gpu_savings_percent: Option<f64>,
    cpu_increase_mb: Option<f64>,
    cpu_increase_percent: Option<f64>,
    time_difference_s: f64,
    time_difference_percent: Option<f64>,
    memory_no_swap: Memory,
    memory_with_swap: Memory,
    prefetch_blocks: u32,
    device: String,
    variant: Option<String>,
    /// Main blocks that the model has.
    block_count: u64,
    /// Blocks that were fetched, VACE's and others that follow the main ones included.
    streamed_blocks: usize,
    /// Both runs gave the same bits.
    identical: bool,
    pass_seconds_no_swap: Vec<f64>,
    pass_seconds_with_swap: Vec<f64>,
    stall_seconds_with_swap: Vec<f64>,
    /// Bytes of the model that were not page-locked when each of these passes began.
    staged_bytes_with_swap: Vec<u64>,
    /// The medians.
    pass_median_no_swap_s: f64,
    pass_median_with_swap_s: f64,
    /// How far they differ.
    pass_time_difference_s: f64,
    pass_time_difference_percent: Option<f64>,
    /// What the planner expects with the blocks swapped.
    predicted_pass_seconds: f64,
    /// Bytes that came over the wire for the passes with the blocks swapped, for each pass.
    wire_bytes_per_pass: u64,
    /// Bytes of all uploads of all passes and of loading, with the blocks swapped.
    uploaded_bytes: u64,
}

/// Memory of a run.
#[derive(Debug, Clone, Serialize)]
struct Memory {
    initial_gpu: Gpu,
    peak_gpu: Gpu,
    gpu_increase_mb: f64,
    initial_cpu: Cpu,
    peak_cpu: Cpu,
    cpu_increase_mb: Option<f64>,
    load_time_seconds: f64,
}

/// Memory of the device.
#[derive(Debug, Clone, Serialize)]
struct Gpu {
    allocated_mb: f64,
    reserved_mb: f64,
    total_mb: f64,
}

/// Memory of the process.
#[derive(Debug, Clone, Serialize)]
struct Cpu {
    rss_mb: Option<f64>,
    vms_mb: Option<f64>,
}

impl From<Option<ProcessMemory>> for Cpu {
    fn from(memory: Option<ProcessMemory>) -> Self {
        Self {
            rss_mb: memory.map(|memory| mb(memory.resident_bytes)),
            vms_mb: memory.map(|memory| mb(memory.virtual_bytes)),
        }
    }
}

/// As the original counts them.
fn mb(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn main() -> ExitCode {
    program::run(measure)
}

fn measure(arguments: Arguments, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let (cuda, notes) = arguments.device.choose()?;
    let checkpoint = Checkpoint::open_all(&arguments.files)?;
    let wan = transformer(&checkpoint)?;
    let counts = counts(&arguments, main_count(&wan));
    for &count in &counts {
        swap_of(&arguments, count).apply(wan.clone())?;
    }
    // Hours of measuring must not end with a bad path.
    let results = Output::open(&arguments.out, [&checkpoint], &[])?;
    let page = arguments.html.as_ref();
    let page = page.map(|path| Output::open(path, [&checkpoint], &[&results]));
    let page = page.transpose()?;
    read_all(&checkpoint)?;
    for note in &notes {
        program::tell(&format!("note: {note}"));
    }
    match cuda {
        Some(device) => {
            let bench = Bench {
                engine: CudaEngine::new(device, wan.model())?,
                in_host_memory: false,
                arguments,
                results,
                page,
            };
            bench.run(&counts, out)
        }
        None => {
            let bench = Bench {
                engine: CpuEngine::new(),
                in_host_memory: true,
                arguments,
                results,
                page,
            };
            bench.run(&counts, out)
        }
    }
}

fn transformer(checkpoint: &Checkpoint) -> Result<WanModel, Box<dyn Error>> {
    if checkpoint.detection().encoder.is_some() {
        return Err("only the blocks of a WAN transformer are swapped by number".into());
    }
    Ok(WanModel::new(checkpoint, &PassOptions::default())?)
}

fn main_count(wan: &WanModel) -> u64 {
    let blocks = 0..wan.model().blocks().len();
    let main = blocks.filter(|&index| matches!(wan.part(index).0, Part::Main(_)));
    main.count() as u64
}

/// How many blocks are swapped, one run after another.
fn counts(arguments: &Arguments, block_count: u64) -> Vec<u64> {
    if !arguments.test_all {
        let count = arguments.blocks_to_swap;
        return vec![count.unwrap_or(DEFAULT_BLOCKS.min(block_count))];
    }
    let mut counts: Vec<u64> = ALL_BLOCKS.map(|count| count.min(block_count)).to_vec();
    counts.dedup();
    counts
}

fn swap_of(arguments: &Arguments, blocks_to_swap: u64) -> BlockSwap {
    BlockSwap {
        blocks_to_swap,
        prefetch_blocks: arguments.prefetch_blocks,
        ..BlockSwap::default()
    }
}

/// Reads every byte once, so that all files are in page cache as far as memory allows.
fn read_all(checkpoint: &Checkpoint) -> Result<(), Box<dyn Error>> {
    let mut chunk = vec![0; CHUNK_BYTES];
    for file in checkpoint.files() {
        let mut at = 0;
        while at < file.len() {
            let len =
                usize::try_from(file.len() - at).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
            file.read_exact_at(&mut chunk[..len], at)?;
            at += len as u64;
        }
    }
    Ok(())
}

/// What measures.
struct Bench<E> {
    engine: E,
    /// The device's memory is the process's.
    in_host_memory: bool,
    arguments: Arguments,
    results: Output,
    page: Option<Output>,
}

impl<E: Engine> Bench<E> {
    /// Measures with everything resident, then with each of `counts`.
    fn run(mut self, counts: &[u64], out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
        let rates = self.engine.measure()?;
        // Where times say something the planner is told them, and both runs are traced alike.
        let traces = rates.is_some();
        let mut settings = Settings {
            costs: rates.unwrap_or_default(),
            ..Settings::default()
        };
        if traces {
            // The first run has the driver translate the kernels: it counts for nobody.
            self.measure(counts.last().copied(), &settings, traces)?;
        }
        let resident = self.measure(None, &settings, traces)?;
        settings.costs.compute_s = resident.visit_seconds.clone();
        let variant = resident.variant.as_deref().unwrap_or("unknown");
        writeln!(out, "model       {}", paths(&self.arguments.files))?;
        writeln!(out, "variant     {variant}")?;
        writeln!(out, "device      {}", resident.outcome.report.device)?;
        write_row(out, &page::HEADINGS)?;
        let mut results = Vec::new();
        for &count in counts {
            let swapped = self.measure(Some(count), &settings, traces)?;
            if swapped.outcome.digests != resident.outcome.digests {
                let what =
                    format!("with {count} blocks swapped the results are others than without");
                return Err(what.into());
            }
            let measured = Measured::new(&self.arguments, count, &resident, &swapped);
            let row = page::cells(&measured);
            results.push(measured);
            // After each, and before it is told: what is measured is kept whatever comes.
            let mut text = serde_json::to_string_pretty(&results)?;
            text.push('\n');
            self.results.write(text.as_bytes())?;
            if let Some(page) = &mut self.page {
                page.write(page::render(&results)?.as_bytes())?;
            }
            write_row(out, &row)?;
            out.flush()?;
        }
        Ok(())
    }

    /// Opens the model and walks it, with so many blocks swapped, or with everything resident.
    fn measure(
        &mut self,
        blocks_to_swap: Option<u64>,
        settings: &Settings,
        traces: bool,
    ) -> Result<Measurement, Box<dyn Error>> {
        let (engine, arguments) = (&mut self.engine, &self.arguments);
        let device = engine.device().clone();
        let in_use = || -> Result<u64, Box<dyn Error>> {
            let memory = device.memory()?;
            Ok(memory.total_bytes - memory.free_bytes)
        };
        let process = || -> Result<Option<ProcessMemory>, Box<dyn Error>> {
            let counted_elsewhere = if self.in_host_memory { in_use()? } else { 0 };
            let memory = ProcessMemory::now();
            Ok(memory.map(|memory| memory.without(counted_elsewhere)))
        };
        let (initial_in_use, initial_process) = (in_use()?, process()?);
        let begin = Instant::now();
        let checkpoint = Checkpoint::open_all(&arguments.files)?;
        let wan = transformer(&checkpoint)?;
        let block_count = main_count(&wan);
        let (wan, settings, budget) = match blocks_to_swap {
            Some(count) => {
                let swap = swap_of(arguments, count);
                (
                    swap.apply(wan)?,
                    swap.settings(settings.clone()),
                    DeviceBudget::Least,
                )
            }
            None => {
                let (bytes, free_bytes) = (
                    resident_bytes(wan.model(), settings)?,
                    device.memory()?.free_bytes,
                );
                if bytes > free_bytes {
                    return Err(no_room(bytes, free_bytes).into());
                }
                (wan, settings.clone(), DeviceBudget::Bytes(bytes))
            }
        };
        let run = Run::new(engine, wan.model(), settings, budget, traces)?;
        let load_time_seconds = begin.elapsed().as_secs_f64();
        let streamed_blocks = blocks_of(run.plan(), Form::Streamed);
        if blocks_to_swap.is_none() && run.moved_blocks() > 0 {
            // The device refused what it said was free.
            return Err(no_room(run.plan().arena_bytes, device.memory()?.free_bytes).into());
        }
        let predicted_pass_s = run.plan().kinds[PassKind::FULL.index()].predicted_pass_s;
        let peak_in_use = in_use()?;
        let mut peak_process = process()?;
        let kinds = vec![PassKind::FULL; arguments.passes as usize];
        let outcome = run.passes(engine, &kinds, || {
            peak_process = peak_process
                .zip(process()?)
                .map(|(one, other)| one.or_more(other));
            Ok(())
        })?;
        let (initial_cpu, peak_cpu) = (Cpu::from(initial_process), Cpu::from(peak_process));
        let initial_gpu = Gpu {
            allocated_mb: 0.0,
            reserved_mb: 0.0,
            total_mb: mb(initial_in_use),
        };
        let peak_gpu = Gpu {
            allocated_mb: mb(outcome.report.high_water_bytes),
            reserved_mb: mb(outcome.report.arena_bytes),
            total_mb: mb(peak_in_use),
        };
        Ok(Measurement {
            memory: Memory {
                gpu_increase_mb: peak_gpu.total_mb - initial_gpu.total_mb,
                initial_gpu,
                peak_gpu,
                cpu_increase_mb: difference(peak_cpu.rss_mb, initial_cpu.rss_mb),
                initial_cpu,
                peak_cpu,
                load_time_seconds,
            },
            visit_seconds: match traces {
                true => outcome.visit_seconds(wan.model()),
                false => Vec::new(),
            },
            variant: checkpoint
                .detection()
                .variant
                .map(|variant| variant.to_string()),
            block_count,
            streamed_blocks,
            predicted_pass_s,
            wire_bytes_per_pass: outcome.report.wire_bytes / u64::from(arguments.passes),
            outcome,
        })
    }
}

fn write_row(out: &mut dyn Write, cells: &[impl AsRef<str>]) -> io::Result<()> {
    for cell in cells {
        write!(out, "{:>14}", cell.as_ref())?;
    }
    writeln!(out)
}

fn paths(files: &[PathBuf]) -> String {
    let paths = files.iter().map(|path| path.display().to_string());
    paths.collect::<Vec<_>>().join(" ")
}

/// A run, and what it took.
struct Measurement {
    memory: Memory,
    outcome: Outcome,
    variant: Option<String>,
    block_count: u64,
    streamed_blocks: usize,
    predicted_pass_s: f64,
    wire_bytes_per_pass: u64,
    /// Of each kind; none where times say nothing.
    visit_seconds: Vec<Vec<f64>>,
}

impl Measurement {
    fn pass_seconds(&self) -> Vec<f64> {
        let passes = self.outcome.report.passes.iter();
        passes.map(|pass| pass.pass_s).collect()
    }
}

fn no_room(bytes: u64, free_bytes: u64) -> String {
    format!(
        "everything resident takes {bytes} bytes, the device has {free_bytes} free: there is no run without swapping to compare with"
    )
}

fn difference(of: Option<f64>, from: Option<f64>) -> Option<f64> {
    of.zip(from).map(|(of, from)| of - from)
}

/// What `part` is of `whole`; `None` if that is nothing.
fn percent(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| 100.0 * part / whole)
}

impl Measured {
    fn new(
        arguments: &Arguments,
        blocks_to_swap: u64,
        without: &Measurement,
        with: &Measurement,
    ) -> Self {
        let (memory_no_swap, memory_with_swap) = (without.memory.clone(), with.memory.clone());
        let gpu_savings_mb = memory_no_swap.gpu_increase_mb - memory_with_swap.gpu_increase_mb;
        let cpu_increase_mb = difference(
            memory_with_swap.cpu_increase_mb,
            memory_no_swap.cpu_increase_mb,
        );
        let load_seconds = memory_no_swap.load_time_seconds;
        let time_difference_s = memory_with_swap.load_time_seconds - load_seconds;
        let (pass_seconds_no_swap, pass_seconds_with_swap) =
            (without.pass_seconds(), with.pass_seconds());
        let middle = |seconds: &[f64]| median(seconds).expect("a run has a pass at least");
        let pass_median_no_swap_s = middle(&pass_seconds_no_swap);
        let pass_median_with_swap_s = middle(&pass_seconds_with_swap);
        let pass_time_difference_s = pass_median_with_swap_s - pass_median_no_swap_s;
        let passes = with.outcome.report.passes.iter();
        Self {
            model_path: paths(&arguments.files),
            blocks_to_swap,
            gpu_savings_mb,
            gpu_savings_percent: percent(gpu_savings_mb, memory_no_swap.gpu_increase_mb),
            cpu_increase_mb,
            cpu_increase_percent: cpu_increase_mb
                .zip(memory_no_swap.cpu_increase_mb)
                .and_then(|(part, whole)| percent(part, whole)),
            time_difference_s,
            time_difference_percent: percent(time_difference_s, load_seconds),
            memory_no_swap,
            memory_with_swap,
            prefetch_blocks: arguments.prefetch_blocks,
            device: with.outcome.report.device.clone(),
            variant: with.variant.clone(),
            block_count: with.block_count,
            streamed_blocks: with.streamed_blocks,
            identical: with.outcome.digests == without.outcome.digests,
            pass_seconds_no_swap,
            pass_seconds_with_swap,
            stall_seconds_with_swap: passes.map(|pass| pass.stall_s).collect(),
            staged_bytes_with_swap: with.outcome.staged_bytes.clone(),
            pass_median_no_swap_s,
            pass_median_with_swap_s,
            pass_time_difference_s,
            pass_time_difference_percent: percent(pass_time_difference_s, pass_median_no_swap_s),
            predicted_pass_seconds: with.predicted_pass_s,
            wire_bytes_per_pass: with.wire_bytes_per_pass,
            uploaded_bytes: with.outcome.uploaded_bytes,
        }
    }
}
