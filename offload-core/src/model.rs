//! A model: blocks in their order, and the kinds of passes an engine makes over them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::swappable::{Swappable, TensorSpec};

/// Which pass kind of a model a pass is: its index in [`Model::kinds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PassKind(pub u32);

impl PassKind {
    /// The kind every model has: each block once, every tensor demanded.
    pub const FULL: Self = Self(0);

    /// The kind as an index.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Whether a block may leave the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// The planner decides.
    #[default]
    Planned,
    /// It stays on the device.
    Always,
    /// It is fetched at each visit.
    Never,
}

/// One kind of pass: which blocks it visits, in order, and which of their tensors it does not demand.
#[derive(Debug, Clone)]
pub struct KindSpec {
    name: String,
    visits: Vec<usize>,
    undemanded: BTreeSet<(usize, usize)>,
}

impl KindSpec {
    /// Its name, for tables.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Block indices in the order of use. A block may occur more than once.
    #[must_use]
    pub fn visits(&self) -> &[usize] {
        &self.visits
    }

    /// Whether tensor `tensor` of block `block` is demanded.
    #[must_use]
    pub fn demands(&self, block: usize, tensor: usize) -> bool {
        !self.undemanded.contains(&(block, tensor))
    }
}

/// Why blocks do not make a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// Two blocks share a name.
    #[error("two blocks are called {name}")]
    DuplicateBlock {
        /// The name.
        name: String,
    },
    /// Two tensors of a block share a name.
    #[error("block {block} has two tensors called {tensor}")]
    DuplicateTensor {
        /// The block.
        block: String,
        /// The name.
        tensor: String,
    },
    /// A visit list or setting names a block that is not there.
    #[error("block {index} does not exist: the model has {block_count}")]
    NoSuchBlock {
        /// The index asked for.
        index: usize,
        /// Blocks of the model.
        block_count: usize,
    },
    /// A model without blocks.
    #[error("a model needs at least one block")]
    Empty,
}

/// Blocks, their residency, and pass kinds.
#[derive(Debug, Clone)]
pub struct Model {
    blocks: Vec<Arc<dyn Swappable>>,
    residency: Vec<Residency>,
    kinds: Vec<KindSpec>,
}

impl Model {
    /// A model that visits each block once, in order; [`PassKind::FULL`] is that pass.
    ///
    /// # Errors
    /// When there is no block, or names repeat.
    pub fn new(blocks: Vec<Arc<dyn Swappable>>) -> Result<Self, ModelError> {
        if blocks.is_empty() {
            return Err(ModelError::Empty);
        }
        let mut names = HashSet::new();
        for block in &blocks {
            if !names.insert(block.name().to_owned()) {
                return Err(ModelError::DuplicateBlock {
                    name: block.name().to_owned(),
                });
            }
            let mut tensors = HashSet::new();
            if let Some(twice) = block
                .tensors()
                .iter()
                .find(|tensor| !tensors.insert(tensor.name()))
            {
                return Err(ModelError::DuplicateTensor {
                    block: block.name().to_owned(),
                    tensor: twice.name().to_owned(),
                });
            }
        }
        let visits = (0..blocks.len()).collect();
        let full = KindSpec {
            name: "full".to_owned(),
            visits,
            undemanded: BTreeSet::new(),
        };
        Ok(Self {
            residency: vec![Residency::Planned; blocks.len()],
            blocks,
            kinds: vec![full],
        })
    }

    /// Sets whether block `index` may leave the device.
    ///
    /// # Errors
    /// When there is no such block.
    pub fn with_residency(
        mut self,
        index: usize,
        residency: Residency,
    ) -> Result<Self, ModelError> {
        self.check(index)?;
        self.residency[index] = residency;
        Ok(self)
    }

    /// Adds a pass kind that visits `visits` and demands what `demands(block, tensor)` says.
    ///
    /// # Errors
    /// When a visit names a block that is not there.
    pub fn with_kind(
        mut self,
        name: impl Into<String>,
        visits: impl Into<Vec<usize>>,
        demands: impl Fn(&dyn Swappable, &TensorSpec) -> bool,
    ) -> Result<(Self, PassKind), ModelError> {
        let visits = visits.into();
        visits.iter().try_for_each(|&index| self.check(index))?;
        let mut undemanded = BTreeSet::new();
        for (index, block) in self.blocks.iter().enumerate() {
            for (position, tensor) in block.tensors().iter().enumerate() {
                if !demands(block.as_ref(), tensor) {
                    undemanded.insert((index, position));
                }
            }
        }
        let kind = PassKind(u32::try_from(self.kinds.len()).expect("pass kinds are few"));
        self.kinds.push(KindSpec {
            name: name.into(),
            visits,
            undemanded,
        });
        Ok((self, kind))
    }

    fn check(&self, index: usize) -> Result<(), ModelError> {
        if index < self.blocks.len() {
            Ok(())
        } else {
            Err(ModelError::NoSuchBlock {
                index,
                block_count: self.blocks.len(),
            })
        }
    }

    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> &[Arc<dyn Swappable>] {
        &self.blocks
    }

    /// Whether block `index` may leave the device.
    ///
    /// # Panics
    /// When there is no such block.
    #[must_use]
    pub fn residency(&self, index: usize) -> Residency {
        self.residency[index]
    }

    /// The pass kinds; the first is [`PassKind::FULL`].
    #[must_use]
    pub fn kinds(&self) -> &[KindSpec] {
        &self.kinds
    }
}
