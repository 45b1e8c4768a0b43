//! The header of one file: its metadata, and its tensors checked against each other and the file.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap, btree_map};
use std::sync::Arc;

use crate::source::{Source, SourceFile};
use crate::swappable::TensorSpec;

use super::entry::Entry;
use super::json::{Defect, Json, Parsed};
use super::rules::MAX_HEADER_BYTES;
use super::{Flaw, LENGTH_BYTES, METADATA_KEY, SafetensorsError};

/// What one file holds.
pub(super) struct Contents {
    pub(super) metadata: BTreeMap<String, String>,
    /// In the order in which the header lists them.
    pub(super) tensors: Vec<TensorSpec>,
    pub(super) by_name: HashMap<String, usize>,
}

impl Contents {
    pub(super) fn read(file: &Arc<SourceFile>) -> Result<Self, SafetensorsError> {
        let (header, data_begin) = {
            let bytes = read_bytes(file)?;
            let text = read_text(file, &bytes, LENGTH_BYTES, "header")?;
            let header = Header::parse(text).map_err(|defect| malformed(file, defect))?;
            (header, LENGTH_BYTES.saturating_add(bytes.len() as u64))
        };
        check_places(file, &header.entries, data_begin)?;
        let tensors = header
            .entries
            .into_iter()
            .map(|entry| describe(file, entry, data_begin))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            metadata: header.metadata,
            tensors,
            by_name: header.by_name,
        })
    }
}

/// The header's bytes.
fn read_bytes(file: &SourceFile) -> Result<Vec<u8>, SafetensorsError> {
    let file_len = file.len();
    let truncated = |what, offset, needed| SafetensorsError::Truncated {
        path: file.path().to_path_buf(),
        what,
        offset,
        needed,
        file_len,
    };
    let Some(room) = file_len.checked_sub(LENGTH_BYTES) else {
        return Err(truncated("the header's length", 0, LENGTH_BYTES));
    };
    let mut len = [0; LENGTH_BYTES as usize];
    file.read_exact_at(&mut len, 0)?;
    let len = u64::from_le_bytes(len);
    check_len(file, "a header", len)?;
    if len > room {
        return Err(truncated("the header", LENGTH_BYTES, len));
    }
    read_all(file, LENGTH_BYTES, len)
}

/// Refuses a header or an index that is too long.
pub(super) fn check_len(
    file: &SourceFile,
    what: &'static str,
    len: u64,
) -> Result<(), SafetensorsError> {
    if len <= MAX_HEADER_BYTES {
        return Ok(());
    }
    Err(SafetensorsError::HeaderTooLong {
        path: file.path().to_path_buf(),
        what,
        len,
        limit: MAX_HEADER_BYTES,
    })
}

/// `len` bytes that are known to be there.
pub(super) fn read_all(
    file: &SourceFile,
    offset: u64,
    len: u64,
) -> Result<Vec<u8>, SafetensorsError> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The bytes, which begin at `offset`, as text that begins with an object.
pub(super) fn read_text<'a>(
    file: &SourceFile,
    bytes: &'a [u8],
    offset: u64,
    what: &'static str,
) -> Result<&'a str, SafetensorsError> {
    let text = str::from_utf8(bytes).map_err(|error| SafetensorsError::Malformed {
        path: file.path().to_path_buf(),
        offset: offset.saturating_add(error.valid_up_to() as u64),
        flaw: Flaw::NotUtf8 { what },
    })?;
    if text.starts_with('{') {
        return Ok(text);
    }
    Err(SafetensorsError::Malformed {
        path: file.path().to_path_buf(),
        offset,
        flaw: Flaw::Json {
            expected: "an object, without anything before it",
            found: text.chars().next(),
        },
    })
}

fn malformed(file: &SourceFile, defect: Defect) -> SafetensorsError {
    SafetensorsError::Malformed {
        path: file.path().to_path_buf(),
        offset: LENGTH_BYTES.saturating_add(defect.at as u64),
        flaw: defect.flaw,
    }
}

