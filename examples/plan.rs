//! Plans without a device: what would be resident, what would move, how long a pass would take, and how far that is
//! from the best there can be.
//!
//! ```text
//! cargo run --example plan -- model.gguf --budget 8GiB --tokens 32760 --card rtx4090
//! cargo run --example plan -- --variant wan2.2-t2v-a14b --encoding Q4_K_M --budget 8GiB --tokens 32760 --sweep
//! ```
//!
//! A transformer block of width d is taken to cost, for N tokens and a text of 512, in operations: 2 N for each weight of
//! its matrices (2 * 512 for those that see the text alone), 4 d N^2 for self-attention and 4 d N 512 for
//! cross-attention. All else counts as nothing. Without `--tokens` compute is not known and counts as nothing too: then
//! as much is resident as the budget allows.

#[path = "support/card.rs"]
mod card;
#[path = "support/program.rs"]
mod program;
#[path = "support/size.rs"]
mod size;

use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use card::Card;
use clap::Parser;
use offload_core::executor::Settings;
use offload_core::model::Model;
use offload_core::plan::{Budget, Form, Plan, PlanError, Tier, Verdict};
use offload_core::swappable::{Role, Swappable};
use offload_wan::{Checkpoint, Recipe, SynthesizeSpec, Variant};
use serde::Serialize;

/// Plans without a device: what is resident, what moves, how long a pass takes, and how far that is from the best.
#[derive(Debug, Parser)]
#[command(name = "plan")]
struct Arguments {
    /// The checkpoint; several files are the shards of one model.
    #[arg(
        value_name = "FILE",
        required_unless_present = "variant",
        conflicts_with = "variant"
    )]
    files: Vec<PathBuf>,
    /// A published variant instead of a file, such as wan2.1-t2v-14b.
    #[arg(long, value_name = "NAME", requires = "encoding", value_parser = parse_variant)]
    variant: Option<Variant>,
    /// How the variant is stored: F32, F16, BF16, Q8_0 or Q4_K_M.
    #[arg(long, value_name = "NAME", requires = "variant", value_parser = parse_recipe)]
    encoding: Option<Recipe>,
    /// Device memory: a size such as 8GiB or 900MiB, or `least`.
    #[arg(long, value_name = "SIZE", value_parser = parse_budget)]
    budget: Budget,
    /// Tokens in a pass; 0 means that compute is not known.
    #[arg(long, value_name = "N", default_value_t = 0)]
    tokens: u64,
    /// A card that is known: h200, h100, a100-80g, l40s, rtx5090, rtx4090, rtx4060ti, rtx3090 and others.
    #[arg(long, value_name = "NAME", default_value = "rtx4090", value_parser = Card::named, conflicts_with = "profile")]
    card: Card,
    /// Measured rates instead, as JSON: wire_bytes_per_s, upload_latency_s, host_bytes_per_s, disk_bytes_per_s,
    /// decode_bytes_per_s, flops_per_s.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Plan for budgets from the least to everything resident as well.
    #[arg(long)]
    sweep: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
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

fn parse_budget(text: &str) -> Result<Budget, String> {
    match text {
        "least" => Ok(Budget::Least),
        _ => size::parse_size(text).map(Budget::Bytes),
    }
}

/// One plan, as it is printed.
#[derive(Debug, Serialize)]
struct Planned {
    placements: Vec<Placement>,
    peak_bytes: u64,
    budget_bytes: u64,
    wire_bytes_per_pass: u64,
    predicted_pass_seconds: f64,
    predicted_stall_seconds: f64,
    bound_seconds: f64,
    schedule_gap: f64,
    placement_gap: f64,
    verdict: Verdict,
}

#[derive(Debug, Serialize)]
struct Placement {
    block: String,
    form: Form,
    tier: Tier,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    plan: Planned,
    /// Plans for other budgets, smallest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sweep: Vec<Planned>,
}

impl From<&Plan> for Planned {
    fn from(plan: &Plan) -> Self {
        let full = &plan.kinds[0];
        let placement = |block: &offload_core::plan::BlockPlan| Placement {
            block: block.block.clone(),
            form: block.form,
            tier: block.tier,
        };
        Self {
            placements: plan.blocks.iter().map(placement).collect(),
            peak_bytes: plan.arena_bytes,
            budget_bytes: plan.budget_bytes,
            wire_bytes_per_pass: full.wire_bytes_per_pass,
            predicted_pass_seconds: full.predicted_pass_s,
            predicted_stall_seconds: full.predicted_stall_s,
            bound_seconds: full.certificate.placement_bound_s,
            schedule_gap: full.certificate.schedule_gap,
            placement_gap: full.certificate.placement_gap,
            verdict: full.verdict,
        }
    }
}

