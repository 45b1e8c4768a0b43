//! What an engine does in the steps of a run: pass kinds, and which of them a step takes.
//!
//! # Kinds
//!
//! | setting | passes of a step |
//! |---|---|
//! | [`Guidance::Off`] | one |
//! | [`Guidance::Separate`] | one with the prompt and one without it; each streamed block is brought twice |
//! | [`Guidance::Lockstep`] | one, in which the engine computes both with each block: brought once for both |
//!
//! Skipped layers are those of the evaluation without the prompt. Apart, that is a kind that does not visit them, so
//! their bytes do not move; in lockstep they are visited for the other evaluation.
//!
//! [`PassOptions::cache_cross_attention`] makes a further kind of each, for all steps but the first: without the
//! projections of keys and values of text and image. The engine keeps, from the first step of each expert on, keys and
//! values of every block ([`WanModel::cached_bytes`]) for each prompt.
//!
//! # VACE
//!
//! The authors run all VACE blocks first and keep what each gives, its hint, until its main block has run. Interleaved,
//! each runs just after its main block and its hint is added at once: the same numbers, and no hint is kept.
//! [`WanModel::hint_bytes`] says what keeping them takes.
//!
//! # Two experts
//!
//! A pair is one model: the blocks of both, `high.blocks.0` and `low.blocks.0`, and kinds for each. They share one
//! arena, so the budget holds through the change. What is resident is so for both all the time, and nothing is moved
//! because of the change but the first blocks of the other expert, which a hint ([`Pass::then`]) brings while the last
//! pass of the first one ends.
//!
//! [`Pass::then`]: offload_core::executor::Pass::then

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use offload_core::model::{Model, PassKind, Residency};
use offload_core::plan::Plan;
use offload_core::source::SourceFile;
use offload_core::swappable::{Swappable, TensorSpec};
use serde::{Deserialize, Serialize};

use crate::block::WanBlock;
use crate::checkpoint::Checkpoint;
use crate::detect::Expert;
use crate::names;
use crate::transformer::{LayoutError, Part, Transformer, is_cross_key_or_value};

/// When VACE blocks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VaceOrder {
    /// Each after its main block; no hint is kept.
    #[default]
    Interleaved,
    /// All before the first main block, as the authors do; the engine keeps a hint of each.
    AllFirst,
    /// Not at all: the model without VACE's blocks, which are not even loaded.
    Off,
}

/// How a step evaluates the model with and without the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guidance {
    /// Only with it.
    #[default]
    Off,
    /// In a pass for each.
    Separate,
    /// In one pass for both.
    Lockstep,
}

/// What the engine computes in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evaluates {
    /// The model with the prompt.
    Prompt,
    /// The model without it, or with the negative one.
    NoPrompt,
    /// Both with each block.
    Both,
}

/// A pass of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StepPass {
    /// Which kind it is.
    pub kind: PassKind,
    /// What is computed in it.
    pub evaluates: Evaluates,
}

/// Which passes an engine makes.
#[derive(Debug, Clone, PartialEq)]
pub struct PassOptions {
    /// When VACE blocks run.
    pub vace: VaceOrder,
    /// How guidance is computed.
    pub guidance: Guidance,
    /// Main blocks that the evaluation without the prompt leaves out.
    pub skip_layers: Vec<u64>,
    /// Whether the engine keeps keys and values of text and image from the first step on, so that their projections are
    /// not brought again. Off by default.
    pub cache_cross_attention: bool,
    /// Steps of a run, for the planner to know how often each kind of pass is made.
    pub steps: u32,
    /// How many of them the expert for high noise computes; half if it is not said.
    pub high_steps: Option<u32>,
}

impl Default for PassOptions {
    fn default() -> Self {
        Self {
            vace: VaceOrder::default(),
            guidance: Guidance::default(),
            skip_layers: Vec::new(),
            cache_cross_attention: false,
            steps: 20,
            high_steps: None,
        }
    }
}

/// A kind and what it is for.
#[derive(Debug, Clone)]
struct Kind {
    kind: PassKind,
    expert: Option<Expert>,
    /// For the first step of its expert, or for the later ones.
    first: bool,
    /// In which pass of the step.
    evaluates: Vec<Evaluates>,
}

