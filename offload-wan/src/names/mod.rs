//! Tensor names: what stands before them, which convention they follow, and which tensor of the model they are.
//!
//! Everything after this module sees *canonical* names. For WAN they are the authors' own, for LongCat-Video those of
//! the repacked checkpoints, which call the same things the same. Where one convention stacks several matrices in one
//! tensor and another keeps them apart, the canonical names are those apart: `qkv` is `q`, `k` and `v`, each a third
//! of the rows.
//!
//! Names are matched whole, part by part from their start, never by a substring: `blocks.` also occurs in `vace_blocks.`
//! and `fuser_blocks.`, `modulation` both in a block and in the head, `proj_out` and `scale_shift_table` too, and the two
//! conventions swap `norm2` and `norm3`.

mod conventions;

use std::fmt;

use serde::{Deserialize, Serialize};

pub(crate) use conventions::Convention;
use conventions::{
    LONG_CAT_NATIVE, LONG_CAT_REPACKED, Row, WAN_DIFFUSERS, WAN_NATIVE, WAN_WRAPPED,
};

/// The convention that tensor names follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Naming {
    /// The authors' own: `blocks.0.self_attn.q.weight`; of LongCat-Video `blocks.0.attn.qkv.weight`.
    Native,
    /// That of diffusers: `blocks.0.attn1.to_q.weight`.
    Diffusers,
    /// LongCat-Video with WAN's names: `blocks.0.self_attn.q.weight`.
    Repacked,
}

impl Naming {
    /// Every convention.
    pub const ALL: &'static [Naming] = &[Self::Native, Self::Diffusers, Self::Repacked];

    /// Its name in tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Diffusers => "diffusers",
            Self::Repacked => "repacked",
        }
    }

    /// Looks up a name such as `diffusers`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|naming| naming.name() == name)
    }
}

impl fmt::Display for Naming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A numbered list of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum List {
    /// The transformer blocks.
    Main,
    /// Blocks of VACE, in the order of the main blocks that they belong to.
    Vace,
    /// Audio injectors of sound to video.
    Injector,
    /// Fuser blocks of Animate.
    Fuser,
}

impl List {
    /// What its blocks are called, before their number.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Main => "blocks",
            Self::Vace => "vace_blocks",
            Self::Injector => "audio_injector",
            Self::Fuser => "fuser_blocks",
        }
    }
}

/// Where in a model a tensor belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Place {
    /// In a block of a list. Numbers that do not fit are the largest.
    Block(List, u64),
    /// In no block.
    Root,
}

impl fmt::Display for Place {
    /// What stands before the canonical name, such as `blocks.7.`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(list, index) => write!(f, "{}.{index}.", list.name()),
            Self::Root => Ok(()),
        }
    }
}

/// What a name in a file stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meaning {
    pub(crate) place: Place,
    /// Canonical names within the place; several for matrices stacked along the first axis, from its start.
    pub(crate) names: Vec<String>,
    /// Whether the name means something in its convention; if not, `names` is the name itself.
    pub(crate) known: bool,
}

/// What a canonical tensor is called in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileName {
    pub(crate) name: String,
    /// It is this one of so many parts along the first axis.
    pub(crate) part: (usize, usize),
    /// Without axes of length 1.
    pub(crate) squeezed: bool,
}

impl Convention {
    /// What `name`, without a prefix, stands for.
    pub(crate) fn meaning(&self, name: &str) -> Meaning {
        for numbered in self.lists {
            let Some((index, rest)) = name.strip_prefix(numbered.file).and_then(split_number)
            else {
                continue;
            };
            let place = Place::Block(numbered.list, index);
            let wrapped = rest.strip_prefix(self.wrapper_in(numbered.list));
            let names = wrapped.and_then(|rest| self.translated(&[numbered.rows], rest));
            return match names {
                Some(names) => Meaning {
                    place,
                    names: names
                        .map(|name| format!("{}{name}", numbered.inner))
                        .collect(),
                    known: true,
                },
                None => Meaning {
                    place,
                    names: vec![rest.to_owned()],
                    known: false,
                },
            };
        }
        let names = self.translated(self.root, name);
        Meaning {
            place: Place::Root,
            known: names.is_some(),
            names: names.map_or_else(|| vec![name.to_owned()], Iterator::collect),
        }
    }