fn main() -> ExitCode {
    program::run(plan)
}

fn plan(arguments: Arguments, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let card = match &arguments.profile {
        Some(path) => {
            let failed = |error: &dyn Error| format!("{}: {error}", path.display());
            let text = fs::read_to_string(path).map_err(|error| failed(&error))?;
            let card: Card = serde_json::from_str(&text).map_err(|error| failed(&error))?;
            card.check()
                .map_err(|reason| format!("{}: {reason}", path.display()))?
        }
        None => arguments.card,
    };
    let checkpoint = match (arguments.variant, arguments.encoding) {
        (Some(variant), Some(recipe)) => {
            let spec = SynthesizeSpec::of_variant(variant, recipe, 1, 0)?;
            Checkpoint::from_tensors(spec.describe()?)?
        }
        _ => Checkpoint::open_all(&arguments.files)?,
    };
    let model = checkpoint.model()?;
    let costs = card.costs(compute_s(&model, arguments.tokens, card.flops_per_s));
    let settings = Settings {
        costs,
        ..Settings::default()
    };
    let workload = settings.workload(&model, true);
    let make = |budget| Plan::make(&workload, &settings.costs.rates, budget);

    let plan = make(arguments.budget)?;
    let sweep = if arguments.sweep {
        sweep(make)?
    } else {
        Vec::new()
    };
    if arguments.json {
        let sweep = sweep.iter().map(Planned::from).collect();
        serde_json::to_writer_pretty(
            &mut *out,
            &Report {
                plan: Planned::from(&plan),
                sweep,
            },
        )?;
        writeln!(out)?;
        return Ok(());
    }
    write!(out, "{plan}")?;
    if !sweep.is_empty() {
        writeln!(
            out,
            "\n      budget        peak  wire a pass  predicted      bound  verdict"
        )?;
    }
    for plan in &sweep {
        let full = &plan.kinds[0];
        writeln!(
            out,
            "{:>12}{:>12}{:>13}{:>9.3} s{:>9.3} s  {}",
            ByteSize(plan.budget_bytes).to_string(),
            ByteSize(plan.arena_bytes).to_string(),
            ByteSize(full.wire_bytes_per_pass).to_string(),
            full.predicted_pass_s,
            full.certificate.placement_bound_s,
            full.verdict
        )?;
    }
    Ok(())
}

/// Plans from the least budget to the one that holds everything, in equal steps.
fn sweep(make: impl Fn(Budget) -> Result<Plan, PlanError>) -> Result<Vec<Plan>, PlanError> {
    const STEPS: u64 = 8;
    let least = make(Budget::Least)?.arena_bytes;
    let all = make(Budget::Bytes(u64::MAX))?.arena_bytes.max(least);
    let between = (0..STEPS).map(|step| least + (all - least) / STEPS * step);
    between
        .chain([all])
        .map(|bytes| make(Budget::Bytes(bytes)))
        .collect()
}

/// Tokens of the text that cross-attention sees.
const TEXT_TOKENS: f64 = 512.0;

/// Seconds of compute by visit of a full pass.
fn compute_s(model: &Model, tokens: u64, flops_per_s: f64) -> Vec<f64> {
    let visits = model.kinds()[0].visits().iter();
    let flops = |&block: &usize| block_flops(model.blocks()[block].as_ref(), tokens as f64);
    visits.map(|block| flops(block) / flops_per_s).collect()
}

fn block_flops(block: &dyn Swappable, tokens: f64) -> f64 {
    if !block.name().starts_with("blocks.") {
        return 0.0;
    }
    let mut flops = 0.0;
    for tensor in block
        .tensors()
        .iter()
        .filter(|tensor| tensor.role() == Role::Matrix)
    {
        let sees_text = ["cross_attn.k", "cross_attn.v"]
            .iter()
            .any(|prefix| tensor.name().starts_with(prefix));
        let rows = if sees_text {
            TEXT_TOKENS.min(tokens)
        } else {
            tokens
        };
        flops += 2.0 * tensor.element_count() as f64 * rows;
        if tensor.name() == "self_attn.q.weight" {
            let width = tensor.shape().first().copied().unwrap_or(0) as f64;
            flops += 4.0 * width * tokens * (tokens + TEXT_TOKENS);
        }
    }
    flops
}
