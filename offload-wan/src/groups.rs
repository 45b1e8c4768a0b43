//! Turns a checkpoint's tensors into blocks, after checking that each block is whole.
//!
//! A checkpoint that lacks a tensor is found out here, before anything is planned or allocated.

use std::sync::Arc;

use offload_core::model::{Model, ModelError, Residency};
use offload_core::swappable::{Swappable, TensorSpec};

use crate::block::WanBlock;
use crate::catalog::{Catalog, Named, find};
use crate::detect::{Detection, PatchEmbedding};
use crate::layout::{
    BLOCK, BLOCK_IMAGE, Expected, GROUP_AFTER, GROUPS_BEFORE, ROOT, ROOT_IMAGE, role_by_name,
};
use crate::names::{self, Part};
use crate::variant::Variant;

/// Why a checkpoint's tensors do not make a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The tensors are not those of a WAN transformer.
    #[error("none of the {tensor_count} tensors says that this is a WAN transformer")]
    NotWan {
        /// Tensors of the checkpoint.
        tensor_count: usize,
    },
    /// The variant is known but no model is built of it.
    #[error("{variant} is not supported: its extra modules have no blocks yet")]
    UnsupportedVariant {
        /// What the checkpoint is.
        variant: Variant,
    },
    /// A block is missing between or before others.
    #[error(
        "block {index} is missing: the checkpoint has {block_count} blocks, the highest is {highest}"
    )]
    MissingBlock {
        /// The first that is missing.
        index: u64,
        /// Blocks that are there.
        block_count: u64,
        /// The largest number of a block.
        highest: u64,
    },
    /// A tensor is missing.
    #[error("tensor {tensor} is missing")]
    MissingTensor {
        /// Its native name.
        tensor: String,
    },
    /// A tensor has a shape that does not fit the others.
    #[error("tensor {tensor} has shape {shape:?}, expected {expected}")]
    WrongShape {
        /// Its name in the file.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
        /// The shape it should have.
        expected: String,
    },
    /// The blocks do not make a model.
    #[error("the tensors do not make a model")]
    Model(#[from] ModelError),
}

/// Checks and groups; the main blocks may leave the device, everything else stays.
pub(crate) fn model(
    catalog: &Catalog<'_>,
    detection: &Detection,
    tensor_count: usize,
) -> Result<Model, LayoutError> {
    if detection.naming.is_none() {
        return Err(LayoutError::NotWan { tensor_count });
    }
    if let Some(variant) = detection.variant
        && !variant.is_supported()
    {
        return Err(LayoutError::UnsupportedVariant { variant });
    }
    check_root(catalog, detection)?;
    check_blocks(catalog, detection)?;

    let (before, after, other) = root_groups(catalog);
    let blocks = catalog.blocks().into_iter().flatten();
    let blocks = blocks.map(|(index, tensors)| {
        WanBlock::new(
            format!("blocks.{index}"),
            tensors.iter().map(|tensor| renamed(tensor, "")).collect(),
        )
    });
    let all: Vec<Arc<dyn Swappable>> = before
        .into_iter()
        .chain(other)
        .chain(blocks)
        .chain(after)
        .map(|block| Arc::new(block) as Arc<dyn Swappable>)
        .collect();
    let stays: Vec<bool> = all
        .iter()
        .map(|block| !block.name().starts_with("blocks."))
        .collect();
    let mut model = Model::new(all)?;
    for (index, _) in stays.iter().enumerate().filter(|(_, stays)| **stays) {
        model = model.with_residency(index, Residency::Always)?;
    }
    Ok(model)
}

fn check_root(catalog: &Catalog<'_>, detection: &Detection) -> Result<(), LayoutError> {
    let check = |expected: &Expected| check_tensor(&catalog.root, expected, "", detection);
    ROOT.iter().try_for_each(check)?;
    if detection.image {
        ROOT_IMAGE.iter().try_for_each(check)?;
    }
    let Some(weight) = catalog.root("patch_embedding.weight") else {
        return Ok(());
    };
    let in_channels = detection.in_channels.unwrap_or(0);
    let fits = match detection.patch_embedding {
        PatchEmbedding::Whole => weight.shape() == [detection.dim, in_channels, 1, 2, 2],
        PatchEmbedding::Merged | PatchEmbedding::Missing => in_channels > 0,
    };
    if fits {
        return Ok(());
    }
    Err(LayoutError::WrongShape {
        tensor: weight.name().to_owned(),
        shape: weight.shape().to_vec(),
        expected: format!("[{}, any, 1, 2, 2]", detection.dim),
    })
}