/// A header as it stands there: each tensor sound by itself, none compared with others but by name.
#[derive(Default)]
struct Header {
    metadata: BTreeMap<String, String>,
    entries: Vec<Entry>,
    by_name: HashMap<String, usize>,
}

impl Header {
    fn parse(text: &str) -> Parsed<Self> {
        let mut header = Self::default();
        let mut has_metadata = false;
        let mut json = Json::new(text);
        json.object("an object", |json, at, key| {
            if key != METADATA_KEY {
                return header.read_tensor(json, at, key.into_owned());
            }
            if has_metadata {
                let (what, key) = ("the header", key.into_owned());
                let flaw = Flaw::DuplicateKey { what, key };
                return Err(Defect { at, flaw });
            }
            has_metadata = true;
            header.read_metadata(json)
        })?;
        json.end()?;
        Ok(header)
    }

    fn read_tensor(&mut self, json: &mut Json<'_>, at: usize, name: String) -> Parsed<()> {
        match self.by_name.entry(name) {
            Slot::Occupied(taken) => {
                let name = taken.key().clone();
                let flaw = Flaw::DuplicateTensor { name };
                Err(Defect { at, flaw })
            }
            Slot::Vacant(free) => {
                let entry = Entry::read(json, at, free.key().clone())?;
                free.insert(self.entries.len());
                self.entries.push(entry);
                Ok(())
            }
        }
    }

    fn read_metadata(&mut self, json: &mut Json<'_>) -> Parsed<()> {
        json.object("metadata, an object", |json, at, key| {
            match self.metadata.entry(key.into_owned()) {
                btree_map::Entry::Occupied(taken) => {
                    let (what, key) = ("the metadata", taken.key().clone());
                    let flaw = Flaw::DuplicateKey { what, key };
                    Err(Defect { at, flaw })
                }
                btree_map::Entry::Vacant(free) => {
                    free.insert(json.string("metadata, a string")?.into_owned());
                    Ok(())
                }
            }
        })
    }
}

/// Fails unless the tensors cover the data: from its start, each byte once, to the end of the file.
fn check_places(
    file: &SourceFile,
    entries: &[Entry],
    data_begin: u64,
) -> Result<(), SafetensorsError> {
    let file_len = file.len();
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by_key(|entry| (entry.begin, entry.end));
    let mut covered = 0;
    let mut last: Option<&Entry> = None;
    for entry in &sorted {
        let flaw = match last {
            Some(last) if entry.begin < covered => Flaw::Overlap {
                first: last.name.clone(),
                end: covered,
                second: entry.name.clone(),
                begin: entry.begin,
            },
            _ if entry.begin != covered => Flaw::Hole {
                tensor: entry.name.clone(),
                begin: entry.begin,
                end: covered,
            },
            _ => {
                covered = entry.end;
                last = Some(entry);
                continue;
            }
        };
        let defect = Defect { at: entry.at, flaw };
        return Err(malformed(file, defect));
    }
    let room = file_len.saturating_sub(data_begin);
    if let Some(entry) = sorted.iter().find(|entry| entry.end > room) {
        return Err(SafetensorsError::DataTruncated {
            path: file.path().to_path_buf(),
            tensor: entry.name.clone(),
            begin: data_begin.saturating_add(entry.begin),
            bytes: entry.end.saturating_sub(entry.begin),
            file_len,
        });
    }
    if covered < room {
        return Err(SafetensorsError::TrailingData {
            path: file.path().to_path_buf(),
            data_end: data_begin.saturating_add(covered),
            file_len,
        });
    }
    Ok(())
}

/// A tensor of a file that holds its data.
fn describe(
    file: &Arc<SourceFile>,
    entry: Entry,
    data_begin: u64,
) -> Result<TensorSpec, SafetensorsError> {
    let at = |offset: u64| data_begin.saturating_add(offset);
    let source = Source::File {
        file: Arc::clone(file),
        range: at(entry.begin)..at(entry.end),
    };
    TensorSpec::new(entry.name, entry.shape, entry.encoding, source).map_err(|source| {
        SafetensorsError::Tensor {
            path: file.path().to_path_buf(),
            source,
        }
    })
}
