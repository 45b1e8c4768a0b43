//! A checkpoint: the tensors of one or several files, and what they are.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use offload_core::model::Model;
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::TensorSpec;

use crate::catalog::Catalog;
use crate::container::{self, ContainerError};
use crate::detect::{self, Detection};
use crate::groups::{self, LayoutError};
use crate::names::{self, Part};

/// Why files do not make a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// No file was named.
    #[error("a checkpoint needs at least one file")]
    NoFiles,
    /// A file cannot be opened or read.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Two tensors share a name.
    #[error("tensor {name} is there twice: in {first} and in {second}")]
    DuplicateTensor {
        /// The name.
        name: String,
        /// Where the first one is.
        first: String,
        /// Where the other one is.
        second: String,
    },
}

/// A numbered block as the names show it, of whatever model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BlockSummary {
    /// Its name without the prefix, such as `blocks.7`.
    pub name: String,
    /// Tensors in it.
    pub tensor_count: usize,
    /// Their bytes as stored.
    pub bytes: u64,
}

/// The tensors of one model, from one or several files.
///
/// Any sound container opens; [`detection`](Self::detection) says what is in it and [`model`](Self::model) refuses what
/// is no whole WAN transformer.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    files: Vec<Arc<SourceFile>>,
    tensors: Vec<TensorSpec>,
    detection: Detection,
}

impl Checkpoint {
    /// Opens the one file `path`, or all shards of the index `path`.
    ///
    /// # Errors
    /// When it cannot be read or is no container that is known.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        Self::open_all([path])
    }

    /// Opens several files that together hold one model, GGUF and safetensors in any mixture. A
    /// `model.safetensors.index.json` stands for all its shards.
    ///
    /// # Errors
    /// When one cannot be read or is no container that is known, and when two hold the same tensor.
    pub fn open_all<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
    ) -> Result<Self, CheckpointError> {
        let mut files = Vec::new();
        let mut tensors = Vec::new();
        let mut named = false;
        for path in paths {
            named = true;
            let container = container::open(path.as_ref())?;
            files.extend(container.files);
            tensors.extend(container.tensors);
        }
        if !named {
            return Err(CheckpointError::NoFiles);
        }
        Self::new(files, tensors)
    }

    /// A checkpoint of tensors that the caller read, in their order, under their names in the file.
    ///
    /// # Errors
    /// When two share a name.
    pub fn from_tensors(tensors: Vec<TensorSpec>) -> Result<Self, CheckpointError> {
        let mut files: Vec<Arc<SourceFile>> = Vec::new();
        for tensor in &tensors {
            if let Source::File { file, .. } = tensor.source()
                && !files.iter().any(|known| Arc::ptr_eq(known, file))
            {
                files.push(Arc::clone(file));
            }
        }
        Self::new(files, tensors)
    }

    fn new(files: Vec<Arc<SourceFile>>, tensors: Vec<TensorSpec>) -> Result<Self, CheckpointError> {
        let mut seen = HashMap::with_capacity(tensors.len());
        for tensor in &tensors {
            if let Some(first) = seen.insert(tensor.name(), tensor) {
                return Err(CheckpointError::DuplicateTensor {
                    name: tensor.name().to_owned(),
                    first: place(first),
                    second: place(tensor),
                });
            }
        }
        let detection = detect::detect(&Catalog::new(&tensors));
        Ok(Self {
            files,
            tensors,
            detection,
        })
    }

    /// The open files.
    #[must_use]
    pub fn files(&self) -> &[Arc<SourceFile>] {
        &self.files
    }

    /// Every tensor under its name in the file, file by file in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// What the checkpoint is.
    #[must_use]
    pub fn detection(&self) -> &Detection {
        &self.detection
    }

    /// The blocks that the names show, of whatever model: by list, then by number.
    #[must_use]
    pub fn blocks(&self) -> Vec<BlockSummary> {
        let mut blocks: BTreeMap<(&str, u64), (usize, u64)> = BTreeMap::new();
        for tensor in &self.tensors {
            if let Part::Block { list, index, .. } =
                names::part(tensor.name(), self.detection.prefix)
            {
                let (tensor_count, bytes) = blocks.entry((list, index)).or_default();
                *tensor_count += 1;
                *bytes += tensor.source().len();
            }
        }
        blocks
            .into_iter()
            .map(|((list, index), (tensor_count, bytes))| BlockSummary {
                name: format!("{list}.{index}"),
                tensor_count,
                bytes,
            })
            .collect()
    }

    /// The names of tensors that are in no block and in no group that a WAN transformer has.
    ///
    /// Those under the model's prefix make the model's block `other`; those without it belong to other models in the
    /// same file and are left out of [`model`](Self::model).
    #[must_use]
    pub fn unknown(&self) -> Vec<&str> {
        groups::unknown(&self.tensors, &self.detection)
    }

    /// The checkpoint as a model: the visit list is the patch embedding, the text and time embeddings, the time
    /// projection, the image embedding where there is one, the transformer blocks and the head.
    ///
    /// Each transformer block is a block of its own, `blocks.N`, and the planner's to place. The groups outside are
    /// blocks as well and stay on the device, [`Residency::Always`](offload_core::model::Residency::Always). Tensors
    /// bear their native names within the block, such as `self_attn.q.weight`, in file order; one that is in no known
    /// group is in the block `other`, which stays too. Biases, norms and modulation are
    /// [`Role::Vector`](offload_core::swappable::Role::Vector).
    ///
    /// A patch embedding may be missing, because converters leave it to a file of its own: then its block has no
    /// `weight`. Everything else must be there in the shape that the widths demand.
    ///
    /// # Errors
    /// When this is no WAN transformer, one that is not supported, or not a whole one.
    pub fn model(&self) -> Result<Model, LayoutError> {
        groups::model(
            &Catalog::new(&self.tensors),
            &self.detection,
            self.tensors.len(),
        )
    }
}

fn place(tensor: &TensorSpec) -> String {
    match tensor.source() {
        Source::File { file, .. } => file.path().display().to_string(),
        Source::Memory { .. } => "memory".to_owned(),
        Source::Described { .. } => "a description".to_owned(),
    }
}