    /// What stands before the number of the block that `name` is in, and what comes after it; the name itself if it is in
    /// none.
    pub(crate) fn numbered<'a>(&self, name: &'a str) -> (Option<&'static str>, &'a str) {
        let found = self.lists.iter().find_map(|numbered| {
            let (_, rest) = name.strip_prefix(numbered.file).and_then(split_number)?;
            Some((Some(numbered.file), rest))
        });
        found.unwrap_or((None, name))
    }

    /// Canonical names of the tensor `rest` of a place; `None` if it means nothing.
    fn translated<'a>(
        &self,
        rows: &[&'static [Row]],
        rest: &'a str,
    ) -> Option<impl Iterator<Item = String> + use<'a>> {
        let rows = || rows.iter().copied().flatten();
        let found = rows().find_map(|row| Some((row.canonical, leaf(rest, row.file)?)));
        // A tensor that a row gives another name to has none of its own.
        let taken = |row: &Row| row.canonical.iter().any(|name| leaf(rest, name).is_some());
        let (stems, tail): (&'static [&'static str], &str) = match found {
            Some((stems, tail)) => (stems, tail),
            None if self.open && !rows().any(taken) => (&[""], rest),
            None => return None,
        };
        let tail = canonical_leaf(tail);
        Some(stems.iter().map(move |stem| format!("{stem}{tail}")))
    }

    /// What tensor `name` of `place` is called here; `None` if the convention has no such tensor.
    pub(crate) fn file_name(&self, place: Place, name: &str) -> Option<FileName> {
        let in_block;
        let (owner, rows, rest) = match place {
            Place::Root => (String::new(), self.root, name),
            Place::Block(list, index) => {
                // The one with the longest inner name: the others are its start.
                let numbered = (self.lists.iter())
                    .filter(|numbered| numbered.list == list && name.starts_with(numbered.inner))
                    .max_by_key(|numbered| numbered.inner.len())?;
                let rest = name.strip_prefix(numbered.inner)?;
                in_block = [numbered.rows];
                let wrapper = self.wrapper_in(list);
                let owner = format!("{}{index}.{wrapper}", numbered.file);
                (owner, &in_block[..], rest)
            }
        };
        let found = rows.iter().copied().flatten().find_map(|row| {
            let mut stems = row.canonical.iter().enumerate();
            let (nth, tail) = stems.find_map(|(nth, stem)| Some((nth, leaf(rest, stem)?)))?;
            Some((row, nth, tail))
        });
        match found {
            Some((row, nth, tail)) => Some(FileName {
                name: format!("{owner}{}{tail}", row.file),
                part: (nth, row.canonical.len()),
                squeezed: row.squeezed,
            }),
            None if self.open => Some(FileName {
                name: format!("{owner}{rest}"),
                part: (0, 1),
                squeezed: false,
            }),
            None => None,
        }
    }
}

/// What follows `stem` in `name`: nothing, or one part with its dot.
fn leaf<'a>(name: &'a str, stem: &str) -> Option<&'a str> {
    let tail = name.strip_prefix(stem)?;
    let is_leaf = tail.is_empty()
        || tail
            .strip_prefix('.')
            .is_some_and(|leaf| !leaf.is_empty() && !leaf.contains('.'));
    is_leaf.then_some(tail)
}

/// The number and what follows it: `7.norm3.bias` is 7 and `norm3.bias`.
///
/// Numbers with a leading zero are none: two names would stand for one tensor.
fn split_number(rest: &str) -> Option<(u64, &str)> {
    let (number, rest) = rest.split_once('.')?;
    let is_number = !number.is_empty()
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && (number == "0" || !number.starts_with('0'));
    (is_number && !rest.is_empty()).then(|| (number.parse().unwrap_or(u64::MAX), rest))
}

