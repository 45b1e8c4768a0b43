//! Plans without a device: what would be resident, what would move, how long a pass would take, and how far that is
//! from the best there can be.
//!
//! ```text
//! cargo run --example plan -- model.gguf --budget 8GiB --tokens 32760 --card rtx4090
//! cargo run --example plan -- --variant wan2.2-t2v-a14b --encoding Q4_K_M --budget 8GiB --tokens 32760 --sweep
//! cargo run --example plan -- --variant wan2.2-t2v-a14b --pair --encoding Q4_K_M --budget 8GiB --recommend
//! ```
//!
//! With `--pair` the plan is for both experts of a pair under one budget; they change where `stream_wan` has them
//! change. `--recommend` says which of the original's options cards of 8, 12, 16 and 24 GiB need, leaving room for the
//! context (1 GiB) and the activations of `--tokens` tokens: six states of a block and the output of its first
//! feed-forward matrix, bf16.
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
#[path = "support/wan.rs"]
mod wan;

use std::error::Error;
use std::fmt::Display;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use bytesize::ByteSize;
use card::Card;
use clap::Parser;
use offload_core::executor::Settings;
use offload_core::model::PassKind;
use offload_core::plan::{Budget, Form, KindPlan, Plan, PlanError, Tier, Verdict};
use offload_core::source::SourceFile;
use offload_core::swappable::{Role, Swappable};
use offload_wan::{
    BlockSwap, Checkpoint, ExpertChange, Recipe, SynthesizeSpec, Tokens, Variant, WanModel, Which,
};
use serde::Serialize;
use wan::{LowArguments, PassArguments, StepReport, Subject};

/// Plans without a device: what is resident, what moves, how long a pass takes, and how far that is from the best.
#[derive(Debug, Parser)]
#[command(name = "plan")]
struct Arguments {
    /// The checkpoint; several files are the shards of one model.
    #[arg(
        value_name = "FILE",
        required_unless_present = "variant",
        conflicts_with_all = ["variant", "encoding", "pair"]
    )]
    files: Vec<PathBuf>,
    /// A published variant instead of a file, such as wan2.1-t2v-14b.
    #[arg(long, value_name = "NAME", requires = "encoding", conflicts_with = "low", value_parser = wan::parse_variant)]
    variant: Option<Variant>,
    /// How the variant is stored: F32, F16, BF16, Q8_0, Q4_K_M, F8_E4M3 and others.
    #[arg(long, value_name = "NAME", requires = "variant", value_parser = parse_recipe)]
    encoding: Option<Recipe>,
    /// Plan for both experts of the variant.
    #[arg(long, requires = "variant")]
    pair: bool,
    #[command(flatten)]
    low: LowArguments,
    #[command(flatten)]
    passes: PassArguments,
    /// Steps of a run: how often each kind of pass is made. Default: 20.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    steps: Option<u32>,
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
    /// Say which options of the original block swap cards of usual sizes need.
    #[arg(long)]
    recommend: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
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

/// A kind of pass.
#[derive(Debug, Serialize)]
struct KindPlanned {
    name: String,
    /// How often it is made in a run; 1 for an encoder.
    passes_per_run: f64,
    wire_bytes_per_pass: u64,
    predicted_pass_seconds: f64,
    predicted_cold_pass_seconds: f64,
    verdict: Verdict,
}

