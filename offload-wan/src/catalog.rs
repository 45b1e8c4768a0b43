//! A checkpoint's tensors by part: block lists, tensors outside the blocks, tensors of other models.
//!
//! Nothing is checked here and nothing is sized by a number read from a name.

use std::borrow::Cow;
use std::collections::BTreeMap;

use offload_core::swappable::TensorSpec;

use crate::names::{self, Naming, Part};

/// A tensor and its native name within its part.
#[derive(Debug)]
pub(crate) struct Named<'a> {
    pub(crate) name: Cow<'a, str>,
    pub(crate) spec: &'a TensorSpec,
}

/// Blocks of one list by number.
pub(crate) type BlockList<'a> = BTreeMap<u64, Vec<Named<'a>>>;

/// Tensors by part, each part in file order.
#[derive(Debug)]
pub(crate) struct Catalog<'a> {
    pub(crate) prefix: &'static str,
    pub(crate) naming: Naming,
    pub(crate) lists: BTreeMap<&'a str, BlockList<'a>>,
    pub(crate) root: Vec<Named<'a>>,
}

impl<'a> Catalog<'a> {
    pub(crate) fn new(tensors: &'a [TensorSpec]) -> Self {
        let prefix = names::common_prefix(tensors.iter().map(TensorSpec::name));
        let parts = || {
            tensors
                .iter()
                .map(move |spec| (names::part(spec.name(), prefix), spec))
        };
        let is_diffusers = parts().any(|(part, _)| {
            matches!(
                part,
                Part::Root("condition_embedder.time_proj.weight")
                    | Part::Block {
                        list: "blocks",
                        rest: "attn1.to_q.weight",
                        ..
                    }
            )
        });
        let naming = if is_diffusers {
            Naming::Diffusers
        } else {
            Naming::Native
        };
        let mut lists: BTreeMap<&str, BlockList<'_>> = BTreeMap::new();
        let mut root = Vec::new();
        for (part, spec) in parts() {
            match part {
                Part::Block { list, index, rest } => {
                    let name = names::native_in_block(rest, naming);
                    let block = lists.entry(list).or_default().entry(index).or_default();
                    block.push(Named { name, spec });
                }
                Part::Root(name) => root.push(Named {
                    name: names::native_in_root(name, naming),
                    spec,
                }),
                Part::Outside => {}
            }
        }
        Self {
            prefix,
            naming,
            lists,
            root,
        }
    }

    /// The main transformer blocks.
    pub(crate) fn blocks(&self) -> Option<&BlockList<'a>> {
        self.lists.get("blocks")
    }

    /// The tensor outside the blocks that is called `name`.
    pub(crate) fn root(&self, name: &str) -> Option<&'a TensorSpec> {
        find(&self.root, name)
    }

    /// Tensor `name` of the main block with the smallest number.
    pub(crate) fn first_block(&self, name: &str) -> Option<&'a TensorSpec> {
        find(self.blocks()?.values().next()?, name)
    }
}

/// The tensor called `name`.
pub(crate) fn find<'a>(tensors: &[Named<'a>], name: &str) -> Option<&'a TensorSpec> {
    tensors
        .iter()
        .find(|tensor| tensor.name == name)
        .map(|tensor| tensor.spec)
}
