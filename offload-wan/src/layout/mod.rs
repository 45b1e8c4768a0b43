//! Which tensors a model of the family consists of, with their shapes relative to its widths.
//!
//! Each module stands in `modules` once, under its canonical name; [`Layout`] puts modules together for a family. What a
//! checkpoint may have beside, and how findings are worded, is said where the layout is used.

mod expected;
mod modules;

use offload_core::swappable::{Role, TensorSpec};

use crate::names::{Convention, List, Place};
use crate::variant::{FAMILIES, Marker, Modules};

pub(crate) use expected::{Expected, PATCH_LEN, Widths};
pub(crate) use modules::PATCH_EMBEDDING;
use modules::{
    BLOCK, BLOCK_AUDIO, BLOCK_IMAGE, FUSER, INJECTOR, LONG_CAT_BLOCK, MOTION_STAGES, ROOT,
    ROOT_ANIMATE, ROOT_CAMERA, ROOT_FIRST_LAST, ROOT_HUMO, ROOT_IMAGE, ROOT_LONG_CAT, ROOT_MASK,
    ROOT_POSE, ROOT_REFERENCE, ROOT_SOUND, ROOT_VACE, VACE, VACE_FIRST,
};

/// After which main blocks audio injectors run, as far as there are such blocks.
const INJECTED_AFTER: [u64; 12] = [0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39];

/// A fuser block runs after every so many main blocks, beginning with the first.
const FUSED_EVERY: u64 = 5;

/// After which main block the block `index` of another list runs; `None` when it goes with none that is there.
///
/// VACE blocks are `vace_count` and spread as the authors do; a configuration may place them otherwise.
pub(crate) fn runs_after(list: List, index: u64, block_count: u64, vace_count: u64) -> Option<u64> {
    let after = match list {
        List::Main => return None,
        List::Vace => index.checked_mul(block_count.checked_div(vace_count)?.max(1))?,
        List::Injector => *INJECTED_AFTER.get(usize::try_from(index).ok()?)?,
        List::Fuser => index.checked_mul(FUSED_EVERY)?,
    };
    (after < block_count).then_some(after)
}

/// A list of blocks: how many, and the tensors of each.
#[derive(Debug)]
pub(crate) struct ListLayout {
    pub(crate) list: List,
    pub(crate) count: u64,
    every: Vec<&'static [Expected]>,
    first: &'static [Expected],
}

impl ListLayout {
    /// The tensors of block `index`.
    pub(crate) fn tensors(&self, index: u64) -> impl Iterator<Item = &'static Expected> {
        let first = if index == 0 { self.first } else { &[] };
        let every = self.every.iter().copied().flatten();
        // A view of 'static tables: nothing of `self` is borrowed on.
        every.chain(first).collect::<Vec<_>>().into_iter()
    }
}

/// The tensors of a whole model.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) lists: Vec<ListLayout>,
    root: Vec<&'static [Expected]>,
}

