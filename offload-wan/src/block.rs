//! A block of a WAN transformer as the executor sees it.

use offload_core::swappable::{Swappable, TensorSpec};

use crate::scales;
use crate::transformer::LayoutError;

/// One transformer block, or one group of tensors outside the blocks.
#[derive(Debug, Clone)]
pub struct WanBlock {
    name: String,
    tensors: Vec<TensorSpec>,
}

impl WanBlock {
    pub(crate) fn new(name: impl Into<String>, tensors: Vec<TensorSpec>) -> Self {
        Self {
            name: name.into(),
            tensors,
        }
    }

    /// The same block, each weight with the scale that lies beside it.
    pub(crate) fn scaled(&self) -> Result<Self, LayoutError> {
        Ok(Self {
            name: self.name.clone(),
            tensors: scales::applied(&self.name, &self.tensors)?,
        })
    }

    /// The same block with `prefix` and a dot before its name.
    pub(crate) fn prefixed(self, prefix: &str) -> Self {
        Self {
            name: format!("{prefix}.{}", self.name),
            ..self
        }
    }
}

impl Swappable for WanBlock {
    fn name(&self) -> &str {
        &self.name
    }

    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }
}
