//! Opens one file of a checkpoint, whichever container it is; its first bytes tell, not its name. Or a folder with a
//! model in shards.
//!
//! The only place that knows which containers there are; what comes out of it is tensors.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offload_core::format::gguf::{Gguf, GgufError, Value};
use offload_core::format::safetensors::{Safetensors, SafetensorsError};
use offload_core::source::{SourceError, SourceFile};
use offload_core::swappable::TensorSpec;

use crate::config::{Config, ConfigError};

/// Why a file is no checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// The file cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A container that is known but not read.
    #[error("{path}: unsupported container: {found}", path = path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// No container that is known.
    #[error("{path}: no known container: the file begins with {magic:02x?}", path = path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Its first bytes, as many as there are up to eight.
        magic: Vec<u8>,
    },
    /// The file says it is a GGUF file but is none that can be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file begins like a safetensors file, or like an index of such files, but is none that can be read.
    #[error(transparent)]
    Safetensors(#[from] SafetensorsError),
    /// The `config.json` in a folder or beside an index is there but cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A folder does not hold a model, or more than one.
    #[error(
        "{path}: not a regular file, and as a folder it holds {found} of the files of a model ({wanted})",
        path = path.display()
    )]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Files that would be a model.
        found: usize,
        /// What is looked for.
        wanted: &'static str,
    },
}

/// One open file, or all files of an index, and their tensors.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) files: Vec<Arc<SourceFile>>,
    pub(crate) tensors: Vec<TensorSpec>,
    pub(crate) said: Said,
}

/// What is said of the model beside its tensors.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    /// By the folder, which is asked only if it was named or an index in it was, or else by the file's metadata: beside
    /// a file among others it may be of another model.
    pub(crate) config: Option<Config>,
    /// Why what the metadata say could not be read. They are free text, so that is no error.
    pub(crate) unread: Option<String>,
    /// `general.architecture` of a GGUF file.
    pub(crate) architecture: Option<String>,
}

impl Said {
    /// With what `other` says of what is not said yet.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            config: self.config.or(other.config),
            unread: self.unread.or(other.unread),
            architecture: self.architecture.or(other.architecture),
        }
    }
}

/// How many bytes tell the containers apart.
const MAGIC_LEN: u64 = 9;

/// The key of a GGUF file's metadata that names the architecture.
const ARCHITECTURE_KEY: &str = "general.architecture";

/// The key of a safetensors file's metadata that some tools keep the configuration under.
const CONFIG_KEY: &str = "config";

/// What a folder with a model holds one of.
const IN_FOLDER: &str = "*.safetensors.index.json, or one *.safetensors or *.gguf";

pub(crate) fn open(path: &Path) -> Result<Container, ContainerError> {
    if path.is_dir() {
        let container = open(&in_folder(path)?)?;
        let config = Config::of_folder(path)?;
        let said = Said {
            config: config.or(container.said.config),
            ..container.said
        };
        return Ok(Container { said, ..container });
    }
    let file = SourceFile::open(path)?;
    let len = usize::try_from(file.len().min(MAGIC_LEN)).expect("nine fits");
    let mut magic = vec![0; len];
    file.read_exact_at(&mut magic, 0)?;
    let path = path.to_path_buf();
    match magic.as_slice() {
        [b'G', b'G', b'U', b'F', ..] => {
            let model = Gguf::read(Arc::clone(&file))?;
            let architecture = model.metadata(ARCHITECTURE_KEY).and_then(Value::as_str);
            Ok(Container {
                tensors: model.tensors().to_vec(),
                files: vec![file],
                said: Said {
                    architecture: architecture.map(str::to_owned),
                    ..Said::default()
                },
            })
        }
        // A length of eight bytes, then JSON; or JSON from the start, an index of shards.
        [_, _, _, _, _, _, 0, 0, b'{'] | [b'{', ..] => {
            let is_index = magic.first() == Some(&b'{');
            let model = Safetensors::read(file)?;
            let config = match path.parent().filter(|_| is_index) {
                Some(folder) => Config::of_folder(folder)?,
                None => None,
            };
            let (in_metadata, unread) = match model.metadata(CONFIG_KEY).map(Config::of_metadata) {
                Some(Ok(config)) => (Some(config), None),
                Some(Err(error)) => (None, Some(error.to_string())),
                None => (None, None),
            };
            Ok(Container {
                tensors: model.tensors().to_vec(),
                files: model.files().to_vec(),
                said: Said {
                    config: config.or(in_metadata),
                    unread,
                    architecture: None,
                },
            })
        }
        [b'P', b'K', 3, 4, ..] => Err(ContainerError::Unsupported {
            path,
            found: "a zip archive (PyTorch)",
        }),
        _ => {
            magic.truncate(8);
            Err(ContainerError::Unknown { path, magic })
        }
    }
}

/// The one file in a folder that is, or stands for, a model.
fn in_folder(folder: &Path) -> Result<PathBuf, ContainerError> {
    let refuse = |found| ContainerError::Folder {
        path: folder.to_path_buf(),
        found,
        wanted: IN_FOLDER,
    };
    let entries = std::fs::read_dir(folder).map_err(|_| refuse(0))?;
    let files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let named = |end: &str| -> Vec<&PathBuf> {
        let ends = |path: &&PathBuf| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            name.is_some_and(|name| name.ends_with(end))
        };
        files.iter().filter(ends).collect()
    };
    let indices = named(".safetensors.index.json");
    let found = if indices.is_empty() {
        [named(".safetensors"), named(".gguf")].concat()
    } else {
        indices
    };
    match found[..] {
        [one] => Ok(one.clone()),
        _ => Err(refuse(found.len())),
    }
}
