//! Which member of the WAN family a checkpoint is: from names and shapes, then from hints, or because the caller says so.
//!
//! Two experts of a pair, 480P and 720P, or a fine-tune of the same layout differ in nothing but their numbers. Where
//! several variants fit, the name of the file is asked; what it does not tell stays open and all that fit are named.

use offload_core::encoding::Encoding;
use offload_core::swappable::TensorSpec;
use serde::{Deserialize, Serialize};

use crate::catalog::Catalog;
use crate::config::Config;
use crate::container::Said;
use crate::hints::Hints;
use crate::layout::{self, PATCH_EMBEDDING, PATCH_LEN, Widths};
use crate::names::{ATTACHED, List, Naming, SCALED_FLAG};
use crate::variant::{FAMILIES, FamilyEntry, Marker, Modules, Variant};

/// How the patch embedding's weight is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PatchEmbedding {
    /// As the model has it: `[dim, in, 1, 2, 2]`.
    Whole,
    /// With its first axes folded into one, as tools do that know four dimensions at most.
    Merged,
    /// Not in the checkpoint: converters leave it to a file of its own.
    Missing,
}

/// One of two checkpoints that share the steps of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expert {
    /// Computes the first steps.
    High,
    /// Computes the last steps.
    Low,
}

impl Expert {
    /// Its name, `high` or `low`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Low => "low",
        }
    }
}

/// How weights of few bits keep their scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scaling {
    /// fp8 without scales: the numbers are the weights.
    PlainFp8,
    /// fp8 with `scale_weight` beside each weight and `scaled_fp8` for all.
    ScaledFp8,
    /// fp8 or other with `weight_scale` beside each weight, and often `comfy_quant`.
    Mixed,
    /// 8-bit integers, `weight_int8`, with a `weight_scale` for each row.
    Int8,
}

/// Something that was decided, and what decided it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Decision {
    /// What was decided, such as `naming`.
    pub what: &'static str,
    /// How.
    pub value: String,
    /// What decided it: a tensor, numbers, the file's name, or the caller.
    pub by: String,
}

/// What a checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Detection {
    /// The variant; where neither tensors nor the file's name tell several apart, the oldest. A family, such as
    /// `wan2.1-t2v`, when block count and width are those of no published size. `None` when the tensors are not of the
    /// WAN family, or of no member that is known.
    pub variant: Option<Variant>,
    /// The others that the tensors may be as well.
    pub alternatives: Vec<Variant>,
    /// The convention of the names; `None` when they are not of the WAN family.
    pub naming: Option<Naming>,
    /// What stands before every name, such as `model.diffusion_model.`.
    pub prefix: &'static str,
    /// Transformer blocks in the main list.
    pub block_count: u64,
    /// VACE blocks.
    pub vace_block_count: u64,
    /// After which main blocks those of VACE run.
    pub vace_layers: Vec<u64>,
    /// Width of the residual stream; 0 when nothing tells.
    pub dim: u64,
    /// Width of the feed-forward layer; 0 when nothing tells.
    pub ffn_dim: u64,
    /// Latent channels that go in; `None` when there is no patch embedding to tell.
    pub in_channels: Option<u64>,
    /// Latent channels that come out.
    pub out_channels: Option<u64>,
    /// Whether blocks attend to an image embedding (WAN 2.1 image to video).
    pub image: bool,
    /// How the patch embedding is stored.
    pub patch_embedding: PatchEmbedding,
    /// Whether width and block count are the variant's; false for checkpoints with scaled widths.
    pub exact_size: bool,
    /// How weights of few bits keep their scales; `None` when there are none, or the encoding has its own.
    pub scaling: Option<Scaling>,
    /// Which of two experts, if the file's name tells.
    pub expert: Option<Expert>,
    /// The resolution it is for, such as `480p`, if the file's name tells.
    pub resolution: Option<&'static str>,
    /// The encoder of text or images that it is instead, such as `umt5`.
    pub encoder: Option<&'static str>,
    /// What was decided by what, in order.
    pub decided_by: Vec<Decision>,
    /// Whether the file's name or the caller chose the variant among those that the tensors may be.
    #[serde(skip)]
    pub(crate) chosen: bool,
}

