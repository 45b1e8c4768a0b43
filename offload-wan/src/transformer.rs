//! Turns a checkpoint's tensors into blocks, after checking that all of them are there, and says in which order blocks
//! run.

use offload_core::model::ModelError;
use offload_core::swappable::TensorSpec;

use crate::block::WanBlock;
use crate::catalog::{Catalog, Named};
use crate::detect::Detection;
use crate::findings::{Finding, Findings};
use crate::group::Group;
use crate::layout::{role_by_name, runs_after};
use crate::names::{self, List};
use crate::passes::VaceOrder;

/// Why a checkpoint's tensors do not make a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The tensors are not those of a WAN transformer.
    #[error("none of the {tensor_count} tensors says that this is a WAN transformer")]
    NotWan {
        /// Tensors of the checkpoint.
        tensor_count: usize,
    },
    /// Tensors are missing or have a wrong shape.
    #[error("the checkpoint is not whole: {findings}")]
    Incomplete {
        /// All of them.
        findings: Findings,
    },
    /// The scale of a weight cannot be read.
    #[error("tensor {tensor} cannot be read: {reason}")]
    Unreadable {
        /// The tensor.
        tensor: String,
        /// Why.
        reason: String,
    },
    /// A number is out of its range.
    #[error("{what} is {value}: it can be {range}")]
    OutOfRange {
        /// What it is a number of.
        what: &'static str,
        /// The number.
        value: String,
        /// The numbers that are possible.
        range: String,
    },
    /// Two checkpoints are no pair of experts.
    #[error("{reason}")]
    NoPair {
        /// Why.
        reason: String,
    },
    /// The blocks do not make a model.
    #[error("the tensors do not make a model")]
    Model(#[from] ModelError),
}

/// What a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Part {
    /// A group of tensors outside the blocks.
    Group(Group),
    /// A main transformer block.
    Main(u64),
    /// A VACE block.
    Vace(u64),
    /// An audio injector of sound to video.
    Injector(u64),
    /// A fuser block of Animate.
    Fuser(u64),
    /// Tensors that no such model has.
    Other,
}

impl Part {
    /// Whether it is one of the many, which are the planner's to place; groups stay on the device.
    #[must_use]
    pub const fn is_block(self) -> bool {
        !matches!(self, Self::Group(_) | Self::Other)
    }
}

/// The blocks of one transformer.
#[derive(Debug)]
pub(crate) struct Transformer {
    pub(crate) blocks: Vec<WanBlock>,
    pub(crate) parts: Vec<Part>,
    block_count: u64,
    vace_layers: Vec<u64>,
}

/// Lists beside the main one.
const SIDE_LISTS: [List; 3] = [List::Vace, List::Injector, List::Fuser];

impl Transformer {
    /// Checks and groups.
    pub(crate) fn new(
        catalog: &Catalog<'_>,
        detection: &Detection,
        findings: Vec<Finding>,
        tensor_count: usize,
    ) -> Result<Self, LayoutError> {
        if detection.naming.is_none() {
            return Err(LayoutError::NotWan { tensor_count });
        }
        let fatal: Vec<Finding> = findings.into_iter().filter(Finding::is_fatal).collect();
        if !fatal.is_empty() {
            return Err(LayoutError::Incomplete {
                findings: Findings(fatal),
            });
        }
        let mut transformer = Self {
            blocks: Vec::new(),
            parts: Vec::new(),
            block_count: detection.block_count,
            vace_layers: detection.vace_layers.clone(),
        };
        let (head, before) = Group::ALL.split_last().expect("there are groups");
        for group in before {
            transformer.add_group(catalog, *group);
        }
        transformer.add_rest(catalog);
        for (index, tensors) in catalog.list(List::Main) {
            transformer.add(Part::Main(index), List::Main, index, tensors);
            for list in SIDE_LISTS {
                for (side, tensors) in catalog.list(list) {
                    if transformer.runs_after(list, side) == Some(index) {
                        transformer.add(part_of(list, side), list, side, tensors);
                    }
                }
            }
        }
        transformer.add_group(catalog, *head);
        for block in &mut transformer.blocks {
            *block = block.scaled()?;
        }
        Ok(transformer)
    }

    fn runs_after(&self, list: List, index: u64) -> Option<u64> {
        match list {
            List::Vace => {
                let index = usize::try_from(index).ok()?;
                self.vace_layers.get(index).copied()
            }
            _ => runs_after(list, index, self.block_count, 0),
        }
    }

