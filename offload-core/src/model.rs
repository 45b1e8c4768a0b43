//! A model: blocks in their order, and the kinds of passes an engine makes over them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::swappable::{Swappable, TensorSpec};

/// Which pass kind of a model a pass is: its index in [`Model::kinds`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PassKind(pub u32);

impl PassKind {
    /// The kind every model has. Each block once, every tensor demanded, unless
    /// [`Model::with_first_kind`] says otherwise.
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
    share: f64,
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

    /// How many passes are of this kind, relative to the other kinds.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.share
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
    /// A setting names a pass kind that is not there.
    #[error("pass kind {kind} does not exist: the model has {kind_count}")]
    NoSuchKind {
        /// The kind asked for.
        kind: u32,
        /// Kinds of the model.
        kind_count: usize,
    },
    /// A share of passes that is no positive number.
    #[error("pass kind {kind} cannot have {share} of the passes: a share is above 0")]
    BadShare {
        /// The kind.
        kind: String,
        /// The share asked for, as text.
        share: String,
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
            share: 1.0,
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
        let kind = PassKind(u32::try_from(self.kinds.len()).expect("pass kinds are few"));
        let spec = self.kind_spec(name.into(), visits.into(), demands)?;
        self.kinds.push(spec);
        Ok((self, kind))
    }

    /// Replaces the first kind, [`PassKind::FULL`]: for models whose passes never visit each block once in the order
    /// of blocks. A kind that no pass is of would be planned for in vain.
    ///
    /// # Errors
    /// When a visit names a block that is not there.
    pub fn with_first_kind(
        mut self,
        name: impl Into<String>,
        visits: impl Into<Vec<usize>>,
        demands: impl Fn(&dyn Swappable, &TensorSpec) -> bool,
    ) -> Result<Self, ModelError> {
        self.kinds[0] = self.kind_spec(name.into(), visits.into(), demands)?;
        Ok(self)
    }

    /// Says how many passes are of `kind`, relative to the other kinds; 1 unless it is said. The planner weighs kinds by
    /// it.
    ///
    /// # Errors
    /// When there is no such kind, or the share is no positive number.
    pub fn with_share(mut self, kind: PassKind, share: f64) -> Result<Self, ModelError> {
        let kind_count = self.kinds.len();
        let Some(spec) = self.kinds.get_mut(kind.index()) else {
            return Err(ModelError::NoSuchKind {
                kind: kind.0,
                kind_count,
            });
        };
        if !(share > 0.0 && share.is_finite()) {
            return Err(ModelError::BadShare {
                kind: spec.name.clone(),
                share: share.to_string(),
            });
        }
        spec.share = share;
        Ok(self)
    }

    fn kind_spec(
        &self,
        name: String,
        visits: Vec<usize>,
        demands: impl Fn(&dyn Swappable, &TensorSpec) -> bool,
    ) -> Result<KindSpec, ModelError> {
        visits.iter().try_for_each(|&index| self.check(index))?;
        let mut undemanded = BTreeSet::new();
        for (index, block) in self.blocks.iter().enumerate() {
            for (position, tensor) in block.tensors().iter().enumerate() {
                if !demands(block.as_ref(), tensor) {
                    undemanded.insert((index, position));
                }
            }
        }
        Ok(KindSpec {
            name,
            visits,
            undemanded,
            share: 1.0,
        })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Encoding;
    use crate::testing::toy;

    fn model() -> Model {
        toy::model(&[[4, 4]; 3], &[Encoding::F32], 1)
    }

    #[test]
    fn the_first_kind_can_be_replaced_and_kinds_have_shares() {
        let model = model()
            .with_first_kind("high", [2, 0], |_, _| true)
            .unwrap();
        let (model, low) = model.with_kind("low", [1], |_, _| false).unwrap();
        let model = model.with_share(PassKind::FULL, 3.0).unwrap();
        let kinds = model.kinds();
        assert_eq!((kinds[0].name(), kinds[0].visits()), ("high", &[2, 0][..]));
        assert_eq!((kinds[0].share(), kinds[1].share()), (3.0, 1.0));
        assert!(kinds[0].demands(2, 0) && !kinds[1].demands(1, 0));
        assert_eq!(low, PassKind(1));
        let refused = |result: Result<Model, ModelError>| result.unwrap_err();
        assert_eq!(
            refused(model.clone().with_first_kind("other", [3], |_, _| true)),
            ModelError::NoSuchBlock {
                index: 3,
                block_count: 3
            }
        );
        assert_eq!(
            refused(model.clone().with_share(PassKind(2), 1.0)),
            ModelError::NoSuchKind {
                kind: 2,
                kind_count: 2
            }
        );
        for share in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = refused(model.clone().with_share(low, share));
            assert!(matches!(error, ModelError::BadShare { .. }), "{error}");
        }
    }
}