fn check_blocks(catalog: &Catalog<'_>, detection: &Detection) -> Result<(), LayoutError> {
    let missing = |index, highest| LayoutError::MissingBlock {
        index,
        block_count: detection.block_count,
        highest,
    };
    let Some(blocks) = catalog.blocks() else {
        return Err(missing(0, 0));
    };
    let highest = blocks.keys().next_back().copied().unwrap_or(0);
    for (wanted, (&index, tensors)) in (0u64..).zip(blocks) {
        if index != wanted {
            return Err(missing(wanted, highest));
        }
        let owner = format!("blocks.{index}.");
        let check = |expected: &Expected| check_tensor(tensors, expected, &owner, detection);
        BLOCK.iter().try_for_each(check)?;
        if detection.image {
            BLOCK_IMAGE.iter().try_for_each(check)?;
        }
    }
    Ok(())
}

fn check_tensor(
    tensors: &[Named<'_>],
    expected: &Expected,
    owner: &str,
    detection: &Detection,
) -> Result<(), LayoutError> {
    let Some(spec) = find(tensors, expected.name) else {
        return Err(LayoutError::MissingTensor {
            tensor: format!("{owner}{}", expected.name),
        });
    };
    expected
        .check(spec, detection.dim, detection.ffn_dim)
        .map_err(|expected| LayoutError::WrongShape {
            tensor: spec.name().to_owned(),
            shape: spec.shape().to_vec(),
            expected,
        })
}

/// Names in no block and in no group that a WAN transformer has; none when this is no WAN transformer.
pub(crate) fn unknown<'a>(tensors: &'a [TensorSpec], detection: &Detection) -> Vec<&'a str> {
    let Some(naming) = detection.naming else {
        return Vec::new();
    };
    let is_unknown = |name: &str| match names::part(name, detection.prefix) {
        Part::Block { list, .. } => list != "blocks",
        Part::Root(root) => group_of(&names::native_in_root(root, naming)).is_none(),
        Part::Outside => true,
    };
    tensors
        .iter()
        .map(TensorSpec::name)
        .filter(|name| is_unknown(name))
        .collect()
}

type Groups = (Vec<WanBlock>, Option<WanBlock>, Option<WanBlock>);

/// The tensors outside the blocks: groups used before them, the one used after, and what belongs to none.
fn root_groups(catalog: &Catalog<'_>) -> Groups {
    let group = |root: &str| {
        let tensors: Vec<TensorSpec> = catalog
            .root
            .iter()
            .filter(|tensor| group_of(&tensor.name) == Some(root))
            .map(|tensor| renamed(tensor, root))
            .collect();
        (!tensors.is_empty()).then(|| WanBlock::new(root, tensors))
    };
    let before = GROUPS_BEFORE.iter().filter_map(|root| group(root));
    let mut rest: Vec<TensorSpec> = catalog
        .root
        .iter()
        .filter(|tensor| group_of(&tensor.name).is_none())
        .map(|tensor| renamed(tensor, ""))
        .collect();
    for (list, blocks) in &catalog.lists {
        if *list != "blocks" {
            for (index, tensors) in blocks {
                rest.extend(tensors.iter().map(|tensor| {
                    renamed(tensor, "").with_name(format!("{list}.{index}.{}", tensor.name))
                }));
            }
        }
    }
    let other = (!rest.is_empty()).then(|| WanBlock::new("other", rest));
    (before.collect(), group(GROUP_AFTER), other)
}

fn group_of(name: &str) -> Option<&'static str> {
    let (root, _) = name.split_once('.')?;
    GROUPS_BEFORE
        .iter()
        .copied()
        .chain([GROUP_AFTER])
        .find(|known| *known == root)
}

/// The tensor under its native name within group `root`, in its role.
fn renamed(tensor: &Named<'_>, root: &str) -> TensorSpec {
    let name = tensor
        .name
        .strip_prefix(root)
        .map_or(&*tensor.name, |rest| rest.trim_start_matches('.'));
    let spec = tensor.spec.clone().with_name(name);
    match role_by_name(name) {
        Some(role) => spec.with_role(role),
        None => spec,
    }
}
