//! What can be offloaded: a block and its tensors.
//!
//! A [`Swappable`] describes; it never allocates device memory, never sees a device or a plan and never decides when
//! something moves.

use std::fmt::Debug;
use std::ops::Range;

use crate::decode::{Scale, is_scalable};
use crate::encoding::{Encoding, EncodingError};
use crate::source::Source;

/// One block: the unit of residency. A transformer block, a VACE block, an embedding group.
///
/// # Contract
///
/// - [`name`](Self::name) and [`tensors`](Self::tensors) answer the same for as long as the value lives.
/// - Tensor names are unique within the block.
/// - Weights are read-only: nothing is ever copied back into a source.
pub trait Swappable: Debug + Send + Sync {
    /// The block's name, unique within its model, such as `blocks.7`.
    fn name(&self) -> &str;

    /// The block's tensors, in the order in which the file or the model lists them.
    fn tensors(&self) -> &[TensorSpec];
}

/// What a tensor is to the computation; decides the form in which it arrives unless the engine says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// An operand of a matrix product or convolution. Arrives as bf16 by default.
    Matrix,
    /// A bias, norm, or modulation table. Arrives as f32 by default.
    Vector,
}

/// Why a tensor's description was refused.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The shape cannot be stored in the encoding.
    #[error("tensor {name}")]
    Encoding {
        /// The tensor.
        name: String,
        /// Why.
        #[source]
        source: EncodingError,
    },
    /// The source is a range that runs backwards, or past the end of its memory.
    #[error("tensor {name}: bytes {range:?} lie outside of {owner_bytes}")]
    Outside {
        /// The tensor.
        name: String,
        /// The range.
        range: Range<u64>,
        /// Bytes of the memory; a file's own length is asked when it is read.
        owner_bytes: u64,
    },
    /// The source holds another number of bytes than the shape needs.
    #[error(
        "tensor {name}: shape {shape:?} in {encoding} needs {needed_bytes} bytes, its source has {source_bytes}"
    )]
    Length {
        /// The tensor.
        name: String,
        /// Slowest axis first.
        shape: Vec<u64>,
        /// As stored.
        encoding: Encoding,
        /// Bytes that shape and encoding need.
        needed_bytes: u64,
        /// Bytes that the source has.
        source_bytes: u64,
    },
    /// Another shape has another number of elements.
    #[error("tensor {name}: shape {shape:?} cannot hold the elements of {stored_shape:?}")]
    Elements {
        /// The tensor.
        name: String,
        /// The shape asked for, slowest axis first.
        shape: Vec<u64>,
        /// The shape it has.
        stored_shape: Vec<u64>,
    },
    /// Nothing multiplies numbers of the encoding with a scale.
    #[error("tensor {name}: {encoding} takes no scale")]
    Unscalable {
        /// The tensor.
        name: String,
        /// As stored.
        encoding: Encoding,
    },
    /// The scale is for another number of elements.
    #[error("tensor {name}: a scale for {scaled} numbers, the tensor has {elements}")]
    Scale {
        /// The tensor.
        name: String,
        /// Numbers that the scale has factors for.
        scaled: u64,
        /// Elements of the tensor.
        elements: u64,
    },
}

/// A tensor as it is stored: name, shape, encoding and where its bytes are.
#[derive(Debug, Clone)]
pub struct TensorSpec {
    name: String,
    shape: Vec<u64>,
    encoding: Encoding,
    source: Source,
    role: Role,
    /// Boxed: most tensors have none.
    scale: Option<Box<Scale>>,
}