/// What GGUF files of the public converters say they are of; others leave it out or have a word of their own.
const ARCHITECTURE: &str = "wan";

/// Modules that only some families have. The order decides: Animate and SCAIL also have what image to video has.
const MARKERS: &[(&[&str], Marker)] = &[
    (&["vace_patch_embedding"], Marker::Vace),
    (&["control_adapter"], Marker::Camera),
    (&["casual_audio_encoder"], Marker::Sound),
    (&["audio_proj"], Marker::Humo),
    (
        &["face_encoder", "motion_encoder", "pose_patch_embedding"],
        Marker::Animate,
    ),
    (&["patch_embedding_mask"], Marker::Scail2),
    (&["patch_embedding_pose"], Marker::Scail),
    (&["img_emb.emb_pos"], Marker::FirstLast),
];

/// Lists that only some families have, for checkpoints that lack their module.
const LIST_MARKERS: &[(List, Marker)] = &[
    (List::Vace, Marker::Vace),
    (List::Injector, Marker::Sound),
    (List::Fuser, Marker::Animate),
];

/// What is known of a checkpoint beside its tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beside {
    pub(crate) hints: Hints,
    pub(crate) said: Said,
    /// What the caller says it is.
    pub(crate) variant: Option<Variant>,
}

/// What a checkpoint is, and which modules it has.
pub(crate) fn detect(catalog: &Catalog<'_>, beside: &Beside) -> (Detection, Modules) {
    let has = |name| catalog.first_block(name).is_some();
    // Others have some of LongCat-Video's names: two of three must be there, so that one may be missing.
    let signs = [
        "modulation.1.weight",
        "cross_attn.k.weight",
        "ffn.w3.weight",
    ];
    let is_long_cat =
        catalog.convention.long_cat && signs.iter().filter(|sign| has(sign)).count() >= 2;
    let in_blocks = [has("cross_attn.norm_k.weight"), has("modulation")];
    let is_wan = !catalog.convention.long_cat
        && (catalog.has_module("head.modulation")
            || in_blocks == [true, true]
            || catalog.has_module("time_projection") && in_blocks.contains(&true));
    let count = |list| catalog.list(list).count() as u64;
    let mut detection = Detection {
        variant: None,
        alternatives: Vec::new(),
        naming: (is_wan || is_long_cat).then_some(catalog.convention.naming),
        prefix: catalog.prefix,
        block_count: count(List::Main),
        vace_block_count: count(List::Vace),
        vace_layers: Vec::new(),
        dim: 0,
        ffn_dim: 0,
        in_channels: None,
        out_channels: None,
        image: false,
        patch_embedding: PatchEmbedding::Missing,
        exact_size: false,
        scaling: None,
        expert: None,
        resolution: None,
        encoder: None,
        decided_by: Vec::new(),
        chosen: false,
    };
    let mut modules = Modules {
        marker: Marker::Plain,
        image: false,
        reference: false,
    };
    if detection.naming.is_none() {
        return (detection, modules);
    }
    detection.note_names(catalog);
    let said = beside.said.architecture.as_deref();
    if let Some(other) = said.filter(|said| *said != ARCHITECTURE) {
        let by = "general.architecture of a GGUF file; names and shapes decide";
        detection.decide("architecture", format!("not {other}"), by);
    }
    measure(catalog, &mut detection);
    detection.scaling = scaling(catalog);
    modules.image = detection.image;
    modules.reference = catalog.has_module("ref_conv");
    modules.marker = if is_long_cat {
        Marker::LongCat
    } else {
        marker(catalog, &mut detection)
    };
    if let Some(variant) = beside.variant {
        let said = variant.modules();
        let entry = variant.family().entry();
        modules.marker = said.marker;
        modules.image = entry.image.unwrap_or(modules.image);
        modules.reference |= said.reference;
        detection.image = modules.image;
    }
    measure_channels(catalog, modules, &mut detection);
    name_variant(modules, beside, &mut detection);
    if let Some(variant) = detection.variant {
        modules.reference |= variant.modules().reference;
    }
    detection.vace_layers = vace_layers(&mut detection, modules, beside.said.config.as_ref());
    if let Some(reason) = &beside.said.unread {
        let by = format!("config in the file's metadata is none: {reason}");
        detection.decide("config", "not used", by);
    }
    (detection, modules)
}

