//! Writes a checkpoint with seeded weights: real names, shapes and encodings, and no model's numbers.
//!
//! ```text
//! cargo run --release --example synthesize -- --variant wan2.1-t2v-14b --encoding Q4_K_M --out t2v.gguf
//! cargo run --example synthesize -- --variant wan2.1-vace-1.3b --encoding BF16 --naming diffusers --scale 8 --out vace/
//! ```
//!
//! The name of the output tells its container: a folder of shards with an index and a `config.json` if it is one or ends
//! in `/`, a safetensors file if it ends in `.safetensors`, else GGUF. The same arguments give the same bytes everywhere.

#[path = "support/program.rs"]
mod program;

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::Parser;
use offload_wan::{Checkpoint, Naming, Recipe, SynthesizeSpec, Variant, synthesize};

/// Writes a checkpoint with seeded weights.
#[derive(Debug, Parser)]
#[command(name = "synthesize")]
struct Arguments {
    /// A published variant, such as wan2.1-t2v-14b.
    #[arg(long, value_name = "NAME", value_parser = parse_variant)]
    variant: Variant,
    /// How it is stored: F32, F16, BF16, Q8_0, Q6_K, Q5_K_M, Q5_0, Q4_K_M, Q4_K_S, Q4_0, Q3_K_M, Q2_K, F8_E4M3,
    /// F8_E4M3_SCALED, F8_E4M3_MIXED, INT8.
    #[arg(long, value_name = "NAME", value_parser = parse_recipe)]
    encoding: Recipe,
    /// What tensors are called: native, diffusers, or repacked (LongCat-Video with WAN's names).
    #[arg(long, value_name = "NAME", default_value = "native", value_parser = parse_naming)]
    naming: Naming,
    /// Divide widths by N, kept to what the encoding allows; counts stay.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    scale: u64,
    /// Different seeds give different weights.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Write so many transformer blocks instead of the variant's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1000))]
    blocks: Option<u64>,
    /// The file or folder to write.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
}

fn parse_variant(name: &str) -> Result<Variant, String> {
    Variant::from_name(name).ok_or_else(|| format!("`{name}` is no variant that is known"))
}

fn parse_recipe(name: &str) -> Result<Recipe, String> {
    Recipe::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Recipe::ALL.iter().map(|recipe| recipe.name()).collect();
        format!("`{name}` is none of {}", names.join(", "))
    })
}

fn parse_naming(name: &str) -> Result<Naming, String> {
    Naming::from_name(name)
        .ok_or_else(|| format!("`{name}` is none of native, diffusers, repacked"))
}

fn main() -> ExitCode {
    program::run(write)
}

fn write(arguments: Arguments, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let Arguments {
        variant,
        encoding,
        scale,
        seed,
        ..
    } = arguments;
    let spec = SynthesizeSpec::of_variant(variant, encoding, scale, seed)?;
    let spec = SynthesizeSpec {
        naming: arguments.naming,
        block_count: arguments.blocks.unwrap_or(spec.block_count),
        ..spec
    };
    let path: &Path = &arguments.out;
    synthesize(&spec, path)?;
    let checkpoint = Checkpoint::open(path)?;
    let tensors = checkpoint.tensors();
    let bytes: u64 = tensors.iter().map(|tensor| tensor.source().len()).sum();
    writeln!(
        out,
        "{}: {} tensors of {variant}, {}",
        path.display(),
        tensors.len(),
        ByteSize(bytes)
    )?;
    Ok(())
}
