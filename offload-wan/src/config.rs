//! A model's configuration: numbers that tensors do not tell. It is the `config.json` of a folder, as diffusers and the
//! authors have it, or the text `config` in the metadata of a safetensors file.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use offload_core::source::{SourceError, SourceFile};
use serde::Deserialize;
use serde::de::Error as _;

/// Why a configuration could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It could not be read.
    #[error(transparent)]
    Read(#[from] SourceError),
    /// It is no configuration.
    #[error("{path}: no configuration of a model", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It is far larger than any configuration.
    #[error("{path}: {bytes} bytes are too many for a configuration", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
}

/// The part that matters here; all of it may be missing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Config {
    /// Transformer blocks.
    #[serde(default)]
    pub(crate) num_layers: Option<u64>,
    /// After which of them VACE's run.
    #[serde(default)]
    pub(crate) vace_layers: Option<Vec<u64>>,
    /// Attention heads.
    #[serde(default)]
    pub(crate) num_attention_heads: Option<u64>,
    /// Where it stands.
    #[serde(skip)]
    pub(crate) from: &'static str,
}

/// The configuration in a file's metadata: that of the transformer, which may have a key of its own.
#[derive(Debug, Deserialize)]
struct InMetadata {
    #[serde(default)]
    transformer: Option<Config>,
    #[serde(flatten)]
    itself: Config,
}

const MAX_BYTES: u64 = 1 << 20;

impl Config {
    /// The `config.json` of `folder`, if there is one.
    pub(crate) fn of_folder(folder: &Path) -> Result<Option<Self>, ConfigError> {
        let path = folder.join("config.json");
        if fs::symlink_metadata(&path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
            return Ok(None);
        }
        // Opens regular files only: others may be read without end.
        let file = SourceFile::open(&path)?;
        let bytes = file.len();
        if bytes > MAX_BYTES {
            return Err(ConfigError::TooLarge { path, bytes });
        }
        let mut text = vec![0; usize::try_from(bytes).expect("not too large")];
        file.read_exact_at(&mut text, 0)?;
        // An array would be taken for the fields in their order.
        let parsed = match text.trim_ascii_start() {
            [b'[', ..] => Err(serde_json::Error::custom("an array, expected an object")),
            _ => serde_json::from_slice(&text),
        };
        match parsed {
            Ok(config) => Ok(Some(Self {
                from: "config.json",
                ..config
            })),
            Err(source) => Err(ConfigError::Json { path, source }),
        }
    }

    /// That of the text `config` in a file's metadata.
    pub(crate) fn of_metadata(text: &str) -> Result<Self, serde_json::Error> {
        let found: InMetadata = serde_json::from_str(text)?;
        Ok(Self {
            from: "config in the file's metadata",
            ..found.transformer.unwrap_or(found.itself)
        })
    }
}
