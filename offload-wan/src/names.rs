//! Tensor names: what stands before them, which convention they follow, and to which block they belong.
//!
//! Everything after this module sees native names without a prefix. Names are matched from their start and whole, never
//! by a part: `blocks.` also occurs in `vace_blocks.`, and `modulation` both in a block and in the head.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The convention that tensor names follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Naming {
    /// The authors' own: `blocks.0.self_attn.q.weight`.
    Native,
    /// That of diffusers: `blocks.0.attn1.to_q.weight`.
    Diffusers,
}

impl Naming {
    /// Its name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Diffusers => "diffusers",
        }
    }
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What tools put before the names, most specific first among those that share a start.
const PREFIXES: [&str; 7] = [
    "",
    "model.diffusion_model.",
    "model.model.",
    "diffusion_model.",
    "net.",
    "model.",
    "weights.",
];

/// First components that say a name is one of a video transformer.
const KNOWN_ROOTS: [&str; 17] = [
    "blocks",
    "vace_blocks",
    "patch_embedding",
    "vace_patch_embedding",
    "text_embedding",
    "time_embedding",
    "time_projection",
    "img_emb",
    "head",
    "ref_conv",
    "control_adapter",
    "condition_embedder",
    "proj_out",
    "scale_shift_table",
    "x_embedder",
    "t_embedder",
    "final_layer",
];

/// Native and diffusers name of each tensor of a block, without `.weight` and `.bias`.
const BLOCK_NAMES: &[(&str, &str)] = &[
    ("self_attn.q", "attn1.to_q"),
    ("self_attn.k", "attn1.to_k"),
    ("self_attn.v", "attn1.to_v"),
    ("self_attn.o", "attn1.to_out.0"),
    ("self_attn.norm_q", "attn1.norm_q"),
    ("self_attn.norm_k", "attn1.norm_k"),
    ("cross_attn.q", "attn2.to_q"),
    ("cross_attn.k", "attn2.to_k"),
    ("cross_attn.v", "attn2.to_v"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("cross_attn.norm_q", "attn2.norm_q"),
    ("cross_attn.norm_k", "attn2.norm_k"),
    ("cross_attn.k_img", "attn2.add_k_proj"),
    ("cross_attn.v_img", "attn2.add_v_proj"),
    ("cross_attn.norm_k_img", "attn2.norm_added_k"),
    // The two conventions swap the numbers of the norms.
    ("norm3", "norm2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("modulation", "scale_shift_table"),
];

/// The same for tensors outside the blocks.
const ROOT_NAMES: &[(&str, &str)] = &[
    (
        "text_embedding.0",
        "condition_embedder.text_embedder.linear_1",
    ),
    (
        "text_embedding.2",
        "condition_embedder.text_embedder.linear_2",
    ),
    (
        "time_embedding.0",
        "condition_embedder.time_embedder.linear_1",
    ),
    (
        "time_embedding.2",
        "condition_embedder.time_embedder.linear_2",
    ),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    (
        "img_emb.proj.1",
        "condition_embedder.image_embedder.ff.net.0.proj",
    ),
    (
        "img_emb.proj.3",
        "condition_embedder.image_embedder.ff.net.2",
    ),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    (
        "img_emb.emb_pos",
        "condition_embedder.image_embedder.pos_embed",
    ),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
];

/// Where in a model a tensor belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// In block `index` of the list called `list`, such as `blocks` or `vace_blocks`.
    Block {
        /// The list's name.
        list: &'a str,
        /// The block's number; `u64::MAX` also stands for numbers that do not fit.
        index: u64,
        /// The tensor's name within the block.
        rest: &'a str,
    },
    /// In no block; the name without the prefix.
    Root(&'a str),
    /// Not in this model: the name lacks the prefix that the model's names carry.
    Outside,
}

/// Takes `name` apart: `blocks.7.norm3.bias` is `norm3.bias` of block 7 of `blocks`.
///
/// A list is letters and underscores that end in `blocks`. Numbers with a leading zero are no block numbers: two names
/// would stand for one tensor.
pub(crate) fn part<'a>(name: &'a str, prefix: &str) -> Part<'a> {
    let stripped = match name.strip_prefix(prefix) {
        Some(stripped) => stripped,
        None if is_known(name) => name,
        None => return Part::Outside,
    };
    split_block(stripped).unwrap_or(Part::Root(stripped))
}