/// What a card needs.
#[derive(Debug, Serialize)]
struct Recommendation {
    card_gib: u64,
    reserve_bytes: u64,
    /// `null` when the card is too small.
    options: Option<BlockSwap>,
    peak_bytes: Option<u64>,
    predicted_pass_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    plan: Planned,
    kinds: Vec<KindPlanned>,
    /// What the steps of a run take; none of an encoder.
    steps: Vec<StepReport>,
    /// All passes of a run, one after another.
    predicted_run_seconds: f64,
    /// Bytes of VACE's hints that an engine keeps with `--vace-order all-first`: of all tokens, and of each.
    hint_bytes: u64,
    hint_bytes_per_token: u64,
    /// Bytes of keys and values that an engine keeps with `--cache-cross-attention`, for each prompt.
    cached_bytes: u64,
    /// What the change from one expert to the other costs; `null` without a pair.
    expert_change: Option<ExpertChange>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recommended: Vec<Recommendation>,
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

/// Steps of a run if nothing is said: the library's default.
const DEFAULT_STEPS: u32 = 20;

/// Far more than any profile has.
const PROFILE_BYTES: u64 = 1 << 20;

fn main() -> ExitCode {
    program::run(plan)
}

fn plan(arguments: Arguments, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let card = match &arguments.profile {
        Some(path) => {
            let failed = |error: &dyn Display| format!("{}: {error}", path.display());
            // Opens regular files only: others may be read without end.
            let file = SourceFile::open(path)?;
            if file.len() > PROFILE_BYTES {
                return Err(failed(&"too large for a profile").into());
            }
            let mut text = vec![0; usize::try_from(file.len())?];
            file.read_exact_at(&mut text, 0)?;
            let card: Card = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
            card.check()
                .map_err(|reason| format!("{}: {reason}", path.display()))?
        }
        None => arguments.card,
    };
    let (checkpoint, low) = match (arguments.variant, arguments.encoding) {
        (Some(variant), Some(recipe)) => {
            let expert = |seed| -> Result<Checkpoint, Box<dyn Error>> {
                let spec = SynthesizeSpec::of_variant(variant, recipe, 1, seed)?;
                Ok(Checkpoint::from_tensors(spec.describe()?)?.taken_for(variant)?)
            };
            let low = arguments.pair.then(|| expert(1)).transpose()?;
            (expert(0)?, low)
        }
        _ => (
            Checkpoint::open_all(&arguments.files)?,
            arguments.low.open()?,
        ),
    };
    let steps = arguments.steps.unwrap_or(DEFAULT_STEPS);
    if low.is_some() && steps < 2 {
        return Err(format!("--steps {steps}: each expert of a pair makes a step at least").into());
    }
    let subject = Subject::new(&checkpoint, low.as_ref(), &arguments.passes, steps)?;
    if subject.wan.is_none() && arguments.steps.is_some() {
        return Err("--steps: an encoder makes one pass".into());
    }
    let model = &subject.model;
    let costs = card.costs(compute_s(&subject, arguments.tokens, card.flops_per_s));
    let settings = Settings {
        costs,
        ..Settings::default()
    };
    let workload = settings.workload(model, true);
    let make = |budget| Plan::make(&workload, &settings.costs.rates, budget);

    let plan = make(arguments.budget)?;
    let sweep = if arguments.sweep {
        sweep(make)?
    } else {
        Vec::new()
    };
    let recommended = match (arguments.recommend, &subject.wan) {
        (false, _) => Vec::new(),
        (true, Some(wan)) => {
            let detection = checkpoint.detection();
            let states = 6 * detection.dim + detection.ffn_dim;
            let activations = 2 * arguments.tokens.saturating_mul(states);
            let tokens = Tokens {
                video: arguments.tokens,
                text: TEXT_TOKENS as u64,
                image: IMAGE_TOKENS,
            };
            recommend(wan, &settings, activations.saturating_add(1 << 30), tokens)?
        }
        (true, None) => return Err("only a WAN transformer is swapped by number".into()),
    };
    let wan = subject.wan.as_ref();
    let kinds = plan.kinds.iter().zip(model.kinds());
    let kinds: Vec<KindPlanned> = kinds
        .map(|(plan, kind)| KindPlanned::new(plan, kind.share()))
        .collect();
    let seconds = |kind: &KindPlanned| kind.passes_per_run * kind.predicted_pass_seconds;
    let report = Report {
        plan: Planned::from(&plan),
        predicted_run_seconds: kinds.iter().map(seconds).sum(),
        kinds,
        steps: wan.map_or(Vec::new(), |wan| StepReport::all(wan, &plan)),
        hint_bytes: wan.map_or(0, |wan| wan.hint_bytes(arguments.tokens)),
        hint_bytes_per_token: wan.map_or(0, |wan| wan.hint_bytes(1)),
        cached_bytes: wan.map_or(0, |wan| wan.cached_bytes(TEXT_TOKENS as u64, IMAGE_TOKENS)),
        expert_change: wan.and_then(|wan| wan.expert_change(&plan)),
        recommended,
        sweep: sweep.iter().map(Planned::from).collect(),
    };
    if arguments.json {
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
        return Ok(());
    }
    write!(out, "{plan}")?;
    report.print_more(out)?;
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

impl KindPlanned {
    fn new(kind: &KindPlan, passes_per_run: f64) -> Self {
        Self {
            name: kind.name.clone(),
            passes_per_run,
            wire_bytes_per_pass: kind.wire_bytes_per_pass,
            predicted_pass_seconds: kind.predicted_pass_s,
            predicted_cold_pass_seconds: kind.predicted_cold_pass_s,
            verdict: kind.verdict,
        }
    }
}

impl Report {
    /// What the plan itself does not say.
    fn print_more(&self, out: &mut dyn Write) -> std::io::Result<()> {
        if !self.steps.is_empty() {
            writeln!(out)?;
        }
        for step in &self.steps {
            step.print(out)?;
        }
        if !self.steps.is_empty() {
            writeln!(
                out,
                "run         {:.3} s predicted",
                self.predicted_run_seconds
            )?;
        }
        for (bytes, what) in [
            (self.hint_bytes_per_token, "hints of VACE, for each token"),
            (self.hint_bytes, "hints of VACE"),
            (self.cached_bytes, "keys and values, for each prompt"),
        ] {
            if bytes > 0 {
                writeln!(out, "\nthe engine keeps {} of {what}", ByteSize(bytes))?;
            }
        }
        if let Some(change) = &self.expert_change {
            writeln!(
                out,
                "\nchange of expert: within the same {}, {} of the one and {} of the other stay; at most {:.3} s if not announced",
                ByteSize(change.arena_bytes),
                ByteSize(change.high_resident_bytes),
                ByteSize(change.low_resident_bytes),
                change.unhinted_s
            )?;
        }
        for one in &self.recommended {
            write!(
                out,
                "\n{:>3} GiB card, {} left free: ",
                one.card_gib,
                ByteSize(one.reserve_bytes)
            )?;
            let Some(options) = &one.options else {
                write!(out, "too small")?;
                continue;
            };
            write!(out, "blocks_to_swap {}", options.blocks_to_swap)?;
            for (is_set, name) in [
                (options.which == Which::Last, "which last"),
                (options.offload_txt_emb, "offload_txt_emb"),
                (options.offload_img_emb, "offload_img_emb"),
            ] {
                if is_set {
                    write!(out, ", {name}")?;
                }
            }
            if options.prefetch_blocks > 0 {
                write!(out, ", prefetch_blocks {}", options.prefetch_blocks)?;
            }
            let (peak, seconds) = (one.peak_bytes, one.predicted_pass_seconds);
            let peak = ByteSize(peak.unwrap_or_default());
            write!(
                out,
                "; takes {peak}, {:.3} s a pass",
                seconds.unwrap_or_default()
            )?;
        }
        if !self.recommended.is_empty() {
            writeln!(out)?;
        }
        Ok(())
    }
}

/// Cards of usual sizes, GiB.
const CARD_GIB: [u64; 4] = [8, 12, 16, 24];

fn recommend(
    wan: &WanModel,
    settings: &Settings,
    reserve_bytes: u64,
    tokens: Tokens,
) -> Result<Vec<Recommendation>, Box<dyn Error>> {
    let of_card = |card_gib: u64| {
        let found = BlockSwap::recommended(wan, settings, card_gib << 30, reserve_bytes, tokens)?;
        let plan = found.as_ref().map(|found| &found.plan);
        Ok(Recommendation {
            card_gib,
            reserve_bytes,
            options: found.as_ref().map(|found| found.options),
            peak_bytes: plan.map(|plan| plan.arena_bytes),
            predicted_pass_seconds: plan.map(|plan| plan.kinds[0].predicted_pass_s),
        })
    };
    CARD_GIB.into_iter().map(of_card).collect()
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

/// Tokens of an image that CLIP encodes.
const IMAGE_TOKENS: u64 = 257;

/// Seconds of compute by kind of pass and visit.
fn compute_s(subject: &Subject, tokens: u64, flops_per_s: f64) -> Vec<Vec<f64>> {
    let model = &subject.model;
    let flops = |block: usize| match &subject.wan {
        Some(wan) if !wan.part(block).0.is_block() => 0.0,
        _ => block_flops(model.blocks()[block].as_ref(), tokens as f64),
    };
    let kinds = (0u32..).zip(model.kinds());
    let of_kind = |(kind, spec): (u32, &offload_core::model::KindSpec)| {
        let evaluations = subject
            .wan
            .as_ref()
            .map_or(1, |wan| wan.evaluations(PassKind(kind)));
        let seconds = |&block: &usize| f64::from(evaluations) * flops(block) / flops_per_s;
        spec.visits().iter().map(seconds).collect()
    };
    kinds.map(of_kind).collect()
}

fn block_flops(block: &dyn Swappable, tokens: f64) -> f64 {
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