impl Detection {
    fn decide(&mut self, what: &'static str, value: impl ToString, by: impl Into<String>) {
        self.decided_by.push(Decision {
            what,
            value: value.to_string(),
            by: by.into(),
        });
    }

    fn note_names(&mut self, catalog: &Catalog<'_>) {
        if !catalog.prefix.is_empty() {
            let by = format!("{} names begin with it", catalog.prefixed);
            self.decide("prefix", catalog.prefix, by);
        }
        let naming = catalog.convention.naming;
        let (votes, names) = catalog.votes;
        self.decide("naming", naming, format!("{votes} of {names} names"));
    }

    /// Where it changes with another, if it may be one of a pair of experts; a variant that was chosen leaves no other.
    pub(crate) fn boundary(&self) -> Option<f64> {
        let others = self.alternatives.iter().filter(|_| !self.chosen);
        let variants = self.variant.iter().chain(others);
        variants.into_iter().find_map(|variant| variant.boundary())
    }

    /// The widths that shapes are held to.
    pub(crate) fn widths(&self) -> Widths {
        let known = self.variant.map(Variant::channels);
        Widths {
            dim: self.dim,
            ffn_dim: self.ffn_dim,
            in_channels: known.map(|(channels, _)| channels).or(self.in_channels),
            out_channels: known.map(|(_, channels)| channels).or(self.out_channels),
            published: self.exact_size,
        }
    }
}

/// The module that tells the family.
fn marker(catalog: &Catalog<'_>, detection: &mut Detection) -> Marker {
    let modules = MARKERS.iter().find_map(|(modules, marker)| {
        let module = modules.iter().find(|module| catalog.has_module(module))?;
        Some((*marker, format!("module {module}")))
    });
    let lists = || {
        LIST_MARKERS.iter().find_map(|(list, marker)| {
            let blocks = catalog.list(*list).next().is_some();
            blocks.then(|| (*marker, format!("blocks {}", list.name())))
        })
    };
    let humo = || {
        let wrapper = "audio_cross_attn_wrapper.norm1_audio.weight";
        let found = catalog.first_block(wrapper).is_some();
        found.then(|| (Marker::Humo, format!("tensor {wrapper}")))
    };
    match modules.or_else(lists).or_else(humo) {
        Some((marker, by)) => {
            detection.decide("modules", format!("{marker:?}").to_lowercase(), by);
            marker
        }
        None => {
            let by = if detection.image {
                "an image embedding, and no other family's module"
            } else {
                "no other family's module"
            };
            detection.decide("modules", "plain", by);
            Marker::Plain
        }
    }
}

/// The number that most say; of those that as many say, the first.
fn most(votes: impl IntoIterator<Item = u64>) -> u64 {
    let mut counts: Vec<(u64, usize)> = Vec::new();
    for vote in votes {
        match counts.iter_mut().find(|(number, _)| *number == vote) {
            Some((_, count)) => *count += 1,
            None => counts.push((vote, 1)),
        }
    }
    let best = counts.iter().map(|(_, count)| *count).max();
    let first = counts.iter().find(|(_, count)| Some(*count) == best);
    first.map_or(0, |(number, _)| *number)
}

