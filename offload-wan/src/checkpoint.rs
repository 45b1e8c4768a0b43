//! A checkpoint: the tensors of one or several files, and what they are.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use offload_core::model::Model;
use offload_core::source::{Source, SourceFile};
use offload_core::swappable::TensorSpec;

use crate::catalog::{Catalog, Style};
use crate::container::{self, ContainerError, Said};
use crate::detect::{self, Beside, Detection};
use crate::encoder::Encoder;
use crate::findings::{self, Finding};
use crate::hints::Hints;
use crate::names::{self, List};
use crate::passes::{PassOptions, WanModel};
use crate::scales;
use crate::transformer::{LayoutError, Transformer};
use crate::variant::{Modules, Variant};

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
    /// The checkpoint is plainly not what it is to be taken for.
    #[error("the checkpoint cannot be taken for {variant}: it is {found}")]
    Contradicted {
        /// What the caller says.
        variant: Variant,
        /// What the checkpoint is, with the numbers of both.
        found: String,
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
/// Any sound container opens; [`detection`](Self::detection) says what is in it, [`findings`](Self::findings) what is
/// not as it should be, and [`model`](Self::model) refuses what is no whole WAN transformer or encoder.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    files: Vec<Arc<SourceFile>>,
    tensors: Vec<TensorSpec>,
    style: Style,
    beside: Beside,
    detection: Detection,
    modules: Modules,
    encoder: Option<Encoder>,
}