impl Layout {
    /// That of a model of these modules, with `block_count` main blocks and `vace_count` of VACE.
    pub(crate) fn new(modules: Modules, block_count: u64, vace_count: u64) -> Self {
        let every = |tables: &[&'static [Expected]]| tables.to_vec();
        let list = |list, count, every| ListLayout {
            list,
            count,
            every,
            first: &[],
        };
        if modules.marker == Marker::LongCat {
            return Self {
                lists: vec![list(List::Main, block_count, every(&[LONG_CAT_BLOCK]))],
                root: vec![ROOT_LONG_CAT],
            };
        }
        let mut main = vec![BLOCK];
        let mut root = vec![ROOT];
        if modules.image {
            main.push(BLOCK_IMAGE);
            root.push(ROOT_IMAGE);
        }
        if modules.reference {
            root.push(ROOT_REFERENCE);
        }
        // By arithmetic: the number may be absurd.
        let injectors = INJECTED_AFTER.iter().filter(|after| **after < block_count);
        let fusers = block_count.div_ceil(FUSED_EVERY);
        let mut more = Vec::new();
        match modules.marker {
            Marker::Plain | Marker::LongCat => {}
            Marker::FirstLast => root.push(ROOT_FIRST_LAST),
            Marker::Vace => {
                root.push(ROOT_VACE);
                more.push(ListLayout {
                    first: VACE_FIRST,
                    ..list(List::Vace, vace_count, every(&[BLOCK, VACE]))
                });
            }
            Marker::Camera => root.push(ROOT_CAMERA),
            Marker::Sound => {
                root.push(ROOT_SOUND);
                let count = injectors.count() as u64;
                more.push(list(List::Injector, count, every(&[INJECTOR])));
            }
            Marker::Humo => {
                main.push(BLOCK_AUDIO);
                root.push(ROOT_HUMO);
            }
            Marker::Animate => {
                root.push(ROOT_ANIMATE);
                root.extend(MOTION_STAGES);
                more.push(list(List::Fuser, fusers, every(&[FUSER])));
            }
            Marker::Scail => root.push(ROOT_POSE),
            Marker::Scail2 => root.extend([ROOT_POSE, ROOT_MASK]),
        }
        let mut lists = vec![list(List::Main, block_count, main)];
        lists.extend(more);
        Self { lists, root }
    }

    /// The list of that kind, if the model has one.
    pub(crate) fn list(&self, list: List) -> Option<&ListLayout> {
        self.lists.iter().find(|layout| layout.list == list)
    }

    /// The tensors outside the blocks.
    pub(crate) fn root(&self) -> impl Iterator<Item = &'static Expected> {
        self.root.clone().into_iter().flatten()
    }

    /// Every tensor as a file of that convention has it, blocks first; `None` if the convention does not know them.
    ///
    /// Parts that the convention stacks are one tensor.
    pub(crate) fn in_file(
        &self,
        convention: &Convention,
        widths: Widths,
    ) -> Option<Vec<FileTensor>> {
        let mut all: Vec<FileTensor> = Vec::new();
        let blocks = self.lists.iter().flat_map(|layout| {
            (0..layout.count).flat_map(move |index| {
                let place = Place::Block(layout.list, index);
                layout.tensors(index).map(move |expected| (place, expected))
            })
        });
        let has_constants = convention.naming == crate::Naming::Native;
        for (place, expected) in blocks.chain(self.root().map(|expected| (Place::Root, expected))) {
            if expected.constant && !has_constants {
                continue;
            }
            let file = convention.file_name(place, expected.name)?;
            let mut shape = expected.shape(widths);
            if file.squeezed {
                shape.retain(|len| *len != 1);
            }
            let (nth, of) = file.part;
            if let Some(first) = shape.first_mut() {
                *first = first.saturating_mul(of as u64);
            }
            if nth == 0 {
                all.push(FileTensor {
                    place,
                    expected,
                    name: file.name,
                    shape,
                });
            }
        }
        Some(all)
    }
}

/// Every tensor that some WAN transformer has, or LongCat-Video: block 0 of each list, and all outside.
pub(crate) fn every_tensor(long_cat: bool) -> Vec<(Place, &'static str)> {
    let markers = FAMILIES.iter().map(|entry| entry.marker);
    let layouts = markers
        .filter(|marker| (*marker == Marker::LongCat) == long_cat)
        .map(|marker| Layout::new(Modules::all(marker), 1, 1));
    let all = layouts.flat_map(|layout| {
        let blocks = layout.lists.iter().flat_map(|list| {
            let place = Place::Block(list.list, 0);
            list.tensors(0).map(move |expected| (place, expected.name))
        });
        let root = layout.root().map(|expected| (Place::Root, expected.name));
        blocks.chain(root).collect::<Vec<_>>()
    });
    all.collect()
}

