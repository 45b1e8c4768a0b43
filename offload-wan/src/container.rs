//! Opens one file of a checkpoint, whichever container it is; its first bytes tell, not its name.
//!
//! The only place that knows which containers there are; what comes out of it is tensors.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offload_core::format::gguf::{Gguf, GgufError};
use offload_core::format::safetensors::{Safetensors, SafetensorsError};
use offload_core::source::{SourceError, SourceFile};
use offload_core::swappable::TensorSpec;

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
}

/// One open file, or all files of an index, and their tensors.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) files: Vec<Arc<SourceFile>>,
    pub(crate) tensors: Vec<TensorSpec>,
}

/// How many bytes tell the containers apart.
const MAGIC_LEN: u64 = 9;

pub(crate) fn open(path: &Path) -> Result<Container, ContainerError> {
    let file = SourceFile::open(path)?;
    let len = usize::try_from(file.len().min(MAGIC_LEN)).expect("nine fits");
    let mut magic = vec![0; len];
    file.read_exact_at(&mut magic, 0)?;
    let path = path.to_path_buf();
    match magic.as_slice() {
        [b'G', b'G', b'U', b'F', ..] => Ok(Container {
            tensors: Gguf::read(Arc::clone(&file))?.tensors().to_vec(),
            files: vec![file],
        }),
        // A length of eight bytes, then JSON; or JSON from the start, an index of shards.
        [_, _, _, _, _, _, 0, 0, b'{'] | [b'{', ..] => {
            let model = Safetensors::read(file)?;
            Ok(Container {
                tensors: model.tensors().to_vec(),
                files: model.files().to_vec(),
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
