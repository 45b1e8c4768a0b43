//! Which member of the WAN family a checkpoint is, as far as names and shapes tell.
//!
//! Two experts of a pair, 480P and 720P, or a fine-tune of the same layout differ in nothing but their numbers: where
//! several variants fit, all of them are named.

use offload_core::swappable::TensorSpec;
use serde::Serialize;

use crate::catalog::Catalog;
use crate::names::Naming;
use crate::variant::{FAMILIES, FamilyEntry, Marker, Variant};

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

/// What a checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Detection {
    /// The variant; where tensors cannot tell several apart, the oldest. A family, such as `wan2.1-t2v`, when block
    /// count and width are those of no published size. `None` when the tensors are not of the WAN family, or of no
    /// member that is known.
    pub variant: Option<Variant>,
    /// The others that the tensors may be as well.
    pub alternatives: Vec<Variant>,
    /// The convention of the names; `None` when they are not of the WAN family.
    pub naming: Option<Naming>,
    /// What stands before every name, such as `model.diffusion_model.`.
    pub prefix: &'static str,
    /// Transformer blocks in the main list.
    pub block_count: u64,
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
}

/// A tensor that only one family has. The order decides: Animate and SCAIL also have what image to video has.
const MARKERS: &[(&str, Marker)] = &[
    ("vace_patch_embedding.weight", Marker::Vace),
    ("control_adapter.conv.weight", Marker::Camera),
    (
        "casual_audio_encoder.encoder.final_linear.weight",
        Marker::Sound,
    ),
    ("audio_proj.audio_proj_glob_1.layer.bias", Marker::Humo),
    ("face_adapter.fuser_blocks.0.k_norm.weight", Marker::Animate),
    ("face_adapter.0.norm_k.weight", Marker::Animate),
    ("patch_embedding_mask.weight", Marker::Scail2),
    ("patch_embedding_pose.weight", Marker::Scail),
    ("img_emb.emb_pos", Marker::FirstLast),
];

/// Output channels and patch positions: the patch is 1 by 2 by 2.
const PATCH_LEN: u64 = 4;

pub(crate) fn detect(catalog: &Catalog<'_>) -> Detection {
    let is_long_cat = catalog.root("x_embedder.proj.weight").is_some()
        && catalog.first_block("adaLN_modulation.1.weight").is_some();
    let is_wan = catalog.root("head.modulation").is_some()
        || (catalog.first_block("cross_attn.norm_k.weight").is_some()
            && catalog.first_block("modulation").is_some());
    let block_count = catalog.blocks().map_or(0, |blocks| blocks.len() as u64);
    let mut detection = Detection {
        variant: None,
        alternatives: Vec::new(),
        naming: (is_wan || is_long_cat).then_some(catalog.naming),
        prefix: catalog.prefix,
        block_count,
        dim: 0,
        ffn_dim: 0,
        in_channels: None,
        out_channels: None,
        image: false,
        patch_embedding: PatchEmbedding::Missing,
        exact_size: false,
    };
    if is_wan {
        measure_wan(catalog, &mut detection);
        let marker = MARKERS
            .iter()
            .find(|(name, _)| catalog.root(name).is_some())
            .map_or(Marker::Plain, |&(_, marker)| marker);
        name_variant(marker, &mut detection);
    } else if is_long_cat {
        let embedder = catalog.root("x_embedder.proj.weight");
        detection.dim = first(embedder);
        detection.ffn_dim = first(catalog.first_block("ffn.w1.weight"));
        measure_patch(embedder, &mut detection);
        detection.out_channels = out_channels(catalog.root("final_layer.linear.weight"));
        name_variant(Marker::LongCat, &mut detection);
    }
    detection
}

fn measure_wan(catalog: &Catalog<'_>, detection: &mut Detection) {
    let modulation = catalog
        .root("head.modulation")
        .or_else(|| catalog.first_block("modulation"));
    detection.dim = modulation
        .and_then(|spec| spec.shape().last().copied())
        .unwrap_or(0);
    detection.ffn_dim = first(catalog.first_block("ffn.0.weight"));
    measure_patch(catalog.root("patch_embedding.weight"), detection);
    detection.out_channels = out_channels(catalog.root("head.head.weight"));
    detection.image = catalog.root("img_emb.proj.0.bias").is_some()
        || catalog.first_block("cross_attn.k_img.weight").is_some();
}

fn measure_patch(weight: Option<&TensorSpec>, detection: &mut Detection) {
    let Some(weight) = weight else { return };
    detection.patch_embedding = if weight.shape().len() == 5 {
        PatchEmbedding::Whole
    } else {
        PatchEmbedding::Merged
    };
    // Folding keeps the product, whichever axes a tool folds.
    let per_channel = detection.dim.saturating_mul(PATCH_LEN);
    detection.in_channels = weight
        .element_count()
        .checked_div(per_channel)
        .filter(|channels| channels.saturating_mul(per_channel) == weight.element_count());
}

fn out_channels(head: Option<&TensorSpec>) -> Option<u64> {
    head.map(|spec| first(Some(spec)) / PATCH_LEN)
}

fn first(spec: Option<&TensorSpec>) -> u64 {
    spec.and_then(|spec| spec.shape().first().copied())
        .unwrap_or(0)
}

/// Fills in the variant: families by module and channels, then sizes by block count and width.
///
/// A width below the published one is a checkpoint with scaled widths: the block count tells its size.
fn name_variant(marker: Marker, detection: &mut Detection) {
    let same = |known: u64, found: Option<u64>| found.is_none_or(|found| found == known);
    let of_marker = FAMILIES.iter().filter(|entry| entry.marker == marker);
    let mut families: Vec<&FamilyEntry> = of_marker
        .clone()
        .filter(|entry| {
            entry.image.is_none_or(|image| image == detection.image)
                && same(entry.in_channels, detection.in_channels)
                && same(entry.out_channels, detection.out_channels)
        })
        .collect();
    if families.is_empty() && marker != Marker::Plain {
        families = of_marker.collect();
    }
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
    detection.exact_size = variants
        .first()
        .and_then(|variant| variant.size())
        .is_some_and(|size| size.dim == detection.dim && size.ffn_dim == detection.ffn_dim);
    let mut variants = variants.into_iter();
    detection.variant = variants.next();
    detection.alternatives = variants.collect();
}
