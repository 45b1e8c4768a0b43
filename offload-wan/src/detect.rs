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
use crate::variant::{FAMILIES, Family, FamilyEntry, Marker, Modules, Size, Variant};

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
    /// Attention heads: as the configuration says, or of 128 numbers each, which all published checkpoints have; `None`
    /// when the width is none of so many heads.
    pub heads: Option<u64>,
    /// Width of the text's embedding that goes in; `None` when nothing tells.
    pub text_dim: Option<u64>,
    /// Frames, rows and columns that a latent stands for in the autoencoder of so many channels; `None` when nothing
    /// tells.
    pub vae_stride: Option<[u64; 3]>,
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
    /// Blocks that a whole checkpoint of its kind has.
    #[serde(skip)]
    pub(crate) whole: Whole,
    /// Whether it is LongCat-Video.
    #[serde(skip)]
    pub(crate) is_long_cat: bool,
}

/// How many blocks of a list a whole checkpoint has: more than are there if some are missing at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Whole {
    pub(crate) blocks: u64,
    pub(crate) vace_blocks: u64,
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
        catalog.style.convention.long_cat && signs.iter().filter(|sign| has(sign)).count() >= 2;
    let in_blocks = [has("cross_attn.norm_k.weight"), has("modulation")];
    let is_wan = !catalog.style.convention.long_cat
        && (catalog.has_module("head.modulation")
            || in_blocks == [true, true]
            || catalog.has_module("time_projection") && in_blocks.contains(&true));
    let count = |list| catalog.list(list).count() as u64;
    let mut detection = Detection {
        variant: None,
        alternatives: Vec::new(),
        naming: (is_wan || is_long_cat).then_some(catalog.style.convention.naming),
        prefix: catalog.style.prefix,
        block_count: count(List::Main),
        vace_block_count: count(List::Vace),
        vace_layers: Vec::new(),
        dim: 0,
        ffn_dim: 0,
        in_channels: None,
        out_channels: None,
        heads: None,
        text_dim: None,
        vae_stride: None,
        image: false,
        patch_embedding: PatchEmbedding::Missing,
        exact_size: false,
        scaling: None,
        expert: None,
        resolution: None,
        encoder: None,
        decided_by: Vec::new(),
        chosen: false,
        whole: Whole::default(),
        is_long_cat,
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
    measure_for_engines(catalog, beside.said.config.as_ref(), &mut detection);
    name_variant(modules, beside, &mut detection);
    if let Some(variant) = detection.variant {
        modules.reference |= variant.modules().reference;
    }
    detection.whole = whole(catalog, modules, beside, &detection);
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
        if !catalog.style.prefix.is_empty() {
            let by = format!("{} names begin with it", catalog.style.prefixed);
            self.decide("prefix", catalog.style.prefix, by);
        }
        let naming = catalog.style.convention.naming;
        let (votes, names) = catalog.style.votes;
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
            published: self
                .variant
                .and_then(Variant::size)
                .is_some_and(|size| self.has_widths_of(size)),
        }
    }

    fn has_widths_of(&self, size: Size) -> bool {
        (size.dim, size.ffn_dim) == (self.dim, self.ffn_dim)
    }

    /// Why it is plainly not `said`: it is of the other kind of transformer, or of a size that is another's. What else
    /// differs are findings.
    pub(crate) fn contradicts(&self, said: Variant) -> Option<String> {
        let Some(naming) = self.naming else {
            return Some(match self.encoder {
                Some(encoder) => format!("the encoder {encoder}"),
                None => "no WAN transformer".to_owned(),
            });
        };
        let is_long_cat = |family| family == Family::LongCat;
        let name = self.variant.map_or("a WAN transformer", Variant::name);
        if is_long_cat(said.family()) != self.is_long_cat {
            return Some(format!("{name} by its {naming} names"));
        }
        let size = said.size()?;
        let sizes = Variant::ALL.iter().filter_map(|variant| variant.size());
        let mut others = sizes.filter(|other| *other != size);
        let has_widths = others.any(|other| self.has_widths_of(other)) && !self.has_widths_of(size);
        let own = self.variant.and_then(Variant::size);
        let has_count = own.is_some_and(|own| own.block_count == self.block_count)
            && self.block_count != size.block_count;
        (has_widths || has_count).then(|| {
            let own = Size {
                block_count: self.block_count,
                dim: self.dim,
                ffn_dim: self.ffn_dim,
            };
            format!("{name} of {own}, where {said} has {size}")
        })
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
            .filter(|channels| is_patch && *channels > 0);
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
        Some(spec.shape().first()? / PATCH_LEN).filter(|channels| *channels > 0)
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

/// What engines need beside the widths.
fn measure_for_engines(catalog: &Catalog<'_>, config: Option<&Config>, detection: &mut Detection) {
    let text = catalog.root_tensor("text_embedding.0.weight");
    detection.text_dim = text.and_then(|text| text.shape().last().copied());
    detection.vae_stride = match detection.out_channels {
        Some(16) => Some([4, 8, 8]),
        Some(48) => Some([4, 16, 16]),
        _ => None,
    };
    let dim = detection.dim;
    if dim == 0 {
        return;
    }
    let fits = |heads: &u64| *heads > 0 && dim.is_multiple_of(*heads);
    let said = config.and_then(|config| Some((config.from, config.num_attention_heads?)));
    let by = match said {
        Some((from, heads)) if fits(&heads) => {
            detection.heads = Some(heads);
            return detection.decide("heads", heads, from);
        }
        Some((from, heads)) => format!("; {heads} of {from} do not fit"),
        None => String::new(),
    };
    let heads = Some(dim / HEAD_DIM).filter(|heads| fits(heads) && dim.is_multiple_of(HEAD_DIM));
    detection.heads = heads;
    match heads {
        Some(heads) => detection.decide("heads", heads, format!("{HEAD_DIM} numbers each{by}")),
        None => {
            let by = format!("width {dim} is no multiple of {HEAD_DIM}{by}");
            detection.decide("heads", "unknown", by);
        }
    }
}

/// Numbers of an attention head.
const HEAD_DIM: u64 = 128;

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

/// Fills in the variant: families by module and channels, sizes by widths and block count, then hints.
///
/// A width below the published one is a checkpoint with scaled widths: the block count tells its size.
fn name_variant(modules: Modules, beside: &Beside, detection: &mut Detection) {
    let families = families(modules, detection);
    let of_families = Variant::ALL.iter().copied().filter(|variant| {
        let of = |entry: &&FamilyEntry| entry.family == variant.family();
        families.iter().any(of)
    });
    let size = nearest(of_families.clone(), beside, detection);
    let mut variants: Vec<Variant> = of_families
        .filter(|variant| size.is_some() && variant.size().map(|size| size.block_count) == size)
        .filter(|variant| variant.size().is_some_and(|size| may_be(size, detection)))
        .collect();
    if variants.is_empty() {
        variants = families
            .iter()
            .map(|entry| Variant::of_family(entry.family))
            .collect();
    }
    let (channels, blocks) = (detection.in_channels, detection.block_count);
    let blocks = match size {
        Some(whole) if whole != blocks => format!("{blocks} of {whole} blocks"),
        _ => format!("{blocks} blocks"),
    };
    let shapes = match channels {
        Some(channels) => format!("{channels} channels in, {blocks}"),
        None => blocks,
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
    detection.exact_size = size.is_some_and(|size| {
        size.block_count == detection.block_count && detection.has_widths_of(size)
    });
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

/// Whether widths allow the size: they are its own, or smaller and no other's.
fn may_be(size: Size, detection: &Detection) -> bool {
    let sizes = Variant::ALL.iter().filter_map(|variant| variant.size());
    let mut published = sizes.filter(|size| detection.has_widths_of(*size));
    match published.next() {
        Some(own) => own.dim == size.dim,
        None => detection.dim <= size.dim,
    }
}

/// The block count of a published size of `variants` that the checkpoint has, or from which blocks are missing at the
/// end: the nearest above. A checkpoint with half of the blocks or fewer, of widths that are none of the size's, or one
/// that its configuration says is whole, is one of a size of its own.
fn nearest(
    variants: impl Iterator<Item = Variant>,
    beside: &Beside,
    detection: &Detection,
) -> Option<u64> {
    let count = detection.block_count;
    let said = beside.said.config.as_ref().and_then(|said| said.num_layers);
    let is_near = |size: &Size| {
        let whole = size.block_count;
        let lacks = match said {
            Some(said) => said == whole && count < whole,
            None => count < whole && whole < count.saturating_mul(2),
        };
        count == whole || lacks && size.scales_to(detection.dim, detection.ffn_dim)
    };
    let sizes = variants.filter_map(Variant::size);
    let near = sizes.filter(|size| may_be(*size, detection) && is_near(size));
    near.map(|size| size.block_count).min()
}

/// How many blocks it should have: as many as the variant, as the configuration or as the numbers say.
///
/// Numbers come from names and configurations and may be absurd: nothing is sized by them.
fn whole(catalog: &Catalog<'_>, modules: Modules, beside: &Beside, detection: &Detection) -> Whole {
    let config = beside.said.config.as_ref();
    let size = detection.variant.and_then(Variant::size);
    let blocks = size.map_or(detection.block_count, |size| size.block_count);
    let said = config.and_then(|config| config.num_layers);
    let said = said.filter(|_| beside.variant.is_none()).unwrap_or(0);
    let blocks = blocks.max(said);
    if modules.marker != Marker::Vace {
        return Whole {
            blocks,
            vace_blocks: 0,
        };
    }
    let published = detection.variant.zip(size);
    let published = published.map(|(variant, size)| variant.vace_count(size.block_count));
    let said = config.and_then(|config| Some(config.vace_layers.as_ref()?.len() as u64));
    let highest = catalog
        .list(List::Vace)
        .last()
        .map_or(0, |(index, _)| index);
    let shown = highest.saturating_add(1).min(detection.block_count);
    let vace_blocks = match (beside.variant, published) {
        (Some(_), Some(published)) => published,
        (_, published) => published
            .max(said)
            .unwrap_or(shown)
            .max(detection.vace_block_count),
    };
    Whole {
        blocks,
        vace_blocks: vace_blocks.max(1),
    }
}

/// After which main blocks those of VACE run: as the configuration says, or as the authors spread them.
fn vace_layers(detection: &mut Detection, modules: Modules, config: Option<&Config>) -> Vec<u64> {
    if modules.marker != Marker::Vace {
        return Vec::new();
    }
    let Whole {
        blocks,
        vace_blocks: count,
    } = detection.whole;
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
