//! Why a file is refused.

use std::path::PathBuf;

use crate::encoding::EncodingError;
use crate::source::SourceError;
use crate::swappable::SpecError;

use super::rules;

/// Why a GGUF file could not be read.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file cannot be opened or a read failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It is some other kind of file.
    #[error("{path} is no gguf file: its first bytes are {magic:02x?}", path = path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        magic: [u8; 4],
    },
    /// It was written for big-endian machines.
    #[error("{path} is a big-endian gguf file of version {version}: convert it to little-endian", path = path.display())]
    BigEndian {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It is of version 1, which was in use for two weeks of August 2023.
    #[error("{path} is a gguf file of version 1: convert it to version 3", path = path.display())]
    VersionOne {
        /// The file.
        path: PathBuf,
    },
    /// It is of a version that does not exist, or not yet.
    #[error("{path} is a gguf file of version {version}: only 2 and 3 are known", path = path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// The file ends within the header.
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
    /// The header goes on past the limit.
    #[error("{path} has a header of more than {limit} bytes: {what} needs {needed} bytes at {offset}", path = path.display())]
    HeaderTooLong {
        /// The file.
        path: PathBuf,
        /// What lies past the limit.
        what: &'static str,
        /// Where that begins.
        offset: u64,
        /// Bytes it needs.
        needed: u64,
        /// Bytes that a header may have.
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
    /// The header breaks a rule of the format.
    #[error("{path}, byte {offset}: {flaw}", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where the entry begins that breaks it.
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
}

/// The rule that a GGUF header breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Flaw {
    /// More entries than the rest of the file can hold.
    #[error("{count} {what} cannot lie in the {room} bytes that follow")]
    Count {
        /// Of what.
        what: &'static str,
        /// How many.
        count: u64,
        /// Bytes that follow.
        room: u64,
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
    /// A key or a tensor's name is empty.
    #[error("an empty {what}")]
    Empty {
        /// What the string is.
        what: &'static str,
    },
    /// A string is not UTF-8.
    #[error("a {what} that is not utf-8")]
    NotUtf8 {
        /// What the string is.
        what: &'static str,
    },
    /// A string has a character that it must not have: NUL, or in keys and names any control character.
    #[error("a {what} with the control character {character:?}")]
    Control {
        /// What the string is.
        what: &'static str,
        /// The character.
        character: char,
    },
    /// Two entries have one key.
    #[error("metadata key {key} stands twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// There is no such type of value.
    #[error("metadata {key} is of type {id}, which does not exist")]
    ValueType {
        /// The key.
        key: String,
        /// The type's id.
        id: u32,
    },
    /// A truth value is neither 0 nor 1.
    #[error("metadata {key} has the truth value {byte}")]
    Bool {
        /// The key.
        key: String,
        /// What it is instead.
        byte: u8,
    },
    /// An array is longer than the rest of the file.
    #[error("metadata {key} has an array of {len} elements, {room} bytes follow")]
    ArrayLength {
        /// The key.
        key: String,
        /// Its elements.
        len: u64,
        /// Bytes that follow.
        room: u64,
    },
    /// Arrays lie in arrays too deep.
    #[error("metadata {key} nests arrays deeper than {limit}")]
    ArrayDepth {
        /// The key.
        key: String,
        /// How deep they may.
        limit: usize,
    },
    /// `general.alignment` is no u32.
    #[error("general.alignment is of another type than u32")]
    AlignmentType,
    /// `general.alignment` is no power of two, or too large.
    #[error("general.alignment is {alignment}, not a power of two up to {limit}", limit = rules::MAX_ALIGNMENT)]
    Alignment {
        /// What it is.
        alignment: u32,
    },
    /// `comfy.gguf.orig_shape` is no array of 1 to 8 numbers of type i32, none negative.
    #[error("the original shape of tensor {tensor} is no array of 1 to 8 dimensions of type i32")]
    OrigShape {
        /// The tensor.
        tensor: String,
    },
    /// `comfy.gguf.orig_shape` has another number of elements than the tensor.
    #[error(
        "the original shape of tensor {tensor} is {orig_shape:?}, but {elements} elements are stored"
    )]
    OrigShapeElements {
        /// The tensor.
        tensor: String,
        /// Slowest axis first.
        orig_shape: Vec<u64>,
        /// Elements stored.
        elements: u64,
    },
    /// A tensor's name could be taken for a path that leads out of a folder.
    #[error("tensor name {name:?} reads as a path")]
    PathName {
        /// The name.
        name: String,
    },
    /// Two tensors have one name.
    #[error("tensor {name} stands twice")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// A tensor has too many dimensions.
    #[error("tensor {tensor} has {count} dimensions, at most {limit} are allowed", limit = rules::MAX_DIMENSIONS)]
    DimensionCount {
        /// The tensor.
        tensor: String,
        /// How many it has.
        count: u32,
    },
    /// A tensor's dimensions, those that are not 0, multiply to too many elements.
    #[error("tensor {tensor} of shape {shape:?} has more than {limit} elements", limit = rules::MAX_ELEMENTS)]
    Elements {
        /// The tensor.
        tensor: String,
        /// Slowest axis first.
        shape: Vec<u64>,
    },
    /// A tensor's shape cannot be stored in its encoding.
    #[error("tensor {tensor}: {reason}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// Why.
        reason: EncodingError,
    },
    /// A tensor is in a format that GGML removed.
    #[error("tensor {tensor} is of type {id}, {format}, which ggml removed")]
    RemovedType {
        /// The tensor.
        tensor: String,
        /// The type's id.
        id: u32,
        /// The format's name.
        format: &'static str,
    },
    /// A tensor is in a format that GGML never stores.
    #[error("tensor {tensor} is of type {id}, {format}, which never stands in files")]
    InternalType {
        /// The tensor.
        tensor: String,
        /// The type's id.
        id: u32,
        /// The format's name.
        format: &'static str,
    },
    /// A tensor is in a format that does not exist, or not yet.
    #[error("tensor {tensor} is of type {id}, which does not exist")]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// The type's id.
        id: u32,
    },
    /// A tensor's data does not begin at a multiple of the alignment.
    #[error("tensor {tensor} has offset {offset}, no multiple of {alignment}")]
    UnalignedOffset {
        /// The tensor.
        tensor: String,
        /// Its offset.
        offset: u64,
        /// The file's alignment.
        alignment: u32,
    },
    /// A tensor's data would end past 2^64.
    #[error("tensor {tensor} has {bytes} bytes at offset {offset}: that overflows 64 bits")]
    OffsetOverflow {
        /// The tensor.
        tensor: String,
        /// Its offset.
        offset: u64,
        /// Bytes of its data.
        bytes: u64,
    },
    /// Two tensors share bytes.
    #[error("tensor {second} begins at byte {begin}, before tensor {first} ends at {end}")]
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
