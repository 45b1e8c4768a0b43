//! Why a file is refused.

use std::fmt;
use std::path::PathBuf;

use crate::encoding::{Encoding, EncodingError};
use crate::source::SourceError;
use crate::swappable::SpecError;

use super::rules;

/// Why a safetensors file, or a model in shards, could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// A file cannot be opened or a read failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The file ends within its header.
    #[error("{path} ends at byte {file_len}: {what} needs {needed} bytes at {offset}", path = path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is cut off.
        what: &'static str,
        /// Where that begins.
        offset: u64,
        /// Bytes it needs.
        needed: u64,
        /// Bytes of the file.
        file_len: u64,
    },
    /// The header, or the index, is longer than allowed.
    #[error("{path} has {what} of {len} bytes, at most {limit} are allowed", path = path.display())]
    HeaderTooLong {
        /// The file.
        path: PathBuf,
        /// What is too long.
        what: &'static str,
        /// Its bytes.
        len: u64,
        /// Bytes it may have.
        limit: u64,
    },
    /// The file ends before a tensor's data does.
    #[error("{path} ends at byte {file_len}: tensor {tensor} has {bytes} bytes at {begin}", path = path.display())]
    DataTruncated {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Where its data begins.
        begin: u64,
        /// Bytes of its data.
        bytes: u64,
        /// Bytes of the file.
        file_len: u64,
    },
    /// The file goes on after the last tensor's data.
    #[error("{path} goes on to byte {file_len}, its tensors end at {data_end}", path = path.display())]
    TrailingData {
        /// The file.
        path: PathBuf,
        /// Where the last tensor's data ends.
        data_end: u64,
        /// Bytes of the file.
        file_len: u64,
    },
    /// The header, or the index, breaks a rule of the format.
    #[error("{path}, byte {offset}: {flaw}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where the entry or the value begins that breaks it.
        offset: u64,
        /// Which rule.
        flaw: Flaw,
    },
    /// A tensor's description was refused.
    #[error("{path}", path = path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SpecError,
    },
    /// Files that an index names are not there.
    #[error("{path} lacks {} that it names: {}", Counted(shards.len(), "shard"), Listed(shards), path = path.display())]
    MissingShards {
        /// The index.
        path: PathBuf,
        /// The names that it has for them.
        shards: Vec<String>,
    },
    /// A tensor is not in the shard in which the index has it.
    #[error("{path} has tensor {tensor} in {shard}, which lacks it", path = path.display())]
    MissingTensor {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A shard has a tensor that the index lacks.
    #[error("{path} lacks tensor {tensor}, which is in {shard}", path = path.display())]
    UnlistedTensor {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// Two shards have a tensor of one name.
    #[error("{path}: tensor {tensor} is in {first} and in {second}", path = path.display())]
    DuplicateTensor {
        /// The index.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard that has it first.
        first: String,
        /// The other one.
        second: String,
    },
}

/// The rule that a header or an index breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// The bytes are not UTF-8 from here on.
    #[error("the {what} is not utf-8")]
    NotUtf8 {
        /// What they are.
        what: &'static str,
    },
    /// It is not JSON, or a value is of another kind than the format has there.
    #[error("expected {expected}, found {}", Found(*found))]
    Json {
        /// What should be there.
        expected: &'static str,
        /// What is there; `None` at the end.
        found: Option<char>,
    },
    /// Two members of an object have one key.
    #[error("key {key:?} stands twice in {what}")]
    DuplicateKey {
        /// The object.
        what: &'static str,
        /// The key.
        key: String,
    },
    /// Two tensors have one name.
    #[error("tensor {name} stands twice")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// Values lie in values too deep.
    #[error("values lie deeper than {limit} in one another")]
    Depth {
        /// How deep they may.
        limit: usize,
    },
    /// A string is longer than any reader needs.
    #[error("a {what} of {len} bytes, at most {limit} are allowed")]
    StringLength {
        /// What the string is.
        what: &'static str,
        /// Its bytes.
        len: u64,
        /// Bytes it may have.
        limit: u64,
    },
    /// A name is empty.
    #[error("an empty {what}")]
    Empty {
        /// What the string is.
        what: &'static str,
    },
    /// A name has a control character.
    #[error("a {what} with the control character {character:?}")]
    Control {
        /// What the string is.
        what: &'static str,
        /// The character.
        character: char,
    },
    /// A tensor's name could be taken for a path that leads out of a folder.
    #[error("tensor name {name:?} reads as a path")]
    PathName {
        /// The name.
        name: String,
    },
    /// A shard's name is more than the name of a file in the index's folder.
    #[error("shard name {shard:?} is no plain file name")]
    ShardPath {
        /// The name.
        shard: String,
    },
    /// A number is negative, has a fraction or an exponent, or does not fit 64 bits.
    #[error("{what} is {number}, no whole number from 0 to 2^64 - 1")]
    Number {
        /// What it is.
        what: &'static str,
        /// The number as it stands there, its first 40 characters.
        number: String,
    },
    /// A tensor lacks a field.
    #[error("tensor {tensor} has no {field}")]
    MissingField {
        /// The tensor.
        tensor: String,
        /// The field.
        field: &'static str,
    },
    /// The index has no `weight_map`.
    #[error("the json has no weight_map: it is no index of shards")]
    NoWeightMap,
    /// A tensor has too many dimensions.
    #[error("tensor {tensor} has more than {limit} dimensions", limit = rules::MAX_DIMENSIONS)]
    DimensionCount {
        /// The tensor.
        tensor: String,
    },
    /// A tensor's numbers are of less than a byte.
    #[error("tensor {tensor} is of dtype {dtype}: numbers of less than a byte are not supported")]
    SubByteDtype {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: String,
    },
    /// A tensor's dtype does not exist, or not yet.
    #[error("tensor {tensor} is of dtype {dtype:?}, which does not exist")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// Its dtype, the first 40 characters.
        dtype: String,
    },
    /// A tensor's shape has too many elements or bytes.
    #[error("tensor {tensor}: {reason}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Why.
        reason: EncodingError,
    },
    /// A tensor ends before it begins.
    #[error("tensor {tensor} has offsets {begin} to {end}")]
    Backwards {
        /// The tensor.
        tensor: String,
        /// Its first offset.
        begin: u64,
        /// Its second.
        end: u64,
    },
    /// A tensor has another number of bytes than its shape and dtype need.
    #[error(
        "tensor {tensor}: shape {shape:?} in {encoding} needs {needed_bytes} bytes, its offsets have {bytes}"
    )]
    Length {
        /// The tensor.
        tensor: String,
        /// Slowest axis first.
        shape: Vec<u64>,
        /// Its dtype.
        encoding: Encoding,
        /// Bytes that they need.
        needed_bytes: u64,
        /// Bytes between its offsets.
        bytes: u64,
    },
    /// Bytes before a tensor belong to none.
    #[error("tensor {tensor} begins at offset {begin}, but the tensors before it end at {end}")]
    Hole {
        /// The tensor.
        tensor: String,
        /// Where it begins.
        begin: u64,
        /// Where those before it end.
        end: u64,
    },
    /// Two tensors share bytes.
    #[error("tensor {second} begins at offset {begin}, before tensor {first} ends at {end}")]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// Where it ends.
        end: u64,
        /// The other.
        second: String,
        /// Where that begins.
        begin: u64,
    },
}

struct Found(Option<char>);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(character) => write!(f, "{character:?}"),
            None => f.write_str("the end"),
        }
    }
}

struct Counted(usize, &'static str);

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{plural}", self.0, self.1)
    }
}

/// Names, the first few of many.
struct Listed<'a>(&'a [String]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        let shown: Vec<_> = self.0.iter().take(SHOWN).map(String::as_str).collect();
        f.write_str(&shown.join(", "))?;
        if self.0.len() > SHOWN {
            f.write_str(", ...")?;
        }
        Ok(())
    }
}