impl Checkpoint {
    /// Opens the one file `path`, all shards of the index `path`, or the model in the folder `path`.
    ///
    /// # Errors
    /// When it cannot be read or is no container that is known.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        Self::open_all([path])
    }

    /// Opens several files that together hold one model, GGUF and safetensors in any mixture. A
    /// `model.safetensors.index.json` stands for all its shards, a folder for the model in it, in shards or in one file.
    /// The `config.json` beside an index or in a folder is read too; that beside another file is not, as it may be of
    /// another model.
    ///
    /// # Errors
    /// When one cannot be read or is no container that is known, and when two hold the same tensor.
    pub fn open_all<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
    ) -> Result<Self, CheckpointError> {
        let mut files = Vec::new();
        let mut tensors = Vec::new();
        let mut said = Said::default();
        let mut named = false;
        for path in paths {
            named = true;
            let container = container::open(path.as_ref())?;
            files.extend(container.files);
            tensors.extend(container.tensors);
            said = said.or(container.said);
        }
        if !named {
            return Err(CheckpointError::NoFiles);
        }
        Self::new(files, tensors, said)
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
        Self::new(files, tensors, Said::default())
    }

    fn new(
        files: Vec<Arc<SourceFile>>,
        tensors: Vec<TensorSpec>,
        said: Said,
    ) -> Result<Self, CheckpointError> {
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
        let beside = Beside {
            hints: Hints::of(files.iter().map(|file| file.path())),
            said,
            variant: None,
        };
        let style = Style::of(&tensors);
        let (mut detection, modules) = detect::detect(&Catalog::new(&tensors, style), &beside);
        let encoder = match detection.naming {
            Some(_) => None,
            None => Encoder::detect(&tensors),
        };
        if let Some(encoder) = &encoder {
            detection.encoder = Some(encoder.name());
            detection.scaling = encoder.scaling(&tensors);
        }
        Ok(Self {
            files,
            tensors,
            style,
            beside,
            detection,
            modules,
            encoder,
        })
    }

    /// The same checkpoint taken for `variant`, where neither tensors nor file names tell. It is held to it: blocks,
    /// widths (or all of them divided by one number), tensors and shapes that differ are [`findings`](Self::findings).
    ///
    /// # Errors
    /// When it is plainly something else: no WAN transformer, the other kind of transformer, or of the block count or the
    /// widths of another published size.
    pub fn taken_for(self, variant: Variant) -> Result<Self, CheckpointError> {
        let catalog = Catalog::new(&self.tensors, self.style);
        let beside = |variant| Beside {
            variant,
            ..self.beside.clone()
        };
        let (mut plain, _) = detect::detect(&catalog, &beside(None));
        plain.encoder = self.detection.encoder;
        if let Some(found) = plain.contradicts(variant) {
            return Err(CheckpointError::Contradicted { variant, found });
        }
        let beside = beside(Some(variant));
        let (detection, modules) = detect::detect(&catalog, &beside);
        Ok(Self {
            beside,
            detection,
            modules,
            ..self
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

    /// The tensor called `name` in the file as it arrives in a model: a weight of few bits with the scale beside it.
    ///
    /// # Errors
    /// When there is a scale that cannot be read or does not fit.
    pub fn tensor(&self, name: &str) -> Result<Option<TensorSpec>, LayoutError> {
        let named = |name: &str| self.tensors.iter().find(|tensor| tensor.name() == name);
        let Some(tensor) = named(name) else {
            return Ok(None);
        };
        let owner = ["weight", "weight_int8"]
            .iter()
            .find_map(|leaf| name.strip_suffix(leaf));
        let scales = owner.filter(|owner| owner.is_empty() || owner.ends_with('.'));
        let scale = scales.and_then(|owner| {
            let names = ["scale_weight", "weight_scale"].map(|leaf| format!("{owner}{leaf}"));
            names.iter().find_map(|name| named(name))
        });
        match scale {
            Some(scale) => scales::with_scale(tensor, scale).map(Some),
            None => Ok(Some(tensor.clone())),
        }
    }

    /// What the checkpoint is.
    #[must_use]
    pub fn detection(&self) -> &Detection {
        &self.detection
    }

    /// The blocks that the names show: main blocks, then those of VACE, audio injectors, fuser blocks, each by number; of
    /// an encoder its layers, and of another model every numbered list of `blocks` under the name that it has.
    #[must_use]
    pub fn blocks(&self) -> Vec<BlockSummary> {
        if let Some(encoder) = &self.encoder {
            return encoder.blocks(&self.tensors);
        }
        if self.detection.naming.is_none() {
            return self.other_blocks();
        }
        let catalog = Catalog::new(&self.tensors, self.style);
        let lists = [List::Main, List::Vace, List::Injector, List::Fuser];
        let blocks = lists.into_iter().flat_map(|list| {
            catalog.list(list).map(move |(index, tensors)| {
                // Parts of a stacked tensor stand one behind the other.
                let mut files: Vec<&TensorSpec> =
                    tensors.iter().map(|tensor| tensor.file).collect();
                files.dedup_by(|one, other| std::ptr::eq(*one, *other));
                BlockSummary {
                    name: format!("{}.{index}", list.name()),
                    tensor_count: files.len(),
                    bytes: files.iter().map(|file| file.source().len()).sum(),
                }
            })
        });
        blocks.collect()
    }

    /// Numbered blocks of a model that is not known: by list, then by number.
    fn other_blocks(&self) -> Vec<BlockSummary> {
        let mut blocks: BTreeMap<(&str, u64), BlockSummary> = BTreeMap::new();
        for tensor in &self.tensors {
            let Some(stripped) = names::without_prefix(tensor.name(), self.detection.prefix) else {
                continue;
            };
            if let Some((list, index)) = names::numbered_blocks(stripped) {
                let block = blocks.entry((list, index)).or_insert_with(|| BlockSummary {
                    name: format!("{list}.{index}"),
                    tensor_count: 0,
                    bytes: 0,
                });
                block.tensor_count += 1;
                block.bytes += tensor.source().len();
            }
        }
        blocks.into_values().collect()
    }

    /// Everything that is not as the layout has it, at once: what is missing, misshapen or unknown; of an encoder what its
    /// layers do not have in common. Nothing when this is neither.
    #[must_use]
    pub fn findings(&self) -> Vec<Finding> {
        if let Some(encoder) = &self.encoder {
            return encoder.findings(&self.tensors);
        }
        let catalog = Catalog::new(&self.tensors, self.style);
        findings::findings(&catalog, &self.detection, self.modules, self.beside.variant)
    }

    /// The names of tensors that no such transformer has.
    ///
    /// Those under the model's prefix stay in the block that their name says, or make the block `other`; those without
    /// it belong to other models in the same file and are left out of [`model`](Self::model). One that bears the
    /// canonical name of another tensor of its block keeps the name that it has in the file.
    #[must_use]
    pub fn unknown(&self) -> Vec<String> {
        let findings = self.findings().into_iter();
        findings
            .filter_map(|finding| match finding {
                Finding::Unknown { tensor } => Some(tensor),
                _ => None,
            })
            .collect()
    }

    /// The names in the file of tensors that belong to a weight, such as its scale, with the weight's.
    #[must_use]
    pub fn attached(&self) -> Vec<(String, String)> {
        let catalog = Catalog::new(&self.tensors, self.style);
        let mut all = Vec::new();
        for tensors in catalog.places.values() {
            for tensor in tensors {
                let Some(weight) = names::attached_to(&tensor.name) else {
                    continue;
                };
                let weight = tensors.iter().find(|other| other.name == weight);
                if let Some(weight) = weight {
                    let pair = (tensor.file.name().to_owned(), weight.file.name().to_owned());
                    // Parts of a stacked tensor stand one behind the other.
                    if all.last() != Some(&pair) {
                        all.push(pair);
                    }
                }
            }
        }
        all
    }

    /// The checkpoint as a model that visits every block once: the patch embedding and what else conditions the video,
    /// text and time embeddings, the time projection, the image embedding where there is one, the transformer blocks,
    /// each followed by what runs after it, and the head. An encoder has its embeddings, its layers and the rest.
    ///
    /// Each block is a block of its own, such as `blocks.7` or `vace_blocks.0`, and the planner's to place. The groups
    /// outside are blocks as well and stay on the device,
    /// [`Residency::Always`](offload_core::model::Residency::Always). Tensors bear their canonical names within the
    /// block, such as `self_attn.q.weight`, in file order; one that is in no known group is in the block `other`, which
    /// stays too. Biases, norms, modulation and scales are
    /// [`Role::Vector`](offload_core::swappable::Role::Vector). Weights of few bits that have a scale beside them arrive
    /// multiplied with it, unless as stored.
    ///
    /// # Errors
    /// When this is neither a WAN transformer nor an encoder, or not a whole one.
    pub fn model(&self) -> Result<Model, LayoutError> {
        match &self.encoder {
            Some(encoder) => encoder.model(&self.tensors),
            None => Ok(WanModel::new(self, &PassOptions::default())?.into_model()),
        }
    }

    pub(crate) fn transformer(&self) -> Result<Transformer, LayoutError> {
        let catalog = Catalog::new(&self.tensors, self.style);
        Transformer::new(
            &catalog,
            &self.detection,
            self.findings(),
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