/// Widths, from several tensors: one of a wrong shape must not hide behind all others.
fn measure(catalog: &Catalog<'_>, detection: &mut Detection) {
    let first = |spec: Option<&TensorSpec>| spec?.shape().first().copied();
    let last = |spec: Option<&TensorSpec>| spec?.shape().last().copied();
    let (root, block) = (
        |name| catalog.root_tensor(name),
        |name| catalog.first_block(name),
    );
    detection.dim = most(
        [
            last(root("head.modulation")),
            first(root("patch_embedding.bias")),
            first(root("text_embedding.2.bias")),
            first(root("time_embedding.2.bias")).filter(|_| catalog.has_module("time_projection")),
            last(block("modulation")),
            first(block("self_attn.o.bias")),
            first(block("norm3.weight")),
        ]
        .into_iter()
        .flatten(),
    );
    detection.ffn_dim = most(
        [
            first(block("ffn.0.weight")),
            first(block("ffn.0.bias")),
            last(block("ffn.2.weight")),
            first(block("ffn.w1.weight")),
            first(block("ffn.w3.weight")),
            last(block("ffn.w2.weight")),
        ]
        .into_iter()
        .flatten(),
    );
    detection.image = catalog.has_module("img_emb") || block("cross_attn.k_img.weight").is_some();
    if let Some(weight) = root(PATCH_EMBEDDING) {
        detection.patch_embedding = if weight.shape().len() == 5 {
            PatchEmbedding::Whole
        } else {
            PatchEmbedding::Merged
        };
        // Folding keeps the product, whichever axes a tool folds.
        let per_channel = detection.dim.saturating_mul(PATCH_LEN);
        let is_patch = weight.shape().len() <= 5 && weight.shape().ends_with(&[2, 2]);
        detection.in_channels = weight
            .element_count()
            .checked_div(per_channel)
            .filter(|channels| channels.saturating_mul(per_channel) == weight.element_count())
            .filter(|_| is_patch);
    }
    let (dim, ffn_dim) = (detection.dim, detection.ffn_dim);
    detection.decide(
        "widths",
        format!("{dim}, feed-forward {ffn_dim}"),
        "most of the tensors that have them",
    );
}

/// Channels that come out: of two numbers that contradict each other, the one that a family has.
fn measure_channels(catalog: &Catalog<'_>, modules: Modules, detection: &mut Detection) {
    let found = ["head.head.weight", "head.head.bias"].map(|name| {
        let spec = catalog.root_tensor(name)?;
        Some(spec.shape().first()? / PATCH_LEN)
    });
    let known = |channels: &u64| {
        let mut families = FAMILIES
            .iter()
            .filter(|entry| entry.marker == modules.marker);
        families.any(|entry| entry.out_channels == *channels)
    };
    let mut found = found.into_iter().flatten();
    detection.out_channels = found.clone().find(known).or_else(|| found.next());
}

/// How weights keep their scales.
fn scaling(catalog: &Catalog<'_>) -> Option<Scaling> {
    let tensors = || catalog.places.values().flatten();
    let is_fp8 = |encoding| matches!(encoding, Encoding::F8E4M3 | Encoding::F8E5M2);
    if catalog.has_module(SCALED_FLAG) {
        return Some(Scaling::ScaledFp8);
    }
    if tensors().any(|tensor| tensor.file.name().ends_with(".weight_int8")) {
        return Some(Scaling::Int8);
    }
    let is_attached = |name: &str| ATTACHED.iter().any(|leaf| name.ends_with(leaf));
    if tensors().any(|tensor| is_attached(&tensor.name)) {
        return Some(Scaling::Mixed);
    }
    let plain = tensors().any(|tensor| is_fp8(tensor.spec.encoding()));
    plain.then_some(Scaling::PlainFp8)
}

/// The families of these modules and channels; those of the modules alone if none has the channels.
fn families(modules: Modules, detection: &Detection) -> Vec<&'static FamilyEntry> {
    let same = |known: u64, found: Option<u64>| found.is_none_or(|found| found == known);
    let of_modules = FAMILIES.iter().filter(|entry| {
        entry.marker == modules.marker && entry.image.is_none_or(|image| image == modules.image)
    });
    let fitting: Vec<&FamilyEntry> = of_modules
        .clone()
        .filter(|entry| {
            same(entry.in_channels, detection.in_channels)
                && same(entry.out_channels, detection.out_channels)
        })
        .collect();
    if !fitting.is_empty() || modules.marker == Marker::Plain {
        return fitting;
    }
    let of_modules: Vec<_> = of_modules.collect();
    if !of_modules.is_empty() {
        return of_modules;
    }
    let of_marker = FAMILIES
        .iter()
        .filter(|entry| entry.marker == modules.marker);
    of_marker.collect()
}

