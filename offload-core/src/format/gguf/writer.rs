//! The writer.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, Write};

use bytes::Bytes;

use crate::encoding::Encoding;

use super::rules::{self, MAX_DIMENSIONS, MAX_STRING_BYTES};
use super::value;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Flaw, MAGIC, Value};

/// Why a GGUF file could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The file would break a rule of the format.
    #[error("cannot write a gguf file: {0}")]
    Flaw(Flaw),
    /// GGUF has no such encoding.
    #[error("tensor {tensor}: gguf has no {encoding}")]
    NoSuchType {
        /// The tensor.
        tensor: String,
        /// Its encoding.
        encoding: Encoding,
    },
    /// A tensor's bytes are not those that its shape needs.
    #[error("tensor {tensor} needs {needed_bytes} bytes, {given_bytes} were given")]
    Length {
        /// The tensor.
        tensor: String,
        /// Bytes that shape and encoding need.
        needed_bytes: u64,
        /// Bytes given.
        given_bytes: u64,
    },
    /// The key is the writer's own.
    #[error("metadata {key} is set by the writer")]
    ReservedKey {
        /// The key.
        key: String,
    },
    /// Writing failed.
    #[error("cannot write a gguf file")]
    Io(#[from] io::Error),
}

impl From<Flaw> for WriteError {
    fn from(flaw: Flaw) -> Self {
        Self::Flaw(flaw)
    }
}

type Produce<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

enum Data<'a> {
    Memory(Bytes),
    Produced(Produce<'a>),
}

enum Entry {
    Scalar(Value),
    I32Array(Vec<i32>),
}

struct Tensor<'a> {
    name: String,
    shape: Vec<u64>,
    encoding: Encoding,
    data: Data<'a>,
}

/// A GGUF file in the making: version 3, alignment 32, data in the order of the tensors.
///
/// ```
/// use offload_core::encoding::Encoding;
/// use offload_core::format::gguf::Writer;
///
/// let mut writer = Writer::new();
/// writer
///     .metadata("general.architecture", "wan")
///     .tensor("norm.weight", [2], Encoding::F32, vec![0; 8]);
/// let mut file = Vec::new();
/// writer.write_to(&mut file)?;
/// # Ok::<(), offload_core::format::gguf::WriteError>(())
/// ```
#[derive(Default)]
#[must_use = "nothing is written before `write_to`"]
pub struct Writer<'a> {
    metadata: Vec<(String, Entry)>,
    tensors: Vec<Tensor<'a>>,
}

impl<'a> Writer<'a> {
    /// A file without metadata or tensors.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a scalar or a string.
    pub fn metadata(&mut self, key: impl Into<String>, value: impl Into<Value>) -> &mut Self {
        let entry = Entry::Scalar(value.into());
        self.metadata.push((key.into(), entry));
        self
    }

    /// Adds an array of i32, such as `comfy.gguf.orig_shape.<tensor>`.
    pub fn metadata_i32_array(
        &mut self,
        key: impl Into<String>,
        values: impl Into<Vec<i32>>,
    ) -> &mut Self {
        let entry = Entry::I32Array(values.into());
        self.metadata.push((key.into(), entry));
        self
    }

