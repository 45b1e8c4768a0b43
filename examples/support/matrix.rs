//! A computation that reads every byte of a block: an activation goes through each of its matrices in turn.
//!
//! It is no transformer. It serves to show that the bytes are right: sums are taken in a fixed order, so two runs agree
//! bit for bit exactly if they read the same weights in the same order.

use std::hash::{DefaultHasher, Hasher};

use half::{bf16, f16};
use offload_core::decode::{self, Float};
use offload_core::encoding::Encoding;

/// An activation on its way through a model.
#[derive(Debug, Clone)]
pub(crate) struct Activation {
    values: Vec<f32>,
    digest: DefaultHasher,
    row: Vec<f32>,
}

impl Activation {
    /// The same values for the same length.
    pub(crate) fn new(len: usize) -> Self {
        let value = |index: usize| ((index * 37 % 101) as f32 - 50.0) / 50.0;
        Self {
            values: (0..len).map(value).collect(),
            digest: DefaultHasher::new(),
            row: Vec::new(),
        }
    }

    /// Multiplies a matrix, stored row by row in `encoding`, with the values, repeated or cut to the length of a row.
    ///
    /// # Errors
    /// When the encoding has no decoder.
    pub(crate) fn multiply(
        &mut self,
        bytes: &[u8],
        encoding: Encoding,
        rows: usize,
    ) -> Result<(), decode::DecodeError> {
        let row_bytes = bytes.len().checked_div(rows).unwrap_or(0);
        let mut product = Vec::with_capacity(rows);
        let mut input = Vec::new();
        for encoded in bytes.chunks_exact(row_bytes.max(1)) {
            decode_row(encoded, encoding, &mut self.row)?;
            if input.len() != self.row.len() {
                input = self
                    .values
                    .iter()
                    .copied()
                    .cycle()
                    .take(self.row.len())
                    .collect();
            }
            product.push(dot(&self.row, &input));
        }
        for value in &product {
            self.digest.write_u32(value.to_bits());
        }
        // Kept within range, so that it neither vanishes nor overflows on its way through the model.
        let largest = product
            .iter()
            .fold(0.0f32, |largest, value| largest.max(value.abs()));
        if largest > 0.0 && largest.is_finite() {
            product.iter_mut().for_each(|value| *value /= largest);
            self.values = product;
        }
        Ok(())
    }

    /// Takes notice of bytes that are no matrix.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        self.digest.write(bytes);
    }

    /// What all that was computed hashes to.
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = self.digest.clone();
        for value in &self.values {
            digest.write_u32(value.to_bits());
        }
        digest.finish()
    }
}

fn decode_row(
    encoded: &[u8],
    encoding: Encoding,
    row: &mut Vec<f32>,
) -> Result<(), decode::DecodeError> {
    row.clear();
    let pairs = || encoded.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match Float::from_encoding(encoding) {
        Some(Float::BF16) => row.extend(pairs().map(|pair| bf16::from_le_bytes(pair).to_f32())),
        Some(Float::F16) => row.extend(pairs().map(|pair| f16::from_le_bytes(pair).to_f32())),
        Some(Float::F32) => row.extend(floats(encoded)),
        None => {
            let quant_blocks = encoded.len() as u64 / encoding.quant_block_bytes();
            let bytes = quant_blocks * encoding.quant_block_len() * Float::F32.bytes();
            let mut decoded = vec![0; usize::try_from(bytes).expect("rows fit memory")];
            decode::decode(encoding, encoded, Float::F32, &mut decoded)?;
            row.extend(floats(&decoded));
        }
    }
    Ok(())
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes
        .chunks_exact(4)
        .map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]))
}

/// Eight running sums, so that the compiler may use vectors without changing the order of any sum.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (left, right) in left.chunks(8).zip(right.chunks(8)) {
        for (sum, (left, right)) in sums.iter_mut().zip(left.iter().zip(right)) {
            *sum += left * right;
        }
    }
    sums.iter().sum()
}
