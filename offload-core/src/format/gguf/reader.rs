//! The reader: from a file to tensor descriptions.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::encoding::{Encoding, GgmlType};
use crate::source::{Source, SourceFile};
use crate::swappable::TensorSpec;

use super::header::Header;
use super::metadata::Metadata;
use super::rules::{self, MAX_DIMENSIONS, MAX_NAME_BYTES, MIN_METADATA_BYTES, MIN_TENSOR_BYTES};
use super::{Flaw, GgufError, MAGIC, Value};

/// An open GGUF file: its tensors, checked, and its metadata.
pub struct Gguf {
    file: Arc<SourceFile>,
    version: u32,
    metadata: Metadata,
    tensors: Vec<TensorSpec>,
    by_name: HashMap<String, usize>,
}

impl Gguf {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// When the file cannot be read or is not sound.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        Self::read(SourceFile::open(path)?)
    }

    /// Reads the header of an open file.
    ///
    /// # Errors
    /// When the file cannot be read or is not sound.
    pub fn read(file: Arc<SourceFile>) -> Result<Self, GgufError> {
        let mut header = Header::new(Arc::clone(&file));
        let version = read_version(&mut header)?;
        let tensor_count = header.u64("tensor count")?;
        let metadata_count = header.u64("metadata count")?;
        check_count(
            &header,
            "metadata entries",
            metadata_count,
            MIN_METADATA_BYTES,
        )?;
        check_count(&header, "tensors", tensor_count, MIN_TENSOR_BYTES)?;
        let metadata = Metadata::read(&mut header, metadata_count)?;
        check_count(&header, "tensors", tensor_count, MIN_TENSOR_BYTES)?;

        let mut infos = Vec::new();
        let mut by_name = HashMap::new();
        for index in 0..tensor_count {
            let info = Info::read(&mut header, metadata.alignment)?;
            match by_name.entry(info.name.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(usize::try_from(index).unwrap_or(usize::MAX));
                }
                Entry::Occupied(_) => {
                    let name = info.name;
                    return Err(header.flaw_at(info.begin, Flaw::DuplicateTensor { name }));
                }
            }
            infos.push(info);
        }
        let ranges = place(&header, &infos, metadata.alignment, file.len())?;
        let tensors = infos
            .into_iter()
            .zip(ranges)
            .map(|(info, range)| describe(&header, info, range, &metadata, &file))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            file,
            version,
            metadata,
            tensors,
            by_name,
        })
    }

    /// The format's version, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What tensors' offsets in the file are multiples of.
    #[must_use]
    pub fn alignment(&self) -> u32 {
        self.metadata.alignment
    }

    /// The tensors, in the order in which the header lists them.
    ///
    /// Each has the shape that it has in the model, slowest axis first: a `comfy.gguf.orig_shape` replaces the shape in
    /// which a tensor was quantised.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The tensor of that name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorSpec> {
        self.tensors.get(*self.by_name.get(name)?)
    }

    /// The metadata value of that key; `None` also for arrays, which are not kept.
    #[must_use]
    pub fn metadata(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// The file that the tensors' sources read from.
    #[must_use]
    pub fn file(&self) -> &Arc<SourceFile> {
        &self.file
    }
}

impl fmt::Debug for Gguf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gguf")
            .field("file", &self.file)
            .field("version", &self.version)
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}

fn read_version(header: &mut Header) -> Result<u32, GgufError> {
    let magic = header.bytes("magic")?;
    let path = header.path();
    if magic != MAGIC {
        return Err(GgufError::NotGguf { path, magic });
    }
    match header.u32("version")? {
        version @ (2 | 3) => Ok(version),
        1 => Err(GgufError::VersionOne { path }),
        // No version will ever be so high that its lower half is empty.
        swapped if swapped != 0 && swapped & 0xffff == 0 => Err(GgufError::BigEndian {
            path,
            version: swapped.swap_bytes(),
        }),
        version => Err(GgufError::UnknownVersion { path, version }),
    }
}

fn check_count(
    header: &Header,
    what: &'static str,
    count: u64,
    min_bytes: u64,
) -> Result<(), GgufError> {
    let room = header.room();
    match count.checked_mul(min_bytes) {
        Some(bytes) if bytes <= room => Ok(()),
        _ => Err(header.flaw_at(header.position(), Flaw::Count { what, count, room })),
    }
}

/// A tensor as the header lists it.
struct Info {
    /// Where the entry begins.
    begin: u64,
    name: String,
    /// Slowest axis first.
    shape: Vec<u64>,
    encoding: Encoding,
    elements: u64,
    bytes: u64,
    /// Multiple of the alignment, from the start of the data.
    offset: u64,
}