/// The list and the number of the block that a name of whatever model is in: letters and underscores that end in
/// `blocks`, from the name's start.
pub(crate) fn numbered_blocks(name: &str) -> Option<(&str, u64)> {
    let (list, rest) = name.split_once('.')?;
    let is_list = list.ends_with("blocks")
        && list
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let (index, _) = split_number(rest).filter(|_| is_list)?;
    Some((list, index))
}

/// What belongs to a weight that is stored as small numbers and scales, by its canonical name.
pub(crate) const ATTACHED: [&str; 4] = [
    "weight_scale",
    "weight_scale_2",
    "input_scale",
    "comfy_quant",
];

/// The tensor of the whole model that says that weights have scales.
pub(crate) const SCALED_FLAG: &str = "scaled_fp8";

/// Gives one name to what tools call differently.
pub(crate) fn canonical_leaf(tail: &str) -> String {
    let (owner, leaf) = tail
        .rsplit_once('.')
        .map_or(("", tail), |(owner, leaf)| (owner, leaf));
    let leaf = match leaf {
        "scale_weight" => "weight_scale",
        "scale_input" => "input_scale",
        "weight_int8" => "weight",
        _ => return tail.to_owned(),
    };
    if tail.contains('.') {
        format!("{owner}.{leaf}")
    } else {
        leaf.to_owned()
    }
}

/// The weight that `name` belongs to, if it is a scale or the like.
pub(crate) fn attached_to(name: &str) -> Option<String> {
    let (owner, leaf) = name.rsplit_once('.')?;
    ATTACHED.contains(&leaf).then(|| format!("{owner}.weight"))
}

/// Whether a tensor called so is there because of how weights are stored: its name in a block.
pub(crate) fn tells_encoding(name: &str) -> bool {
    let leaf = name.rsplit('.').next().unwrap_or(name);
    name == SCALED_FLAG || ATTACHED.contains(&leaf)
}

/// What tools put before the names, most specific first among those that share a start.
pub(crate) const PREFIXES: [&str; 7] = [
    "",
    "model.diffusion_model.",
    "model.model.",
    "diffusion_model.",
    "net.",
    "model.",
    "weights.",
];

/// First components that say a name is one of a video transformer.
const KNOWN_ROOTS: [&str; 32] = [
    "blocks",
    "vace_blocks",
    "patch_embedding",
    "vace_patch_embedding",
    "pose_patch_embedding",
    "patch_embedding_pose",
    "patch_embedding_mask",
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
    "y_embedder",
    "final_layer",
    "face_adapter",
    "face_encoder",
    "motion_encoder",
    "audio_proj",
    "audio_injector",
    "casual_audio_encoder",
    "cond_encoder",
    "frame_packer",
    "trainable_cond_mask",
    SCALED_FLAG,
    "fuser_blocks",
];

/// `name` without the prefix; a name without it counts if it is one of a video transformer.
pub(crate) fn without_prefix<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    match name.strip_prefix(prefix) {
        Some(stripped) => Some(stripped),
        None => is_known(name).then_some(name),
    }
}

fn is_known(name: &str) -> bool {
    let root = name.split('.').next().unwrap_or(name);
    KNOWN_ROOTS.contains(&root)
}

/// The prefix under which most names are those of a video transformer, and how many; the shortest wins a tie.
pub(crate) fn common_prefix<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
) -> (&'static str, usize) {
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
    (best.1, best.0)
}

/// The authors' own convention.
pub(crate) fn native(long_cat: bool) -> &'static Convention {
    if long_cat {
        &LONG_CAT_NATIVE
    } else {
        &WAN_NATIVE
    }
}

