//! Builds GGUF files byte by byte, sound or not, without the library's writer.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]

use std::io::Write;

use offload_core::format::gguf::{Gguf, GgufError};

pub const U8: u32 = 0;
pub const U32: u32 = 4;
pub const I32: u32 = 5;
pub const BOOL: u32 = 7;
pub const STRING: u32 = 8;
pub const ARRAY: u32 = 9;
pub const U64: u32 = 10;

/// Values that lengths and counts overflow with.
pub const HUGE: [u64; 12] = [
    1 << 20,
    1 << 30,
    1 << 31,
    1 << 32,
    1 << 40,
    1 << 60,
    (1 << 61) + 1,
    (1 << 62) + 1,
    1 << 63,
    u64::MAX - 31,
    u64::MAX - 1,
    u64::MAX,
];

/// Entries of a header, and what is claimed of them.
#[derive(Clone)]
pub struct Raw {
    pub version: u32,
    pub metadata: Vec<Vec<u8>>,
    pub tensors: Vec<Vec<u8>>,
    pub metadata_count: Option<u64>,
    pub tensor_count: Option<u64>,
    pub alignment: usize,
    pub data_bytes: usize,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            version: 3,
            metadata: Vec::new(),
            tensors: Vec::new(),
            metadata_count: None,
            tensor_count: None,
            alignment: 32,
            data_bytes: 256,
        }
    }
}

pub fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

pub fn entry(key: impl AsRef<[u8]>, type_id: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    [&string(key), &type_id.to_le_bytes()[..], value.as_ref()].concat()
}

pub fn array(type_id: u32, len: u64, elements: impl AsRef<[u8]>) -> Vec<u8> {
    [
        &type_id.to_le_bytes()[..],
        &len.to_le_bytes(),
        elements.as_ref(),
    ]
    .concat()
}

/// A tensor entry; `dims` fastest axis first.
pub fn tensor(name: impl AsRef<[u8]>, dims: &[u64], type_id: u32, offset: u64) -> Vec<u8> {
    let mut entry = string(name);
    entry.extend((dims.len() as u32).to_le_bytes());
    entry.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
    entry.extend(type_id.to_le_bytes());
    entry.extend(offset.to_le_bytes());
    entry
}

pub fn orig_shape(name: &str, dims: &[i32]) -> Vec<u8> {
    let elements: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    entry(
        format!("comfy.gguf.orig_shape.{name}"),
        ARRAY,
        array(I32, dims.len() as u64, elements),
    )
}

/// A sound file with a tensor `a` of 64 numbers.
pub fn one_tensor() -> Raw {
    Raw::default().tensor(tensor("a", &[32, 2], 0, 0))
}

impl Raw {
    pub fn metadata(mut self, entry: Vec<u8>) -> Self {
        self.metadata.push(entry);
        self
    }

    pub fn tensor(mut self, entry: Vec<u8>) -> Self {
        self.tensors.push(entry);
        self
    }

    pub fn data_bytes(self, data_bytes: usize) -> Self {
        Self { data_bytes, ..self }
    }

    /// Also says so in the metadata.
    pub fn alignment(self, alignment: u32) -> Self {
        let alignment_entry = entry("general.alignment", U32, alignment.to_le_bytes());
        Self {
            alignment: alignment as usize,
            ..self.metadata(alignment_entry)
        }
    }

    pub fn header(&self) -> Vec<u8> {
        let tensor_count = self.tensor_count.unwrap_or(self.tensors.len() as u64);
        let metadata_count = self.metadata_count.unwrap_or(self.metadata.len() as u64);
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(tensor_count.to_le_bytes());
        bytes.extend(metadata_count.to_le_bytes());
        bytes.extend(self.metadata.concat());
        bytes.extend(self.tensors.concat());
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header();
        if !self.tensors.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        }
        bytes.resize(bytes.len() + self.data_bytes, 0);
        bytes
    }

    pub fn open(&self) -> Result<Gguf, GgufError> {
        open(&self.bytes())
    }
}

/// Opens a file of these bytes.
pub fn open(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let mut file = tempfile::NamedTempFile::new().expect("a place for temporary files");
    file.write_all(bytes).expect("a file can be written");
    Gguf::open(file.path())
}

/// What went wrong, in words; panics if nothing did.
pub fn refusal(raw: &Raw) -> String {
    match raw.open() {
        Ok(gguf) => panic!("opened: {:?}", gguf.tensors()),
        Err(error) => error.to_string(),
    }
}
