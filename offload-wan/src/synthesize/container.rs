//! Where a synthesised checkpoint goes: a GGUF file, a safetensors file, or a folder of shards with an index.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::contents::Planned;
use super::{SynthesizeError, SynthesizeSpec};

/// A container, as a path names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Container {
    Gguf,
    Safetensors,
    Folder,
}

impl Container {
    /// A folder if it is one or the path ends like one's, safetensors if the name ends so, else GGUF.
    pub(super) fn of(path: &Path) -> Self {
        let text = path.to_string_lossy();
        if path.is_dir() || text.ends_with(['/', std::path::MAIN_SEPARATOR]) {
            Self::Folder
        } else if path.extension().is_some_and(|end| end == "safetensors") {
            Self::Safetensors
        } else {
            Self::Gguf
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Gguf => "GGUF",
            Self::Safetensors | Self::Folder => "safetensors",
        }
    }
}

/// Writes a file through `write`; it appears under its name when it is whole.
pub(super) fn whole(
    path: &Path,
    write: impl FnOnce(BufWriter<File>) -> Result<(), SynthesizeError>,
) -> Result<(), SynthesizeError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let fail = |source| SynthesizeError::File {
        path: path.to_path_buf(),
        source,
    };
    // A device or a pipe would be replaced by a file of its name.
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(fail(io::Error::other("not a regular file")));
    }
    let file = File::create(&partial).map_err(fail)?;
    let written = write(BufWriter::with_capacity(1 << 20, file));
    let result = written.and_then(|()| fs::rename(&partial, path).map_err(fail));
    if result.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    result
}

/// A safetensors file of `tensors`.
pub(super) fn safetensors(
    tensors: &[Planned],
    seed: u64,
    path: &Path,
) -> Result<(), SynthesizeError> {
    let header = header(tensors);
    whole(path, |mut to| {
        let mut write = || -> io::Result<()> {
            to.write_all(&(header.len() as u64).to_le_bytes())?;
            to.write_all(&header)?;
            for tensor in tensors {
                tensor.write(seed, &mut to)?;
            }
            to.flush()
        };
        write().map_err(|source| SynthesizeError::File {
            path: path.to_path_buf(),
            source,
        })
    })
}

fn header(tensors: &[Planned]) -> Vec<u8> {
    let mut members = Map::new();
    members.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes;
        members.insert(
            tensor.name.clone(),
            json!({
                "dtype": tensor.encoding.name(),
                "shape": tensor.shape,
                "data_offsets": [offset, end],
            }),
        );
        offset = end;
    }
    let mut header = Value::Object(members).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}

/// No shard is larger, but for a single tensor that is.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Small models have this many shards all the same.
const FEWEST_SHARDS: u64 = 3;

/// Shards of `tensors`, their index, and the configuration.
pub(super) fn folder(
    spec: &SynthesizeSpec,
    tensors: &[Planned],
    path: &Path,
) -> Result<(), SynthesizeError> {
    let fail = |source| SynthesizeError::File {
        path: path.to_path_buf(),
        source,
    };
    fs::create_dir_all(path).map_err(fail)?;
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
    let limit = SHARD_BYTES.min(total.div_ceil(FEWEST_SHARDS));
    let mut shards: Vec<&[Planned]> = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, tensor) in tensors.iter().enumerate() {
        if bytes > 0 && bytes + tensor.bytes > limit {
            shards.push(&tensors[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += tensor.bytes;
    }
    shards.push(&tensors[start..]);
    let mut map = Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let name = format!(
            "diffusion_pytorch_model-{:05}-of-{:05}.safetensors",
            index + 1,
            shards.len()
        );
        safetensors(shard, spec.seed, &path.join(&name))?;
        for tensor in *shard {
            map.insert(tensor.name.clone(), Value::from(name.clone()));
        }
    }
    let text = |value: Value| format!("{value:#}\n");
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    for (name, value) in [
        ("config.json", spec.config()),
        ("diffusion_pytorch_model.safetensors.index.json", index),
    ] {
        let path = path.join(name);
        whole(&path, |mut to| {
            let written = to
                .write_all(text(value).as_bytes())
                .and_then(|()| to.flush());
            written.map_err(|source| SynthesizeError::File {
                path: path.clone(),
                source,
            })
        })?;
    }
    Ok(())
}