/// Numbers of channels that families of these modules take.
pub(crate) fn known_channels(modules: Modules) -> Vec<u64> {
    let of_modules = FAMILIES.iter().filter(|entry| {
        entry.marker == modules.marker && entry.image.is_none_or(|image| image == modules.image)
    });
    let mut known: Vec<u64> = of_modules.map(|entry| entry.in_channels).collect();
    known.sort_unstable();
    known.dedup();
    known
}

/// Fills in the variant: families by module and channels, sizes by block count and width, then hints.
///
/// A width below the published one is a checkpoint with scaled widths: the block count tells its size.
fn name_variant(modules: Modules, beside: &Beside, detection: &mut Detection) {
    let families = families(modules, detection);
    let mut variants: Vec<Variant> = Variant::ALL
        .iter()
        .copied()
        .filter(|variant| {
            families
                .iter()
                .any(|entry| entry.family == variant.family())
                && variant.size().is_some_and(|size| {
                    size.block_count == detection.block_count && detection.dim <= size.dim
                })
        })
        .collect();
    if variants.is_empty() {
        variants = families
            .iter()
            .map(|entry| Variant::of_family(entry.family))
            .collect();
    }
    let (channels, blocks) = (detection.in_channels, detection.block_count);
    let shapes = match channels {
        Some(channels) => format!("{channels} channels in, {blocks} blocks"),
        None => format!("{blocks} blocks"),
    };
    let hinted = beside.hints.pick(&variants);
    detection.chosen = beside.variant.is_some() || hinted.is_some();
    if let Some(said) = beside.variant {
        variants.retain(|variant| *variant != said);
        variants.insert(0, said);
        detection.decide("variant", said, "the caller");
    } else if let Some((index, hint)) = hinted {
        let chosen = variants.remove(index);
        variants.insert(0, chosen);
        detection.decide(
            "variant",
            chosen,
            format!("{shapes}, and `{hint}` in the file's name"),
        );
    } else if let [variant] = variants[..] {
        detection.decide("variant", variant, shapes);
    } else if let [oldest, ..] = variants[..] {
        let by = format!("{shapes}; the oldest of {} that fit", variants.len());
        detection.decide("variant", oldest, by);
    }
    let mut variants = variants.into_iter();
    detection.variant = variants.next();
    detection.alternatives = variants.collect();
    let size = detection.variant.and_then(Variant::size);
    detection.exact_size =
        size.is_some_and(|size| size.dim == detection.dim && size.ffn_dim == detection.ffn_dim);
    if let Some((expert, hint)) = beside.hints.expert {
        detection.expert = Some(expert);
        detection.decide(
            "expert",
            expert.name(),
            format!("`{hint}` in the file's name"),
        );
    }
    if let Some(resolution) = beside.hints.resolution {
        detection.resolution = Some(resolution);
        detection.decide(
            "resolution",
            resolution,
            format!("`{resolution}` in the file's name"),
        );
    }
}

/// After which main blocks those of VACE run: as the configuration says, or as the authors spread them.
fn vace_layers(detection: &mut Detection, modules: Modules, config: Option<&Config>) -> Vec<u64> {
    if modules.marker != Marker::Vace {
        return Vec::new();
    }
    let (blocks, count) = (detection.block_count, detection.vace_block_count);
    let said = config.and_then(|config| Some((config.from, config.vace_layers.as_ref()?)));
    let fits = |layers: &[u64]| {
        layers.len() as u64 == count
            && layers.is_sorted_by(|one, next| one < next)
            && layers.iter().all(|layer| *layer < blocks)
    };
    let mut by = format!("{count} of them spread over {blocks} blocks");
    if let Some((from, layers)) = said {
        if fits(layers) {
            detection.decide("vace_layers", format!("{layers:?}"), from);
            return layers.clone();
        }
        by = format!("{by}: {layers:?} of {from} does not fit");
    }
    let spread = (0..count)
        .map_while(|index| layout::runs_after(List::Vace, index, blocks, count))
        .collect();
    detection.decide("vace_layers", format!("{spread:?}"), by);
    spread
}
