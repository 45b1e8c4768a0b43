//! The reader: from files to tensor descriptions.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::source::SourceFile;
use crate::swappable::TensorSpec;

use super::header::Contents;
use super::{SafetensorsError, index, shards};

/// An open safetensors file, or all shards of a model: tensors, checked, and metadata.
pub struct Safetensors {
    files: Vec<Arc<SourceFile>>,
    metadata: BTreeMap<String, String>,
    tensors: Vec<TensorSpec>,
    by_name: HashMap<String, usize>,
}

impl Safetensors {
    /// Opens `path` and reads its header, or all shards if it is an index such as `model.safetensors.index.json`.
    ///
    /// # Errors
    /// When a file cannot be read or is not sound.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SafetensorsError> {
        Self::read(SourceFile::open(path)?)
    }

    /// Reads the header of an open file, or opens all shards if the file is an index: its first bytes tell, not its
    /// name.
    ///
    /// # Errors
    /// When a file cannot be read or is not sound.
    pub fn read(file: Arc<SourceFile>) -> Result<Self, SafetensorsError> {
        let (files, contents) = if index::is_index(&file)? {
            shards::read(&file)?
        } else {
            let contents = Contents::read(&file)?;
            (vec![file], contents)
        };
        Ok(Self {
            files,
            metadata: contents.metadata,
            tensors: contents.tensors,
            by_name: contents.by_name,
        })
    }

    /// The tensors, in the order in which the header lists them; those of shards file by file.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// The metadata text of that key; of several shards, that of the first that has it.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The files that the tensors' sources read from: the file itself, or the shards by name.
    #[must_use]
    pub fn files(&self) -> &[Arc<SourceFile>] {
        &self.files
    }
}

impl fmt::Debug for Safetensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Safetensors")
            .field("files", &self.files)
            .field("metadata", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
