//! The index of a model in shards: which tensor is in which file.

use std::collections::{BTreeMap, HashSet, btree_map};

use crate::source::SourceFile;

use super::header::{check_len, read_all, read_text};
use super::json::{Defect, Json, Parsed, check_new};
use super::rules;
use super::{Flaw, LENGTH_BYTES, SafetensorsError};

/// An index as it stands there; whether its shards agree is not known yet.
pub(super) struct Index {
    /// Names of files in the index's folder, in order.
    pub(super) shards: Vec<String>,
    /// By tensor: which shard it is in.
    pub(super) weight_map: BTreeMap<String, usize>,
}

/// Whether the file is JSON rather than a safetensors file: it begins with `{`, and not with a header's length, whose
/// upper bytes are 0.
pub(super) fn is_index(file: &SourceFile) -> Result<bool, SafetensorsError> {
    let begin = read_all(file, 0, file.len().min(LENGTH_BYTES))?;
    Ok(begin.first() == Some(&b'{') && !begin.contains(&0))
}

impl Index {
    pub(super) fn read(file: &SourceFile) -> Result<Self, SafetensorsError> {
        check_len(file, "an index", file.len())?;
        let bytes = read_all(file, 0, file.len())?;
        let text = read_text(file, &bytes, 0, "index")?;
        Self::parse(text).map_err(|defect| SafetensorsError::Malformed {
            path: file.path().to_path_buf(),
            offset: defect.at as u64,
            flaw: defect.flaw,
        })
    }

    fn parse(text: &str) -> Parsed<Self> {
        let mut map = None;
        let mut keys = HashSet::new();
        let mut json = Json::new(text);
        json.object("an object", |json, at, key| {
            if key == "weight_map" {
                map = Some(Map::read(json)?);
            } else {
                json.skip()?;
            }
            check_new("the index", &mut keys, at, key)
        })?;
        json.end()?;
        match map {
            Some(map) => Ok(map.sorted()),
            None => Err(Defect {
                at: 0,
                flaw: Flaw::NoWeightMap,
            }),
        }
    }
}

/// The weight map, its shards numbered as they come.
#[derive(Default)]
struct Map {
    shards: BTreeMap<String, usize>,
    tensors: BTreeMap<String, usize>,
}

impl Map {
    fn read(json: &mut Json<'_>) -> Parsed<Self> {
        let mut map = Self::default();
        json.object("a weight_map, an object", |json, at, name| {
            rules::check_name(&name).map_err(|flaw| Defect { at, flaw })?;
            match map.tensors.entry(name.into_owned()) {
                btree_map::Entry::Occupied(taken) => {
                    let name = taken.key().clone();
                    let flaw = Flaw::DuplicateTensor { name };
                    Err(Defect { at, flaw })
                }
                btree_map::Entry::Vacant(free) => {
                    let at = json.token();
                    let shard = json.string("a file's name, a string")?;
                    rules::check_shard_name(&shard).map_err(|flaw| Defect { at, flaw })?;
                    let next = map.shards.len();
                    free.insert(match map.shards.get(&*shard) {
                        Some(&known) => known,
                        None => *map.shards.entry(shard.into_owned()).or_insert(next),
                    });
                    Ok(())
                }
            }
        })?;
        Ok(map)
    }

    /// The same with the shards numbered by name.
    fn sorted(mut self) -> Index {
        let mut places = vec![0; self.shards.len()];
        for (place, &number) in self.shards.values().enumerate() {
            if let Some(slot) = places.get_mut(number) {
                *slot = place;
            }
        }
        for number in self.tensors.values_mut() {
            *number = places.get(*number).copied().unwrap_or(0);
        }
        Index {
            shards: self.shards.into_keys().collect(),
            weight_map: self.tensors,
        }
    }
}