/// A WAN transformer, or a pair of experts, as a model with the kinds of passes that an engine makes.
#[derive(Debug, Clone)]
pub struct WanModel {
    pub(crate) model: Model,
    parts: Vec<(Part, Option<Expert>)>,
    kinds: Vec<Kind>,
    boundary: Option<f64>,
    dim: u64,
    vace: VaceOrder,
}

/// How many tokens a pass is over. 0 counts nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tokens {
    /// Of the video.
    pub video: u64,
    /// Of the text.
    pub text: u64,
    /// Of the image that is attended to, where one is.
    pub image: u64,
}

/// What the change from one expert to the other costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExpertChange {
    /// Arena bytes before, during and after it.
    pub arena_bytes: u64,
    /// Bytes of the expert for high noise that stay, also while the other computes.
    pub high_resident_bytes: u64,
    /// Bytes of the expert for low noise that stay, also while the other computes.
    pub low_resident_bytes: u64,
    /// Bytes over the wire in the first pass of the expert for low noise. A later pass of the same kind takes as many:
    /// with a hint the change itself moves nothing. Without one, what was brought for another pass of the expert before
    /// comes in addition.
    pub wire_bytes: u64,
    /// Seconds that the first pass of the other expert takes if its first blocks were all brought before it.
    pub hinted_pass_s: f64,
    /// Seconds that the first pass of the other expert takes longer, if nothing was brought for it.
    pub unhinted_s: f64,
}

/// A kind of pass before the model has it.
struct Draft {
    name: String,
    visits: Vec<usize>,
    share: f64,
    expert: Option<Expert>,
    first: bool,
    evaluates: Vec<Evaluates>,
}

impl WanModel {
    /// The model of one checkpoint.
    ///
    /// # Errors
    /// When it is no WAN transformer or not a whole one, and when an option is out of range.
    pub fn new(checkpoint: &Checkpoint, options: &PassOptions) -> Result<Self, LayoutError> {
        let transformer = of(checkpoint, options)?;
        check(&transformer, options)?;
        let dim = checkpoint.detection().dim;
        let mut drafts = Vec::new();
        draft(&transformer, options, None, 0, options.steps, &mut drafts);
        let parts = transformer.parts.iter().map(|part| (*part, None)).collect();
        let blocks = transformer.blocks.into_iter().map(arc).collect();
        Self::build(blocks, parts, drafts, options, None, dim)
    }

    /// Where the experts of a pair change, a part of all timesteps: `given`, or that of the variant. From it and the noise
    /// levels follow [`PassOptions::high_steps`].
    ///
    /// # Errors
    /// When the two are no pair, `given` is not between 0 and 1, or neither is known.
    pub fn boundary_of(
        high: &Checkpoint,
        low: &Checkpoint,
        given: Option<f64>,
    ) -> Result<f64, LayoutError> {
        pair_boundary(high, low, given)
    }