    /// Adds a tensor of `shape` (slowest axis first, as in torch) and its encoded bytes.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        shape: impl Into<Vec<u64>>,
        encoding: Encoding,
        encoded: impl Into<Bytes>,
    ) -> &mut Self {
        self.push(
            name.into(),
            shape.into(),
            encoding,
            Data::Memory(encoded.into()),
        )
    }

    /// Adds a tensor whose encoded bytes `produce` writes when their turn comes, so that they need not all be in
    /// memory.
    pub fn tensor_with(
        &mut self,
        name: impl Into<String>,
        shape: impl Into<Vec<u64>>,
        encoding: Encoding,
        produce: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> &mut Self {
        let data = Data::Produced(Box::new(produce));
        self.push(name.into(), shape.into(), encoding, data)
    }

    fn push(
        &mut self,
        name: String,
        shape: Vec<u64>,
        encoding: Encoding,
        data: Data<'a>,
    ) -> &mut Self {
        self.tensors.push(Tensor {
            name,
            shape,
            encoding,
            data,
        });
        self
    }

    /// Writes the file in small pieces: hand it a [`BufWriter`](io::BufWriter) for a file.
    ///
    /// # Errors
    /// When [`Gguf`](super::Gguf) would refuse the file, before anything is written; when a producer writes another
    /// number of bytes than its tensor has, or writing fails, after some was.
    pub fn write_to(self, mut to: impl Write) -> Result<(), WriteError> {
        let (header, sizes) = self.header()?;
        to.write_all(&header)?;
        for (tensor, needed_bytes) in self.tensors.into_iter().zip(sizes) {
            let mut counted = Counted {
                to: &mut to,
                bytes: 0,
            };
            match tensor.data {
                Data::Memory(bytes) => counted.write_all(&bytes)?,
                Data::Produced(produce) => produce(&mut counted)?,
            }
            let given_bytes = counted.bytes;
            if given_bytes != needed_bytes {
                return Err(WriteError::Length {
                    tensor: tensor.name,
                    needed_bytes,
                    given_bytes,
                });
            }
            to.write_all(padding(needed_bytes))?;
        }
        to.flush()?;
        Ok(())
    }

    /// The header, padded, and the bytes of each tensor.
    fn header(&self) -> Result<(Vec<u8>, Vec<u64>), WriteError> {
        let mut header = Vec::new();
        header.extend(MAGIC);
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        self.put_metadata(&mut header)?;
        let sizes = self.put_tensors(&mut header)?;
        if !self.tensors.is_empty() {
            header.extend(padding(header.len() as u64));
        }
        Ok((header, sizes))
    }

    fn put_metadata(&self, header: &mut Vec<u8>) -> Result<(), WriteError> {
        let mut keys = HashSet::new();
        for (key, entry) in &self.metadata {
            rules::check_key(key)?;
            if key == ALIGNMENT_KEY {
                return Err(WriteError::ReservedKey { key: key.clone() });
            }
            if !keys.insert(key) {
                return Err(Flaw::DuplicateKey { key: key.clone() }.into());
            }
            put_string(header, key);
            match entry {
                Entry::Scalar(value) => {
                    check_value(value)?;
                    header.extend(value.type_id().to_le_bytes());
                    put_value(header, value);
                }
                Entry::I32Array(values) => {
                    header.extend(value::ARRAY.to_le_bytes());
                    header.extend(value::I32.to_le_bytes());
                    header.extend((values.len() as u64).to_le_bytes());
                    header.extend(values.iter().flat_map(|n| n.to_le_bytes()));
                }
            }
        }
        Ok(())
    }

    fn put_tensors(&self, header: &mut Vec<u8>) -> Result<Vec<u64>, WriteError> {
        let mut names = HashSet::new();
        let mut sizes = Vec::new();
        let mut offset = 0u64;
        for tensor in &self.tensors {
            if !names.insert(&tensor.name) {
                let name = tensor.name.clone();
                return Err(Flaw::DuplicateTensor { name }.into());
            }
            let (ggml_id, bytes) = tensor.check()?;
            put_string(header, &tensor.name);
            header.extend((tensor.shape.len() as u32).to_le_bytes());
            header.extend(tensor.shape.iter().rev().flat_map(|dim| dim.to_le_bytes()));
            header.extend(ggml_id.to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset = offset
                .checked_add(bytes)
                .and_then(|end| end.checked_next_multiple_of(u64::from(DEFAULT_ALIGNMENT)))
                .ok_or_else(|| Flaw::OffsetOverflow {
                    tensor: tensor.name.clone(),
                    offset,
                    bytes,
                })?;
            sizes.push(bytes);
        }
        Ok(sizes)
    }
}

impl fmt::Debug for Writer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer")
            .field("metadata", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

impl Tensor<'_> {
    /// The encoding's id and the tensor's bytes, if a reader would take it.
    fn check(&self) -> Result<(u32, u64), WriteError> {
        let tensor = || self.name.clone();
        rules::check_name(&self.name)?;
        let count = u32::try_from(self.shape.len()).unwrap_or(u32::MAX);
        if count > MAX_DIMENSIONS {
            let tensor = tensor();
            return Err(Flaw::DimensionCount { tensor, count }.into());
        }
        if rules::elements(&self.shape).is_none() {
            let (tensor, shape) = (tensor(), self.shape.clone());
            return Err(Flaw::Elements { tensor, shape }.into());
        }
        let needed_bytes = self.encoding.bytes_of(&self.shape).map_err(|reason| {
            let tensor = tensor();
            Flaw::Shape { tensor, reason }
        })?;
        let ggml_id = self
            .encoding
            .ggml_id()
            .ok_or_else(|| WriteError::NoSuchType {
                tensor: tensor(),
                encoding: self.encoding,
            })?;
        match &self.data {
            Data::Memory(bytes) if bytes.len() as u64 != needed_bytes => Err(WriteError::Length {
                tensor: tensor(),
                needed_bytes,
                given_bytes: bytes.len() as u64,
            }),
            _ => Ok((ggml_id, needed_bytes)),
        }
    }
}

fn check_value(value: &Value) -> Result<(), Flaw> {
    let Value::String(text) = value else {
        return Ok(());
    };
    let what = "metadata string";
    let (len, limit) = (text.len() as u64, MAX_STRING_BYTES);
    if len > limit {
        return Err(Flaw::StringLength { what, len, limit });
    }
    if text.contains('\0') {
        let character = '\0';
        return Err(Flaw::Control { what, character });
    }
    Ok(())
}

fn put_string(header: &mut Vec<u8>, text: &str) {
    header.extend((text.len() as u64).to_le_bytes());
    header.extend(text.as_bytes());
}

fn put_value(header: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(n) => header.extend(n.to_le_bytes()),
        Value::I8(n) => header.extend(n.to_le_bytes()),
        Value::U16(n) => header.extend(n.to_le_bytes()),
        Value::I16(n) => header.extend(n.to_le_bytes()),
        Value::U32(n) => header.extend(n.to_le_bytes()),
        Value::I32(n) => header.extend(n.to_le_bytes()),
        Value::F32(n) => header.extend(n.to_le_bytes()),
        Value::Bool(truth) => header.push(u8::from(*truth)),
        Value::String(text) => put_string(header, text),
        Value::U64(n) => header.extend(n.to_le_bytes()),
        Value::I64(n) => header.extend(n.to_le_bytes()),
        Value::F64(n) => header.extend(n.to_le_bytes()),
    }
}

/// Zeros that follow `len` bytes up to the alignment.
fn padding(len: u64) -> &'static [u8] {
    const ZEROS: [u8; DEFAULT_ALIGNMENT as usize] = [0; DEFAULT_ALIGNMENT as usize];
    let padded = len.next_multiple_of(u64::from(DEFAULT_ALIGNMENT));
    ZEROS
        .get(..padded.saturating_sub(len) as usize)
        .unwrap_or_default()
}

struct Counted<W> {
    to: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let len = self.to.write(buffer)?;
        self.bytes = self.bytes.saturating_add(len as u64);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