fn split_block(name: &str) -> Option<Part<'_>> {
    let (list, rest) = name.split_once('.')?;
    let (number, rest) = rest.split_once('.')?;
    let is_list = list.ends_with("blocks")
        && list
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let is_number = !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && (number == "0" || !number.starts_with('0'));
    if !is_list || !is_number || rest.is_empty() {
        return None;
    }
    Some(Part::Block {
        list,
        index: number.parse().unwrap_or(u64::MAX),
        rest,
    })
}

fn is_known(name: &str) -> bool {
    let root = name.split('.').next().unwrap_or(name);
    KNOWN_ROOTS.contains(&root)
}

/// The prefix under which most names are those of a video transformer; the shortest wins a tie.
pub(crate) fn common_prefix<'a>(names: impl Iterator<Item = &'a str> + Clone) -> &'static str {
    let hits = |prefix: &str| {
        names
            .clone()
            .filter_map(|name| name.strip_prefix(prefix))
            .filter(|name| is_known(name))
            .count()
    };
    let mut best = (0, "");
    for prefix in PREFIXES {
        let count = hits(prefix);
        if count > best.0 {
            best = (count, prefix);
        }
    }
    best.1
}

/// The native name of a tensor within a block.
pub(crate) fn native_in_block(rest: &str, naming: Naming) -> Cow<'_, str> {
    native(rest, naming, BLOCK_NAMES)
}

/// The native name of a tensor outside the blocks.
pub(crate) fn native_in_root(name: &str, naming: Naming) -> Cow<'_, str> {
    native(name, naming, ROOT_NAMES)
}

fn native<'a>(name: &'a str, naming: Naming, table: &[(&str, &str)]) -> Cow<'a, str> {
    if naming == Naming::Native {
        return Cow::Borrowed(name);
    }
    for (native, diffusers) in table {
        match name.strip_prefix(diffusers) {
            Some("") => return Cow::Owned((*native).to_owned()),
            Some(leaf @ (".weight" | ".bias")) => return Cow::Owned(format!("{native}{leaf}")),
            _ => {}
        }
    }
    Cow::Borrowed(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_at_its_start_only() {
        assert_eq!(
            part("blocks.12.self_attn.q.weight", ""),
            Part::Block {
                list: "blocks",
                index: 12,
                rest: "self_attn.q.weight"
            }
        );
        assert_eq!(
            part("vace_blocks.0.after_proj.bias", ""),
            Part::Block {
                list: "vace_blocks",
                index: 0,
                rest: "after_proj.bias"
            }
        );
        for root in [
            "control_adapter.residual_blocks.0.conv1.weight",
            "blocks.x.weight",
            "blocks.01.norm3.weight",
            "blocks..norm3.weight",
            "blocks.1.",
            "blocks.1",
            "blocks",
            "",
        ] {
            assert_eq!(part(root, ""), Part::Root(root));
        }
    }

    #[test]
    fn a_block_number_that_fits_nothing_is_the_largest() {
        let Part::Block { index, .. } = part("blocks.99999999999999999999999.modulation", "")
        else {
            panic!("is a block name");
        };
        assert_eq!(index, u64::MAX);
    }

    #[test]
    fn a_name_without_the_prefix_counts_if_it_is_a_known_one() {
        let prefix = "model.diffusion_model.";
        assert_eq!(
            part("patch_embedding.weight", prefix),
            Part::Root("patch_embedding.weight")
        );
        assert_eq!(
            part("first_stage_model.conv1.weight", prefix),
            Part::Outside
        );
    }

    #[test]
    fn every_prefix_is_found() {
        for prefix in PREFIXES {
            let names: Vec<String> = ["blocks.0.modulation", "head.modulation"]
                .iter()
                .map(|name| format!("{prefix}{name}"))
                .collect();
            assert_eq!(common_prefix(names.iter().map(String::as_str)), prefix);
        }
        assert_eq!(common_prefix(["blk.0.attn_q.weight"].into_iter()), "");
    }

    #[test]
    fn diffusers_names_become_native_ones() {
        let block = |name| native_in_block(name, Naming::Diffusers);
        assert_eq!(block("attn1.to_out.0.bias"), "self_attn.o.bias");
        assert_eq!(block("norm2.weight"), "norm3.weight");
        assert_eq!(block("scale_shift_table"), "modulation");
        assert_eq!(block("attn2.to_query.weight"), "attn2.to_query.weight");
        let root = |name| native_in_root(name, Naming::Diffusers);
        assert_eq!(root("scale_shift_table"), "head.modulation");
        assert_eq!(root("proj_out.weight"), "head.head.weight");
        assert_eq!(root("patch_embedding.weight"), "patch_embedding.weight");
    }
}