    /// The two experts of a pair as one model under one budget, changing at `boundary`, a part of all timesteps; that of
    /// the variant if none is given.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when the two are no pair: other tensors, or a file that both have. Nothing in experts is
    /// alike but names and shapes, so that a file of both is one that was named in the wrong place.
    pub fn pair(
        high: &Checkpoint,
        low: &Checkpoint,
        boundary: Option<f64>,
        options: &PassOptions,
    ) -> Result<Self, LayoutError> {
        let boundary = pair_boundary(high, low, boundary)?;
        let transformers = [
            (Expert::High, of(high, options)?),
            (Expert::Low, of(low, options)?),
        ];
        alike(&transformers[0].1, &transformers[1].1)?;
        check(&transformers[0].1, options)?;
        let high_steps = options.high_steps.unwrap_or((options.steps / 2).max(1));
        if high_steps == 0 || high_steps >= options.steps {
            return Err(LayoutError::OutOfRange {
                what: "the number of steps of the expert for high noise",
                value: high_steps.to_string(),
                range: format!(
                    "1 to {} of {} steps",
                    options.steps.saturating_sub(1),
                    options.steps
                ),
            });
        }
        let (mut drafts, mut blocks, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for (expert, transformer) in transformers {
            let steps = match expert {
                Expert::High => high_steps,
                Expert::Low => options.steps - high_steps,
            };
            draft(
                &transformer,
                options,
                Some(expert),
                blocks.len(),
                steps,
                &mut drafts,
            );
            parts.extend(transformer.parts.iter().map(|part| (*part, Some(expert))));
            let named = transformer
                .blocks
                .into_iter()
                .map(|block| block.prefixed(expert.name()));
            blocks.extend(named.map(arc));
        }
        Self::build(
            blocks,
            parts,
            drafts,
            options,
            Some(boundary),
            high.detection().dim,
        )
    }

    fn build(
        blocks: Vec<Arc<dyn Swappable>>,
        parts: Vec<(Part, Option<Expert>)>,
        drafts: Vec<Draft>,
        options: &PassOptions,
        boundary: Option<f64>,
        dim: u64,
    ) -> Result<Self, LayoutError> {
        let mut model = Model::new(blocks)?;
        for (index, (part, _)) in parts.iter().enumerate() {
            if !part.is_block() {
                model = model.with_residency(index, Residency::Always)?;
            }
        }
        let mut kinds = Vec::new();
        for (number, draft) in drafts.into_iter().enumerate() {
            let first = draft.first;
            let demands = move |_: &dyn Swappable, tensor: &TensorSpec| {
                first || !is_cross_key_or_value(tensor.name())
            };
            let kind;
            if number == 0 {
                kind = PassKind::FULL;
                model = model.with_first_kind(draft.name, draft.visits, demands)?;
            } else {
                (model, kind) = model.with_kind(draft.name, draft.visits, demands)?;
            }
            model = model.with_share(kind, draft.share)?;
            kinds.push(Kind {
                kind,
                expert: draft.expert,
                first,
                evaluates: draft.evaluates,
            });
        }
        Ok(Self {
            model,
            parts,
            kinds,
            boundary,
            dim,
            vace: options.vace,
        })
    }

    /// The model, for [`OffloadBuilder::model`](offload_core::executor::OffloadBuilder::model).
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model alone.
    #[must_use]
    pub fn into_model(self) -> Model {
        self.model
    }

    /// What block `index` of the model is, and of which expert.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn part(&self, index: usize) -> (Part, Option<Expert>) {
        self.parts[index]
    }

    /// Blocks of the model for which `is` holds, in order.
    pub(crate) fn indices(&self, is: impl Fn(Part) -> bool) -> Vec<usize> {
        let parts = self.parts.iter().enumerate();
        parts
            .filter(|(_, (part, _))| is(*part))
            .map(|(index, _)| index)
            .collect()
    }

    /// The expert that makes passes of `kind`; `None` if there is one transformer alone, or no such kind.
    #[must_use]
    pub fn expert_of(&self, kind: PassKind) -> Option<Expert> {
        let of = self.kinds.iter().find(|of| of.kind == kind)?;
        of.expert
    }

    /// Which expert computes the step at `timestep`, of 0 to 1000; `None` if there is one transformer alone.
    #[must_use]
    pub fn expert_at(&self, timestep: f64) -> Option<Expert> {
        let boundary = self.boundary?;
        Some(if timestep >= boundary * 1000.0 {
            Expert::High
        } else {
            Expert::Low
        })
    }

    /// Where the experts change, as a part of all timesteps.
    #[must_use]
    pub fn boundary(&self) -> Option<f64> {
        self.boundary
    }

    /// The passes of a step, in order: of `expert` (`None` without a pair), and in its `first` step or a later one.
    #[must_use]
    pub fn step(&self, expert: Option<Expert>, first: bool) -> Vec<StepPass> {
        let has_later = self.kinds.iter().any(|kind| !kind.first);
        let of_step = |kind: &&Kind| kind.expert == expert && kind.first == (first || !has_later);
        let passes = self.kinds.iter().filter(of_step);
        passes
            .flat_map(|kind| {
                let evaluates = kind.evaluates.iter();
                evaluates.map(|&evaluates| StepPass {
                    kind: kind.kind,
                    evaluates,
                })
            })
            .collect()
    }

    /// How often each visit of a pass of `kind` computes: twice in lockstep.
    #[must_use]
    pub fn evaluations(&self, kind: PassKind) -> u32 {
        let is_both = |of: &Kind| of.kind == kind && of.evaluates.contains(&Evaluates::Both);
        if self.kinds.iter().any(is_both) { 2 } else { 1 }
    }