impl TensorSpec {
    /// Describes a tensor of `shape` (slowest axis first, as in torch) whose encoded bytes are `source`.
    ///
    /// Its [`Role`] is `Matrix` if at least two dimensions exceed 1, else `Vector`.
    ///
    /// # Errors
    /// When shape, encoding and source do not fit together.
    pub fn new(
        name: impl Into<String>,
        shape: impl Into<Vec<u64>>,
        encoding: Encoding,
        source: impl Into<Source>,
    ) -> Result<Self, SpecError> {
        let (name, shape, source) = (name.into(), shape.into(), source.into());
        let needed_bytes = match encoding.bytes_of(&shape) {
            Ok(bytes) => bytes,
            Err(source) => return Err(SpecError::Encoding { name, source }),
        };
        let (range, owner_bytes) = match &source {
            Source::Memory { memory, range } => (range, memory.len() as u64),
            // A file that is too short is an error of reading: it may be so at any time.
            Source::File { range, .. } | Source::Described { range } => (range, u64::MAX),
        };
        if range.start > range.end || range.end > owner_bytes {
            return Err(SpecError::Outside {
                name,
                range: range.clone(),
                owner_bytes,
            });
        }
        if needed_bytes != source.len() {
            let source_bytes = source.len();
            return Err(SpecError::Length {
                name,
                shape,
                encoding,
                needed_bytes,
                source_bytes,
            });
        }
        Ok(Self {
            role: role_of(&shape),
            name,
            shape,
            encoding,
            source,
            scale: None,
        })
    }

    /// The same bytes under another shape with as many elements; its role is that of the new shape.
    ///
    /// For a tensor that was quantised in another shape than it has in the model: its quant blocks may then run across
    /// the rows of `shape`, so that its bytes are those of the source and not those that
    /// [`Encoding::bytes_of`] has for `shape`.
    ///
    /// # Errors
    /// [`SpecError::Elements`].
    pub fn with_shape(self, shape: impl Into<Vec<u64>>) -> Result<Self, SpecError> {
        let shape = shape.into();
        let elements = if shape.contains(&0) {
            Some(0)
        } else {
            shape
                .iter()
                .try_fold(1u64, |product, &dim| product.checked_mul(dim))
        };
        if elements != Some(self.element_count()) {
            return Err(SpecError::Elements {
                name: self.name,
                shape,
                stored_shape: self.shape,
            });
        }
        Ok(Self {
            role: role_of(&shape),
            shape,
            ..self
        })
    }

    /// The same tensor with another role.
    #[must_use]
    pub fn with_role(self, role: Role) -> Self {
        Self { role, ..self }
    }

    /// The same tensor with a scale: it arrives, unless as stored, with its numbers multiplied.
    ///
    /// The factors are the caller's to read, once and whole: they are a few bytes, lie elsewhere in the file, and are
    /// needed whenever a part of the tensor is decoded. Devices keep them beside their decode tables.
    ///
    /// # Errors
    /// [`SpecError::Unscalable`] and [`SpecError::Scale`].
    pub fn with_scale(self, scale: Scale) -> Result<Self, SpecError> {
        let (name, encoding, elements) = (self.name.clone(), self.encoding, self.element_count());
        if !is_scalable(encoding) {
            return Err(SpecError::Unscalable { name, encoding });
        }
        match scale.numbers() {
            Some(scaled) if scaled != elements => Err(SpecError::Scale {
                name,
                scaled,
                elements,
            }),
            _ => Ok(Self {
                scale: Some(Box::new(scale)),
                ..self
            }),
        }
    }

    /// The same tensor under another name.
    #[must_use]
    pub fn with_name(self, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..self
        }
    }

    /// Its name within the block, such as `self_attn.q.weight`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its dimensions, slowest axis first.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// How its numbers are stored.
    #[must_use]
    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// Where its encoded bytes are.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// What it is to the computation.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role
    }

    /// What its numbers are multiplied with when it is decoded.
    #[must_use]
    pub fn scale(&self) -> Option<&Scale> {
        self.scale.as_deref()
    }

    /// Elements it holds.
    #[must_use]
    pub fn element_count(&self) -> u64 {
        self.shape.iter().product()
    }
}

fn role_of(shape: &[u64]) -> Role {
    if shape.iter().filter(|&&dim| dim > 1).count() >= 2 {
        Role::Matrix
    } else {
        Role::Vector
    }
}