/// A tensor as a file has it.
#[derive(Debug)]
pub(crate) struct FileTensor {
    pub(crate) place: Place,
    /// The first of the canonical tensors in it.
    pub(crate) expected: &'static Expected,
    pub(crate) name: String,
    pub(crate) shape: Vec<u64>,
}

/// What the tensor called `name` is to the computation, where the name tells: tables and norms stay exact.
pub(crate) fn role_by_name(name: &str) -> Option<Role> {
    let leaf = name.rsplit('.').next().unwrap_or(name);
    let owner = name.strip_suffix(leaf).unwrap_or("").trim_end_matches('.');
    let owner = owner.rsplit('.').next().unwrap_or(owner);
    let is_vector = matches!(
        leaf,
        "bias" | "modulation" | "padding_tokens" | "weights" | "kernel"
    ) || crate::names::ATTACHED.contains(&leaf)
        || owner.starts_with("norm")
        || owner.ends_with("norm")
        || owner == "trainable_cond_mask";
    is_vector.then_some(Role::Vector)
}

/// Rows `nth * len / of` to `(nth + 1) * len / of` of a tensor; `None` when its rows or bytes do not come apart so.
pub(crate) fn rows(spec: &TensorSpec, nth: usize, of: usize) -> Option<TensorSpec> {
    let (nth, of) = (nth as u64, of as u64);
    let (first, rest) = spec.shape().split_first()?;
    let len = spec.source().len();
    if !first.is_multiple_of(of) || !len.is_multiple_of(of) {
        return None;
    }
    let part = len / of;
    let shape: Vec<u64> = [first / of]
        .into_iter()
        .chain(rest.iter().copied())
        .collect();
    let source = spec.source().slice(nth * part..(nth + 1) * part);
    let rows = TensorSpec::new(spec.name(), shape, spec.encoding(), source).ok()?;
    Some(rows.with_role(spec.role()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use offload_core::encoding::Encoding;

    use super::*;

    #[test]
    fn tables_norms_and_biases_are_vectors() {
        for name in [
            "modulation",
            "ffn.0.bias",
            "norm3.weight",
            "self_attn.norm_q.weight",
            "cross_attn.norm_k_img.weight",
            "attn.q_norm.weight",
            "ffn.0.weight_scale",
        ] {
            assert_eq!(role_by_name(name), Some(Role::Vector), "{name}");
        }
        for name in ["ffn.0.weight", "self_attn.q.weight", "weight", "emb_pos"] {
            assert_eq!(role_by_name(name), None, "{name}");
        }
    }

    #[test]
    fn rows_come_apart_where_quant_blocks_allow() {
        let bytes: Vec<u8> = (0..6 * 34).map(|byte| byte as u8).collect();
        let spec = TensorSpec::new("qkv", [6, 32], Encoding::Q8_0, Bytes::from(bytes)).unwrap();
        let part = rows(&spec, 2, 3).unwrap();
        assert_eq!(part.shape(), [2, 32]);
        let mut read = [0; 68];
        part.source().read(0, &mut read).unwrap();
        assert_eq!((read[0], read[67]), (136, 203));
        assert!(rows(&spec, 0, 4).is_none());
    }

    #[test]
    fn every_other_block_runs_after_a_main_one() {
        let after = |list, count, vace| {
            (0..)
                .map_while(move |index| runs_after(list, index, count, vace))
                .collect::<Vec<_>>()
        };
        assert_eq!(after(List::Vace, 40, 8), [0, 5, 10, 15, 20, 25, 30, 35]);
        assert_eq!(after(List::Vace, 30, 15)[..4], [0, 2, 4, 6]);
        assert_eq!(after(List::Injector, 40, 0), INJECTED_AFTER);
        assert_eq!(after(List::Injector, 6, 0), [0, 4]);
        assert_eq!(after(List::Fuser, 40, 0).len(), 8);
        assert_eq!(after(List::Main, 40, 0), [0; 0]);
    }
}