    /// Bytes of the hints that the engine keeps at once in a pass over `tokens` tokens of bf16, in lockstep of both
    /// evaluations; 0 unless all VACE blocks run first.
    #[must_use]
    pub fn hint_bytes(&self, tokens: u64) -> u64 {
        if self.vace != VaceOrder::AllFirst {
            return 0;
        }
        let expert = self.parts.first().and_then(|(_, expert)| *expert);
        let is_hint =
            |part: &&(Part, Option<Expert>)| matches!(part.0, Part::Vace(_)) && part.1 == expert;
        let hints = self.parts.iter().filter(is_hint).count() as u64;
        let evaluations = self.kinds.iter().map(|kind| self.evaluations(kind.kind));
        let hints = hints.saturating_mul(evaluations.max().unwrap_or(1).into());
        hints.saturating_mul(self.state_bytes(tokens))
    }

    /// Bytes of what the engine keeps beside its activations: [hints](Self::hint_bytes), and [keys and
    /// values](Self::cached_bytes) for each prompt.
    #[must_use]
    pub fn kept_bytes(&self, tokens: Tokens) -> u64 {
        let evaluates = self.kinds.iter().flat_map(|kind| &kind.evaluates);
        let is_two = |evaluates: &Evaluates| *evaluates != Evaluates::Prompt;
        let prompts = if evaluates.into_iter().any(is_two) {
            2
        } else {
            1
        };
        let cached = self.cached_bytes(tokens.text, tokens.image);
        self.hint_bytes(tokens.video)
            .saturating_add(cached.saturating_mul(prompts))
    }

    /// Bytes of the keys and values that the engine keeps, bf16, for a prompt of `text_tokens` and `image_tokens` of an
    /// image; 0 unless they are brought in the first step only. With guidance there are two prompts.
    #[must_use]
    pub fn cached_bytes(&self, text_tokens: u64, image_tokens: u64) -> u64 {
        if self.kinds.iter().all(|kind| kind.first) {
            return 0;
        }
        let expert = self.parts.first().and_then(|(_, expert)| *expert);
        let blocks = self.model.blocks().iter().zip(&self.parts);
        let of_expert = blocks.filter(|(_, (_, of))| *of == expert);
        let tokens: u64 = of_expert
            .map(|(block, _)| {
                let has = |name: &str| block.tensors().iter().any(|tensor| tensor.name() == name);
                let text = if has("cross_attn.k.weight") {
                    text_tokens
                } else {
                    0
                };
                let image = if has("cross_attn.k_img.weight") {
                    image_tokens
                } else {
                    0
                };
                text.saturating_add(image)
            })
            .fold(0, u64::saturating_add);
        // Keys and values.
        self.state_bytes(tokens).saturating_mul(2)
    }

    /// Bytes of so many tokens between blocks, bf16.
    fn state_bytes(&self, tokens: u64) -> u64 {
        tokens.saturating_mul(self.dim).saturating_mul(2)
    }

    /// What the change to the other expert costs under `plan`, as the planner predicts it; `None` without a pair.
    #[must_use]
    pub fn expert_change(&self, plan: &Plan) -> Option<ExpertChange> {
        let low = self.step(Some(Expert::Low), true).first()?.kind;
        let low = plan.kinds.get(low.index())?;
        let resident_bytes = |expert| {
            let blocks = plan.blocks.iter().zip(&self.parts);
            let of_expert = blocks.filter(|(_, (_, of))| *of == Some(expert));
            let places = of_expert.flat_map(|(block, _)| [block.remainder, block.resident]);
            places.flatten().map(|place| place.bytes).sum()
        };
        Some(ExpertChange {
            arena_bytes: plan.arena_bytes,
            high_resident_bytes: resident_bytes(Expert::High),
            low_resident_bytes: resident_bytes(Expert::Low),
            wire_bytes: low.wire_bytes_per_pass,
            hinted_pass_s: low.predicted_pass_s,
            unhinted_s: (low.predicted_cold_pass_s - low.predicted_pass_s).max(0.0),
        })
    }
}