impl Info {
    fn read(header: &mut Header, alignment: u32) -> Result<Self, GgufError> {
        let begin = header.position();
        let name = header.string("tensor name", MAX_NAME_BYTES)?;
        rules::check_name(&name).map_err(|flaw| header.flaw_at(begin, flaw))?;
        let count = header.u32("dimension count")?;
        if count > MAX_DIMENSIONS {
            let tensor = name;
            return Err(header.flaw_at(begin, Flaw::DimensionCount { tensor, count }));
        }
        let mut shape = Vec::new();
        for _ in 0..count {
            shape.push(header.u64("dimension")?);
        }
        shape.reverse();
        let Some(elements) = rules::elements(&shape) else {
            let tensor = name;
            return Err(header.flaw_at(begin, Flaw::Elements { tensor, shape }));
        };

        let id = header.u32("tensor type")?;
        let tensor = || name.clone();
        let encoding = match Encoding::from_ggml_id(id) {
            GgmlType::Known(encoding) => Ok(encoding),
            GgmlType::Removed(format) => Err(Flaw::RemovedType {
                tensor: tensor(),
                id,
                format,
            }),
            GgmlType::Internal(format) => Err(Flaw::InternalType {
                tensor: tensor(),
                id,
                format,
            }),
            GgmlType::Unknown => Err(Flaw::UnknownType {
                tensor: tensor(),
                id,
            }),
        }
        .map_err(|flaw| header.flaw_at(begin, flaw))?;
        let bytes = encoding.bytes_of(&shape).map_err(|reason| {
            let tensor = tensor();
            header.flaw_at(begin, Flaw::Shape { tensor, reason })
        })?;

        let offset = header.u64("tensor offset")?;
        if !offset.is_multiple_of(u64::from(alignment)) {
            let flaw = Flaw::UnalignedOffset {
                tensor: name,
                offset,
                alignment,
            };
            return Err(header.flaw_at(begin, flaw));
        }
        Ok(Self {
            begin,
            name,
            shape,
            encoding,
            elements,
            bytes,
            offset,
        })
    }
}

/// Where in the file each tensor's bytes are: inside it and apart from each other.
fn place(
    header: &Header,
    infos: &[Info],
    alignment: u32,
    file_len: u64,
) -> Result<Vec<Range<u64>>, GgufError> {
    let alignment = u64::from(alignment);
    let data_begin = header.position().checked_next_multiple_of(alignment);
    // Where the file would end if padded: an empty tensor after the last byte may begin there.
    let padded_len = file_len.checked_next_multiple_of(alignment);
    let mut ranges = Vec::new();
    for info in infos {
        let range = data_begin
            .and_then(|begin| begin.checked_add(info.offset))
            .and_then(|begin| Some(begin..begin.checked_add(info.bytes)?));
        let Some(range) = range else {
            let flaw = Flaw::OffsetOverflow {
                tensor: info.name.clone(),
                offset: info.offset,
                bytes: info.bytes,
            };
            return Err(header.flaw_at(info.begin, flaw));
        };
        if range.end <= file_len {
            ranges.push(range);
        } else if info.bytes == 0 && Some(range.end) <= padded_len {
            ranges.push(file_len..file_len);
        } else {
            return Err(GgufError::DataTruncated {
                path: header.path(),
                tensor: info.name.clone(),
                begin: range.start,
                bytes: info.bytes,
                file_len,
            });
        }
    }
    check_apart(header, infos, &ranges)?;
    Ok(ranges)
}

fn check_apart(header: &Header, infos: &[Info], ranges: &[Range<u64>]) -> Result<(), GgufError> {
    let mut occupied: Vec<_> = infos
        .iter()
        .zip(ranges)
        .filter(|(_, range)| !range.is_empty())
        .collect();
    occupied.sort_by_key(|(_, range)| range.start);
    for pair in occupied.windows(2) {
        let &[(first, first_range), (second, second_range)] = pair else {
            continue;
        };
        if second_range.start < first_range.end {
            let flaw = Flaw::Overlap {
                first: first.name.clone(),
                end: first_range.end,
                second: second.name.clone(),
                begin: second_range.start,
            };
            return Err(header.flaw_at(second.begin, flaw));
        }
    }
    Ok(())
}

fn describe(
    header: &Header,
    info: Info,
    range: Range<u64>,
    metadata: &Metadata,
    file: &Arc<SourceFile>,
) -> Result<TensorSpec, GgufError> {
    let refused = |source| GgufError::Tensor {
        path: header.path(),
        source,
    };
    let source = Source::File {
        file: Arc::clone(file),
        range,
    };
    let orig_shape = metadata.orig_shapes.get(&info.name);
    let spec = TensorSpec::new(info.name, info.shape, info.encoding, source).map_err(refused)?;
    let Some((begin, orig_shape)) = orig_shape else {
        return Ok(spec);
    };
    if rules::elements(orig_shape) != Some(info.elements) {
        let flaw = Flaw::OrigShapeElements {
            tensor: spec.name().to_owned(),
            orig_shape: orig_shape.clone(),
            elements: info.elements,
        };
        return Err(header.flaw_at(*begin, flaw));
    }
    spec.with_shape(orig_shape.clone()).map_err(refused)
}
