//! Computes the latents of a video with a WAN checkpoint that need not fit the memory it is given.
//!
//! ```text
//! cargo run --release -- wan2.1_t2v_1.3B_Q4_K_M.gguf --budget 1GiB --steps 8 --out latents.safetensors
//! cargo run --release -- t2v_high_noise.gguf --low t2v_low_noise.gguf --budget least --guidance 4
//! ```

#[path = "../../support/inputs.rs"]
mod inputs;
#[path = "../../support/output.rs"]
mod output;
#[path = "../../support/program.rs"]
mod program;
#[path = "../../support/size.rs"]
mod size;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::Tensor;
use candle_wan::{Engine, Request};
use clap::Parser;
use offload_core::executor::DeviceBudget;
use offload_wan::Checkpoint;
use output::Output;

/// Computes the latents of a video with a WAN checkpoint that need not fit the memory it is given.
#[derive(Debug, Parser)]
#[command(name = "candle_wan")]
struct Arguments {
    /// The checkpoint; several files are the shards of one model.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// The expert for low noise of a pair; FILE is then the one for high noise.
    #[arg(long, value_name = "FILE")]
    low: Vec<PathBuf>,
    /// Memory for weights: a size such as 8GiB or 900MiB, or `least`.
    #[arg(long, value_name = "SIZE", default_value = "least", value_parser = parse_budget)]
    budget: DeviceBudget,
    /// Pixels across and down.
    #[arg(long, value_name = "WxH", default_value = "128x64", value_parser = parse_pixels)]
    size: (usize, usize),
    /// Frames: 1, 5, 9 and so on.
    #[arg(long, value_name = "N", default_value_t = 5)]
    frames: usize,
    /// Steps from noise to video.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    steps: u32,
    /// How far noise levels are shifted towards noise.
    #[arg(long, value_name = "X", default_value_t = 5.0, value_parser = parse_positive)]
    shift: f64,
    /// Where two experts change, as a part of all timesteps. Default: the variant's.
    #[arg(long, value_name = "PART", requires = "low")]
    boundary: Option<f64>,
    /// How many times the difference that the prompt makes is taken; 1 does without the negative prompt.
    #[arg(long, value_name = "X", default_value_t = 1.0, value_parser = parse_positive)]
    guidance: f64,
    /// Of the noise, and of the numbers that stand in for what encoders would give.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write the latents, as `latents` in a safetensors file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn parse_budget(text: &str) -> Result<DeviceBudget, String> {
    match text {
        "least" => Ok(DeviceBudget::Least),
        _ => size::parse_size(text).map(DeviceBudget::Bytes),
    }
}

fn parse_pixels(text: &str) -> Result<(usize, usize), String> {
    let sizes = text.split_once('x');
    let sizes = sizes.and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
    sizes.ok_or_else(|| format!("`{text}` is no size of a video: try 832x480"))
}

fn parse_positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(number),
        _ => Err(format!("`{text}` is no number above 0")),
    }
}

/// Tokens of the prompt that the seed stands in for.
const PROMPT_TOKENS: usize = 100;

fn main() -> ExitCode {
    program::run(compute)
}

fn compute(arguments: Arguments, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let checkpoint = Checkpoint::open_all(&arguments.files)?;
    let low = match arguments.low.is_empty() {
        true => None,
        false => Some(Checkpoint::open_all(&arguments.low)?),
    };
    let (width, height) = arguments.size;
    let request = Request {
        width,
        height,
        frames: arguments.frames,
        steps: arguments.steps,
        shift: arguments.shift,
        boundary: arguments.boundary,
        guidance: arguments.guidance,
        text_tokens: PROMPT_TOKENS,
        seed: arguments.seed,
    };
    // Opened first: a run of hours must not end with a bad path.
    let output = arguments.out.as_ref();
    let output = output.map(|path| Output::open(path, [&checkpoint].into_iter().chain(&low), &[]));
    let output = output.transpose()?;
    let mut engine = Engine::new(&checkpoint, low.as_ref(), arguments.budget, &request)?;
    writeln!(out, "{}", engine.offload().plan())?;
    out.flush()?;

    let begin = Instant::now();
    let latents = engine.sample(|step| {
        let seconds = begin.elapsed().as_secs_f64();
        // Nobody is left to tell if standard error is closed.
        let _ = writeln!(
            io::stderr(),
            "step {step} of {}: {seconds:.1} s",
            request.steps
        );
    })?;
    writeln!(out, "{}", engine.offload().report()?)?;
    let (mean, deviation) = moments(&latents)?;
    writeln!(
        out,
        "latents     {:?}, mean {mean:.6}, deviation {deviation:.6}",
        latents.dims()
    )?;
    if let Some(mut output) = output {
        output.write(&safetensors::serialize(
            [("latents", latents.clone())],
            None,
        )?)?;
    }
    Ok(())
}

fn moments(latents: &Tensor) -> Result<(f32, f32), candle_core::Error> {
    let mean = latents.mean_all()?;
    let variance = latents.broadcast_sub(&mean)?.sqr()?.mean_all()?;
    Ok((mean.to_scalar()?, variance.sqrt()?.to_scalar()?))
}