/// The convention called `naming`, if checkpoints of that kind of model follow it.
pub(crate) fn of_naming(naming: Naming, long_cat: bool) -> Option<&'static Convention> {
    match (naming, long_cat) {
        (Naming::Native, _) => Some(native(long_cat)),
        (Naming::Diffusers, false) => Some(&WAN_DIFFUSERS),
        (Naming::Repacked, true) => Some(&LONG_CAT_REPACKED),
        (Naming::Diffusers, true) | (Naming::Repacked, false) => None,
    }
}

/// Every convention, in the order in which they are asked.
pub(crate) const CONVENTIONS: [&Convention; 5] = [
    &WAN_NATIVE,
    &WAN_WRAPPED,
    &WAN_DIFFUSERS,
    &LONG_CAT_NATIVE,
    &LONG_CAT_REPACKED,
];

#[cfg(test)]
mod pinned;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [&Convention; 5] = CONVENTIONS;

    fn block(list: List, index: u64) -> Place {
        Place::Block(list, index)
    }

    #[track_caller]
    fn means(convention: &Convention, name: &str, place: Place, names: &[&str]) {
        let meaning = convention.meaning(name);
        assert!(meaning.known, "{name}");
        assert_eq!(
            (meaning.place, &meaning.names[..]),
            (place, &names.map_owned()[..])
        );
        for (nth, canonical) in names.iter().enumerate() {
            let back = convention.file_name(place, canonical).expect("is known");
            assert_eq!(back.part, (nth, names.len()));
            assert_eq!(back.name, name);
        }
    }

    trait MapOwned {
        fn map_owned(&self) -> Vec<String>;
    }

    impl MapOwned for [&str] {
        fn map_owned(&self) -> Vec<String> {
            self.iter().map(|name| (*name).to_owned()).collect()
        }
    }

    #[test]
    fn a_name_is_matched_from_its_start_and_whole() {
        let main = block(List::Main, 12);
        means(&WAN_NATIVE, "blocks.12.norm3.bias", main, &["norm3.bias"]);
        means(&WAN_NATIVE, "blocks.12.modulation", main, &["modulation"]);
        means(
            &WAN_NATIVE,
            "head.modulation",
            Place::Root,
            &["head.modulation"],
        );
        means(
            &WAN_NATIVE,
            "vace_blocks.0.after_proj.bias",
            block(List::Vace, 0),
            &["after_proj.bias"],
        );
        for root in [
            "control_adapter.residual_blocks.0.conv1.weight",
            "face_adapter.blocks.0.x.weight",
            "blocks.x.weight",
            "blocks.01.norm3.weight",
            "blocks..norm3.weight",
            "blocks.1.",
            "blocks.1",
            "blocks",
            "",
        ] {
            assert_eq!(WAN_NATIVE.meaning(root).place, Place::Root, "{root}");
        }
    }

    #[test]
    fn the_traps_of_diffusers_names_are_told_apart() {
        let diffusers = &WAN_DIFFUSERS;
        let main = block(List::Main, 3);
        means(
            diffusers,
            "scale_shift_table",
            Place::Root,
            &["head.modulation"],
        );
        means(
            diffusers,
            "blocks.3.scale_shift_table",
            main,
            &["modulation"],
        );
        means(
            diffusers,
            "proj_out.weight",
            Place::Root,
            &["head.head.weight"],
        );
        means(
            diffusers,
            "vace_blocks.3.proj_out.weight",
            block(List::Vace, 3),
            &["after_proj.weight"],
        );
        means(diffusers, "blocks.3.norm2.weight", main, &["norm3.weight"]);
        means(
            diffusers,
            "blocks.3.attn1.to_out.0.bias",
            main,
            &["self_attn.o.bias"],
        );
        means(
            diffusers,
            "motion_encoder.res_blocks.0.conv2.act_fn.bias",
            Place::Root,
            &["motion_encoder.enc.net_app.convs.1.conv2.2.bias"],
        );
        means(
            diffusers,
            "motion_encoder.res_blocks.0.conv2.weight",
            Place::Root,
            &["motion_encoder.enc.net_app.convs.1.conv2.1.weight"],
        );
        // A native name means nothing here, even where the two conventions use one word for two things.
        for name in [
            "blocks.3.norm3.weight",
            "blocks.3.attn2.norm_added_q.weight",
            "blocks.3.attn1.to_query.weight",
            "head.modulation",
            "motion_encoder.res_blocks.7.conv1.weight",
        ] {
            assert!(!diffusers.meaning(name).known, "{name}");
        }
    }

    #[test]
    fn stacked_matrices_are_taken_apart() {
        let main = block(List::Main, 0);
        means(
            &LONG_CAT_NATIVE,
            "blocks.0.attn.qkv.bias",
            main,
            &["self_attn.q.bias", "self_attn.k.bias", "self_attn.v.bias"],
        );
        means(
            &LONG_CAT_NATIVE,
            "blocks.0.cross_attn.kv_linear.weight",
            main,
            &["cross_attn.k.weight", "cross_attn.v.weight"],
        );
        means(
            &WAN_NATIVE,
            "face_adapter.fuser_blocks.7.linear1_kv.weight",
            block(List::Fuser, 7),
            &["linear1_k.weight", "linear1_v.weight"],
        );
        means(
            &WAN_NATIVE,
            "audio_injector.injector_adain_layers.11.linear.weight",
            block(List::Injector, 11),
            &["adain.linear.weight"],
        );
        means(
            &WAN_NATIVE,
            "audio_injector.injector.11.q.weight",
            block(List::Injector, 11),
            &["q.weight"],
        );
        // Apart it has no name of its own where it is stacked.
        let apart = "face_adapter.fuser_blocks.7.linear1_k.weight";
        assert!(!WAN_NATIVE.meaning(apart).known);
    }

    #[test]
    fn scales_follow_their_weights_under_one_name() {
        let names = |name| WAN_NATIVE.meaning(name).names;
        assert_eq!(names("blocks.0.ffn.0.scale_weight"), ["ffn.0.weight_scale"]);
        assert_eq!(names("blocks.0.ffn.0.weight_scale"), ["ffn.0.weight_scale"]);
        assert_eq!(names("blocks.0.ffn.0.scale_input"), ["ffn.0.input_scale"]);
        assert_eq!(
            LONG_CAT_NATIVE
                .meaning("blocks.0.attn.qkv.weight_int8")
                .names,
            [
                "self_attn.q.weight",
                "self_attn.k.weight",
                "self_attn.v.weight"
            ]
        );
        assert_eq!(
            attached_to("ffn.0.weight_scale").as_deref(),
            Some("ffn.0.weight")
        );
        assert_eq!(attached_to("ffn.0.weight"), None);
        assert_eq!(attached_to("scaled_fp8"), None);
    }

    #[test]
    fn a_block_number_that_fits_nothing_is_the_largest() {
        let name = "blocks.99999999999999999999999.modulation";
        for convention in ALL {
            assert_eq!(convention.meaning(name).place, block(List::Main, u64::MAX));
        }
    }

    #[test]
    fn a_name_without_the_prefix_counts_if_it_is_a_known_one() {
        let prefix = "model.diffusion_model.";
        let name = "patch_embedding.weight";
        assert_eq!(without_prefix(name, prefix), Some(name));
        assert_eq!(
            without_prefix("first_stage_model.conv1.weight", prefix),
            None
        );
    }

    #[test]
    fn every_prefix_is_found() {
        for prefix in PREFIXES {
            let names: Vec<String> = ["blocks.0.modulation", "head.modulation"]
                .iter()
                .map(|name| format!("{prefix}{name}"))
                .collect();
            let found = common_prefix(names.iter().map(String::as_str));
            assert_eq!(found, (prefix, 2));
        }
        assert_eq!(common_prefix(["blk.0.attn_q.weight"].into_iter()), ("", 0));
    }
}