/// The transformer with the modules that the options ask for.
fn of(checkpoint: &Checkpoint, options: &PassOptions) -> Result<Transformer, LayoutError> {
    let transformer = checkpoint.transformer()?;
    Ok(match options.vace {
        VaceOrder::Off => transformer.without_vace(),
        VaceOrder::Interleaved | VaceOrder::AllFirst => transformer,
    })
}

fn arc(block: WanBlock) -> Arc<dyn Swappable> {
    Arc::new(block)
}

/// Whether the options fit the transformer.
fn check(transformer: &Transformer, options: &PassOptions) -> Result<(), LayoutError> {
    let out_of = |what, value: u64, range| LayoutError::OutOfRange {
        what,
        value: value.to_string(),
        range,
    };
    if options.steps == 0 {
        return Err(out_of("the number of steps", 0, "1 or more".to_owned()));
    }
    let blocks = transformer
        .parts
        .iter()
        .filter(|part| matches!(part, Part::Main(_)));
    let count = blocks.count() as u64;
    match options.skip_layers.iter().find(|layer| **layer >= count) {
        Some(&layer) => Err(out_of(
            "a skipped layer",
            layer,
            format!("0 to {}", count - 1),
        )),
        None => Ok(()),
    }
}

/// The kinds of one transformer whose blocks begin at `offset` of the model's.
fn draft(
    transformer: &Transformer,
    options: &PassOptions,
    expert: Option<Expert>,
    offset: usize,
    steps: u32,
    drafts: &mut Vec<Draft>,
) {
    let visits = |skipped: &[u64]| -> Vec<usize> {
        let visits = transformer.visits(options.vace, skipped).into_iter();
        visits.map(|index| index + offset).collect()
    };
    use Evaluates::{Both, NoPrompt, Prompt};
    let all = visits(&[]);
    let passes = match options.guidance {
        Guidance::Off => vec![("full", all, vec![Prompt])],
        Guidance::Lockstep => vec![("lockstep", all, vec![Both])],
        Guidance::Separate if options.skip_layers.is_empty() => {
            vec![("full", all, vec![Prompt, NoPrompt])]
        }
        Guidance::Separate => vec![
            ("full", all, vec![Prompt]),
            ("skipping", visits(&options.skip_layers), vec![NoPrompt]),
        ],
    };
    for (name, visits, evaluates) in passes {
        let later = options.cache_cross_attention.then_some(false);
        for first in [Some(true), later].into_iter().flatten() {
            let expert_name = expert.map_or("", Expert::name);
            let step = if first { "" } else { "later" };
            let words = [expert_name, name, step];
            let name: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
            let steps = match (options.cache_cross_attention, first) {
                (false, _) => steps,
                (true, true) => 1,
                (true, false) => (steps - 1).max(1),
            };
            drafts.push(Draft {
                name: name.join(" "),
                visits: visits.clone(),
                share: f64::from(steps) * evaluates.len() as f64,
                expert,
                first,
                evaluates: evaluates.clone(),
            });
        }
    }
}

/// Where two checkpoints change; an error if they are no pair.
fn pair_boundary(
    high: &Checkpoint,
    low: &Checkpoint,
    boundary: Option<f64>,
) -> Result<f64, LayoutError> {
    let no_pair = |reason: String| Err(LayoutError::NoPair { reason });
    let of_low = file_ids(low);
    let shared: Vec<String> = (high.files().iter())
        .filter(|file| of_low.contains(&file_id(file)))
        .map(|file| file.path().display().to_string())
        .collect();
    if !shared.is_empty() {
        return no_pair(format!(
            "{} cannot be both experts: {} of {} files for high noise {} for low noise too",
            shared.join(", "),
            shared.len(),
            high.files().len(),
            if shared.len() == 1 { "is" } else { "are" }
        ));
    }
    let swapped = (high.detection().expert, low.detection().expert);
    if swapped == (Some(Expert::Low), Some(Expert::High)) {
        return no_pair(
            "the file for high noise is named for low noise, and the other way round".to_owned(),
        );
    }
    if let Some(boundary) = boundary {
        if boundary > 0.0 && boundary < 1.0 {
            return Ok(boundary);
        }
        return Err(LayoutError::OutOfRange {
            what: "the boundary of two experts",
            value: boundary.to_string(),
            range: "between 0 and 1".to_owned(),
        });
    }
    let of = |checkpoint: &Checkpoint| {
        let detection = checkpoint.detection();
        match (detection.boundary(), detection.variant) {
            (Some(boundary), _) => Ok(boundary),
            (None, Some(variant)) => no_pair(format!(
                "{variant} is no pair of experts: give the boundary at which they change"
            )),
            (None, None) => no_pair(
                "the variant is unknown: give the boundary at which the experts change".to_owned(),
            ),
        }
    };
    let (of_high, of_low) = (of(high)?, of(low)?);
    if of_high == of_low {
        Ok(of_high)
    } else {
        no_pair(format!(
            "the experts are of two pairs: one changes at {of_high}, the other at {of_low}"
        ))
    }
}

