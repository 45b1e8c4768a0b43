//! Small models with seeded weights.

use std::sync::Arc;

use bytes::Bytes;

use crate::encoding::Encoding;
use crate::model::Model;
use crate::swappable::{Swappable, TensorSpec};

/// A block that lists the tensors it was given.
#[derive(Debug)]
pub struct ToyBlock {
    name: String,
    tensors: Vec<TensorSpec>,
}

impl ToyBlock {
    /// A block of the given tensors.
    #[must_use]
    pub fn new(name: impl Into<String>, tensors: Vec<TensorSpec>) -> Self {
        Self {
            name: name.into(),
            tensors,
        }
    }
}

impl Swappable for ToyBlock {
    fn name(&self) -> &str {
        &self.name
    }

    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }
}

/// Seeded bytes (splitmix64). Any bytes are a valid tensor of any encoding.
#[must_use]
pub fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A tensor of seeded bytes in memory.
///
/// # Panics
/// When the shape does not fit the encoding.
#[must_use]
pub fn tensor(name: &str, shape: &[u64], encoding: Encoding, seed: u64) -> TensorSpec {
    let bytes = encoding
        .bytes_of(shape)
        .expect("toy shapes fit their encodings");
    let len = usize::try_from(bytes).expect("toy tensors are small");
    TensorSpec::new(name, shape, encoding, Bytes::from(random_bytes(seed, len)))
        .expect("made with the bytes that the shape needs")
}

/// A model whose block `i` has a matrix `weight` of `shapes[i]`, in the i-th of `encodings` (taken in turn), and a
/// `bias`.
///
/// # Panics
/// When a shape does not fit its encoding.
#[must_use]
pub fn model(shapes: &[[u64; 2]], encodings: &[Encoding], seed: u64) -> Model {
    let blocks = shapes.iter().enumerate().map(|(index, shape)| {
        let seed = seed.wrapping_mul(1_000_003).wrapping_add(index as u64);
        let tensors = vec![
            tensor("weight", shape, encodings[index % encodings.len()], seed),
            tensor("bias", &shape[..1], Encoding::F32, !seed),
        ];
        Arc::new(ToyBlock::new(format!("blocks.{index}"), tensors)) as Arc<dyn Swappable>
    });
    Model::new(blocks.collect()).expect("toy blocks have names of their own")
}