    fn add(&mut self, part: Part, list: List, index: u64, tensors: &[Named<'_>]) {
        // A stray of another convention may bear the canonical name of a tensor that is there under its own.
        let is_taken = |stray: &Named<'_>| {
            let mut known = tensors.iter().filter(|tensor| tensor.known);
            !stray.known && known.any(|known| known.name == stray.name)
        };
        let tensors = tensors.iter().map(|tensor| match is_taken(tensor) {
            true => renamed(tensor, tensor.file.name()),
            false => renamed(tensor, &tensor.name),
        });
        let name = format!("{}.{index}", list.name());
        self.blocks.push(WanBlock::new(name, tensors.collect()));
        self.parts.push(part);
    }

    fn add_group(&mut self, catalog: &Catalog<'_>, group: Group) {
        let tensors: Vec<TensorSpec> = catalog
            .root()
            .iter()
            .filter_map(|tensor| {
                let rest = in_group(tensor)?;
                (rest.0 == group).then(|| renamed(tensor, rest.1))
            })
            .collect();
        if !tensors.is_empty() {
            self.blocks.push(WanBlock::new(group.name(), tensors));
            self.parts.push(Part::Group(group));
        }
    }

    /// Tensors under the model's prefix that are in no block that runs, and in no group.
    fn add_rest(&mut self, catalog: &Catalog<'_>) {
        let root = catalog
            .root()
            .iter()
            .filter(|tensor| in_group(tensor).is_none());
        let mut rest: Vec<TensorSpec> = root.map(|tensor| renamed(tensor, &tensor.name)).collect();
        for list in SIDE_LISTS {
            for (index, tensors) in catalog.list(list) {
                if self.runs_after(list, index).is_none() {
                    let name =
                        |tensor: &Named<'_>| format!("{}.{index}.{}", list.name(), tensor.name);
                    rest.extend(tensors.iter().map(|tensor| renamed(tensor, &name(tensor))));
                }
            }
        }
        if !rest.is_empty() {
            self.blocks.push(WanBlock::new("other", rest));
            self.parts.push(Part::Other);
        }
    }

    /// The same without what belongs to VACE.
    pub(crate) fn without_vace(self) -> Self {
        let is_kept =
            |part: &Part| !matches!(part, Part::Vace(_) | Part::Group(Group::VacePatchEmbedding));
        let kept = self.blocks.into_iter().zip(self.parts);
        let (blocks, parts) = kept.filter(|(_, part)| is_kept(part)).unzip();
        Self {
            blocks,
            parts,
            ..self
        }
    }

    /// The blocks in the order in which they run, without the main blocks `skipped` and what runs after each.
    ///
    /// Skipped blocks do not change the running state of VACE: its blocks all run.
    pub(crate) fn visits(&self, vace: VaceOrder, skipped: &[u64]) -> Vec<usize> {
        let mut skips = false;
        let mut order = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            let runs = match part {
                Part::Main(main) => {
                    skips = skipped.contains(main);
                    !skips
                }
                Part::Vace(_) => vace != VaceOrder::AllFirst,
                Part::Injector(_) | Part::Fuser(_) => !skips,
                _ => true,
            };
            if runs {
                order.push(index);
            }
        }
        if vace == VaceOrder::AllFirst {
            let is_main = |index: &usize| matches!(self.parts[*index], Part::Main(_));
            let first = order.iter().position(is_main).unwrap_or(order.len());
            let all =
                (0..self.parts.len()).filter(|index| matches!(self.parts[*index], Part::Vace(_)));
            order.splice(first..first, all);
        }
        order
    }
}

fn part_of(list: List, index: u64) -> Part {
    match list {
        List::Main => Part::Main(index),
        List::Vace => Part::Vace(index),
        List::Injector => Part::Injector(index),
        List::Fuser => Part::Fuser(index),
    }
}

/// The group that a tensor outside the blocks is in, and its name there.
fn in_group<'t>(tensor: &'t Named<'_>) -> Option<(Group, &'t str)> {
    let group = Group::of(&tensor.name).filter(|_| tensor.known)?;
    let rest = tensor.name.strip_prefix(group.name())?;
    Some((group, rest.strip_prefix('.')?))
}

/// The tensor under another name, in its role.
fn renamed(tensor: &Named<'_>, name: &str) -> TensorSpec {
    let spec = tensor.spec.clone().with_name(name);
    match role_by_name(name) {
        Some(role) => spec.with_role(role),
        None => spec,
    }
}

/// Whether a tensor of a block projects keys and values of what the block attends to beside the video: the text and the
/// image. They are the same in each step of a run.
pub(crate) fn is_cross_key_or_value(name: &str) -> bool {
    const OWNERS: [&str; 6] = ["k", "v", "norm_k", "k_img", "v_img", "norm_k_img"];
    let Some(rest) = name.strip_prefix("cross_attn.") else {
        return false;
    };
    let weight = names::attached_to(rest);
    let (owner, _) = weight
        .as_deref()
        .unwrap_or(rest)
        .split_once('.')
        .unwrap_or((rest, ""));
    OWNERS.contains(&owner)
}