/// The files of a checkpoint, however they are called and in whichever order.
fn file_ids(checkpoint: &Checkpoint) -> BTreeSet<FileId> {
    checkpoint
        .files()
        .iter()
        .map(|file| file_id(file))
        .collect()
}

/// Device and inode: hard links of a file have them in common.
#[cfg(unix)]
type FileId = Result<(u64, u64), PathBuf>;
#[cfg(not(unix))]
type FileId = PathBuf;

#[cfg(unix)]
fn file_id(file: &SourceFile) -> FileId {
    use std::os::unix::fs::MetadataExt;
    match file.file().metadata() {
        Ok(metadata) => Ok((metadata.dev(), metadata.ino())),
        Err(_) => Err(canonical(file)),
    }
}

#[cfg(not(unix))]
fn file_id(file: &SourceFile) -> FileId {
    canonical(file)
}

fn canonical(file: &SourceFile) -> PathBuf {
    let path = file.path();
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

/// The tensors of a block that it has in every encoding: without scales and what else says how weights are stored.
fn weights(block: &WanBlock) -> impl Iterator<Item = &TensorSpec> {
    let tensors = block.tensors().iter();
    tensors.filter(|tensor| !names::tells_encoding(tensor.name()))
}

/// Whether two transformers have the same blocks with the same tensors; encodings may differ.
fn alike(high: &Transformer, low: &Transformer) -> Result<(), LayoutError> {
    let no_pair = |reason: String| Err(LayoutError::NoPair { reason });
    let blocks = |of: &'_ Transformer| -> Vec<(Part, usize)> {
        let parts = of.parts.iter().copied().zip(0..);
        parts
            .filter(|(_, index)| weights(&of.blocks[*index]).next().is_some())
            .collect()
    };
    let (of_high, of_low) = (blocks(high), blocks(low));
    let parts = |of: &[(Part, usize)]| -> Vec<Part> { of.iter().map(|(part, _)| *part).collect() };
    if parts(&of_high) != parts(&of_low) {
        let names = |of: &Transformer, than: &Transformer| -> String {
            let own = of.blocks.iter().filter(|block| {
                let mut others = than.blocks.iter();
                !others.any(|other| other.name() == block.name())
            });
            let own: Vec<&str> = own.map(Swappable::name).collect();
            match own[..] {
                [] => "nothing more".to_owned(),
                [one] => one.to_owned(),
                [first, .., last] => format!("{first} to {last} ({} of them)", own.len()),
            }
        };
        return no_pair(format!(
            "the experts differ: {} blocks and groups against {}; only that for high noise has {}, only the other {}",
            of_high.len(),
            of_low.len(),
            names(high, low),
            names(low, high)
        ));
    }
    for ((_, one), (_, other)) in of_high.iter().zip(&of_low) {
        let (one, other) = (&high.blocks[*one], &low.blocks[*other]);
        let count = (weights(one).count(), weights(other).count());
        if count.0 != count.1 {
            return no_pair(format!(
                "the experts differ in {}: {} tensors against {}",
                one.name(),
                count.0,
                count.1
            ));
        }
        for tensor in weights(one) {
            let name = tensor.name();
            let found = other.tensors().iter().find(|other| other.name() == name);
            let same = found.is_some_and(|other| other.shape() == tensor.shape());
            if !same {
                let shape = found.map_or("none".to_owned(), |other| format!("{:?}", other.shape()));
                return no_pair(format!(
                    "the experts differ in {}.{name}: shape {:?} against {shape}",
                    one.name(),
                    tensor.shape()
                ));
            }
        }
    }
    Ok(())
}
