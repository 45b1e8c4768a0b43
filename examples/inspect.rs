//! Shows what a checkpoint is: variant, names, encodings, blocks and bytes.
//!
//! ```text
//! cargo run --example inspect -- wan2.1_t2v_14B_Q4_K_M.gguf
//! cargo run --example inspect -- --json shard-1.gguf shard-2.gguf
//! ```
//!
//! Several files are the shards of one model; a `model.safetensors.index.json`, or its folder, stands for all of its own.
//! A sound container of another model is shown as well, with no variant.

#[path = "support/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use clap::Parser;
use offload_wan::{Checkpoint, Detection, Finding, LayoutError, Variant};
use serde::Serialize;

/// Shows what a checkpoint is: variant, names, encodings, blocks and bytes.
#[derive(Debug, Parser)]
#[command(name = "inspect")]
struct Arguments {
    /// The checkpoint, GGUF or safetensors; several files, or an index, are the shards of one model.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What the checkpoint is, whatever it looks like, such as wan2.2-t2v-a14b.
    #[arg(long, value_name = "NAME", value_parser = parse_variant)]
    variant: Option<Variant>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

fn parse_variant(name: &str) -> Result<Variant, String> {
    Variant::from_name(name).ok_or_else(|| format!("`{name}` is no variant that is known"))
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    /// Variant, alternatives, naming and widths.
    #[serde(flatten)]
    detection: &'a Detection,
    tensor_count: usize,
    total_bytes: u64,
    encodings: BTreeMap<&'static str, usize>,
    blocks: Vec<Block>,
    /// Bytes outside the blocks.
    other_bytes: u64,
    /// Tensors that no such transformer has.
    unknown: Vec<String>,
    /// Everything that is not as the layout has it: missing, misshapen, unknown.
    findings: Vec<Finding>,
    /// Tensors that belong to a weight, such as its scale.
    attached_count: usize,
    /// Why no model can be built of a WAN checkpoint; `null` when one can, or when it is none.
    problem: Option<String>,
}

#[derive(Debug, Serialize)]
struct Block {
    name: String,
    tensor_count: usize,
    bytes: u64,
}

fn main() -> ExitCode {
    program::run(inspect)
}

fn inspect(arguments: Arguments, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let checkpoint = Checkpoint::open_all(&arguments.files)?;
    let checkpoint = match arguments.variant {
        Some(variant) => checkpoint.taken_for(variant)?,
        None => checkpoint,
    };
    let report = Report::new(&checkpoint);
    if arguments.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        report.print(out)?;
    }
    Ok(())
}

/// What names in files hold may steer a terminal: that is escaped, quotes are not.
fn printable(text: &str) -> String {
    let letters = text.chars().map(|letter| match letter {
        '\'' | '"' => letter.to_string(),
        _ => letter.escape_debug().to_string(),
    });
    letters.collect()
}

impl<'a> Report<'a> {
    fn new(checkpoint: &'a Checkpoint) -> Self {
        let mut encodings = BTreeMap::new();
        for tensor in checkpoint.tensors() {
            *encodings.entry(tensor.encoding().name()).or_default() += 1;
        }
        let blocks: Vec<Block> = checkpoint
            .blocks()
            .into_iter()
            .map(|block| Block {
                name: block.name,
                tensor_count: block.tensor_count,
                bytes: block.bytes,
            })
            .collect();
        let tensors = checkpoint.tensors().iter();
        let total_bytes = tensors.map(|tensor| tensor.source().len()).sum();
        let block_bytes: u64 = blocks.iter().map(|block| block.bytes).sum();
        let problem = match checkpoint.model() {
            Ok(_) | Err(LayoutError::NotWan { .. }) => None,
            Err(error) => Some(program::one_line(&error)),
        };
        Self {
            detection: checkpoint.detection(),
            tensor_count: checkpoint.tensors().len(),
            total_bytes,
            encodings,
            blocks,
            other_bytes: total_bytes - block_bytes,
            unknown: checkpoint.unknown(),
            findings: checkpoint.findings(),
            attached_count: checkpoint.attached().len(),
            problem,
        }
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let detection = self.detection;
        match (detection.variant, detection.encoder) {
            (Some(variant), _) => write!(out, "variant     {variant}")?,
            (None, Some(encoder)) => write!(out, "encoder     {encoder}")?,
            (None, None) => write!(out, "variant     unknown")?,
        }
        for other in &detection.alternatives {
            write!(out, " or {other}")?;
        }
        writeln!(out)?;
        if let Some(naming) = detection.naming {
            write!(out, "naming      {naming}")?;
            if !detection.prefix.is_empty() {
                write!(out, ", after {}", detection.prefix)?;
            }
            let (dim, ffn_dim) = (detection.dim, detection.ffn_dim);
            writeln!(out, "\nwidths      {dim}, feed-forward {ffn_dim}")?;
        }
        for decision in &detection.decided_by {
            let by = printable(&decision.by);
            writeln!(
                out,
                "decided     {} {}: {by}",
                decision.what, decision.value
            )?;
        }
        let total = ByteSize(self.total_bytes);
        writeln!(out, "tensors     {}, {total}", self.tensor_count)?;
        write!(out, "encodings  ")?;
        for (encoding, count) in &self.encodings {
            write!(out, " {encoding}: {count}")?;
        }
        writeln!(out)?;
        for block in &self.blocks {
            let (count, bytes) = (block.tensor_count, ByteSize(block.bytes));
            writeln!(out, "{:<24}{count:>4} tensors  {bytes}", block.name)?;
        }
        writeln!(
            out,
            "{:<24}{:>14}{}",
            "other",
            "",
            ByteSize(self.other_bytes)
        )?;
        if self.attached_count > 0 {
            writeln!(
                out,
                "scales      {} tensors beside their weights",
                self.attached_count
            )?;
        }
        for finding in &self.findings {
            writeln!(out, "finding     {}", printable(&finding.to_string()))?;
        }
        if let Some(problem) = &self.problem {
            writeln!(out, "problem     {problem}")?;
        }
        Ok(())
    }
}
