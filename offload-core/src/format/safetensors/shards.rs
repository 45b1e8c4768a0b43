//! A model in shards: the index and its files hold each other to account.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::source::{SourceError, SourceFile};

use super::SafetensorsError;
use super::header::Contents;
use super::index::Index;

/// Opens every shard of an index and checks that they hold the tensors that it lists, and no others.
///
/// Where shards differ in a key of their metadata, the first has it.
pub(super) fn read(
    index_file: &SourceFile,
) -> Result<(Vec<Arc<SourceFile>>, Contents), SafetensorsError> {
    let index = Index::read(index_file)?;
    let files = open(index_file.path(), &index)?;
    let mut all = Contents {
        metadata: Default::default(),
        tensors: Vec::new(),
        by_name: HashMap::new(),
    };
    // By tensor: which shard has it.
    let mut found: Vec<usize> = Vec::new();
    for (shard, file) in files.iter().enumerate() {
        let contents = Contents::read(file)?;
        for (key, value) in contents.metadata {
            all.metadata.entry(key).or_insert(value);
        }
        for tensor in contents.tensors {
            match all.by_name.entry(tensor.name().to_owned()) {
                Slot::Vacant(free) => free.insert(all.tensors.len()),
                Slot::Occupied(taken) => {
                    let first = found.get(*taken.get()).copied().unwrap_or(0);
                    return Err(SafetensorsError::DuplicateTensor {
                        path: index_file.path().to_path_buf(),
                        tensor: tensor.name().to_owned(),
                        first: index.shard(first),
                        second: index.shard(shard),
                    });
                }
            };
            if !index.weight_map.contains_key(tensor.name()) {
                return Err(SafetensorsError::UnlistedTensor {
                    path: index_file.path().to_path_buf(),
                    tensor: tensor.name().to_owned(),
                    shard: index.shard(shard),
                });
            }
            found.push(shard);
            all.tensors.push(tensor);
        }
    }
    let lacking = index.weight_map.iter().find(|(name, shard)| {
        let place = all.by_name.get(*name);
        place.and_then(|&place| found.get(place)) != Some(*shard)
    });
    if let Some((name, &shard)) = lacking {
        return Err(SafetensorsError::MissingTensor {
            path: index_file.path().to_path_buf(),
            tensor: name.clone(),
            shard: index.shard(shard),
        });
    }
    Ok((files, all))
}

/// The shards' files, which lie beside the index under whatever name it was opened by, links included.
fn open(path: &Path, index: &Index) -> Result<Vec<Arc<SourceFile>>, SafetensorsError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut files = Vec::new();
    let mut shards = Vec::new();
    for shard in &index.shards {
        match SourceFile::open(folder.join(shard)) {
            Ok(file) => files.push(file),
            Err(SourceError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                shards.push(shard.clone());
            }
            Err(error) => return Err(error.into()),
        }
    }
    if shards.is_empty() {
        return Ok(files);
    }
    Err(SafetensorsError::MissingShards {
        path: path.to_path_buf(),
        shards,
    })
}

impl Index {
    fn shard(&self, number: usize) -> String {
        self.shards.get(number).cloned().unwrap_or_default()
    }
}
