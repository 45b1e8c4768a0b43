//! A computation that reads every byte of a block: an activation goes through each of its matrices in turn.
//!
//! It is no transformer. It serves to show that the bytes are right: sums are taken in a fixed order, so two runs agree
//! bit for bit exactly if they read the same weights in the same order. What is computed does not depend on the device:
//! this file defines it and does it on the CPU, `matrix.cu` does the same on a GPU.
//!
//! - A matrix of floats is multiplied with the values, repeated or cut to the length of a row. A product is
//!   [`LANES`] running sums, taken together pair by pair. Divided by the largest of them, so that they neither vanish
//!   nor overflow on their way through the model, the products are the next values.
//! - The digest is a sum, so that its terms can be added in any order: a term for each product, and one for each word of
//!   a tensor that is no matrix of floats. A term depends on the tensor's number in the pass, its length, the position
//!   and the bits.

use half::{bf16, f16};
use offload_core::decode::Float;

/// Running sums of a product: two for each thread of a warp.
const LANES: usize = 64;

/// Values at the beginning of a pass.
pub(crate) const START_VALUES: u32 = 256;

/// All bits that are not a number count as these.
const NAN_BITS: u32 = 0x7FC0_0000;

/// The final step of the generator SplitMix64, a permutation.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

/// What the terms of a tensor begin with: its number in the pass, and how many bytes it has.
pub(crate) fn seed(number: u64, bytes: u64) -> u64 {
    mix(mix(number.wrapping_add(0x9E37_79B9_7F4A_7C15)) ^ bytes)
}

fn term(seed: u64, index: usize, word: u32) -> u64 {
    mix(seed ^ ((index as u64) << 32 | u64::from(word)))
}

/// Value `index` where nothing was computed.
fn start(index: usize) -> f32 {
    ((index * 37 % 101) as f32 - 50.0) / 50.0
}

/// An activation on its way through a model.
#[derive(Debug, Clone)]
pub(crate) struct Activation {
    values: Vec<f32>,
    digest: u64,
    /// Tensors so far.
    tensors: u64,
}

impl Activation {
    /// The same for each pass.
    pub(crate) fn new() -> Self {
        Self {
            values: (0..START_VALUES as usize).map(start).collect(),
            digest: 0,
            tensors: 0,
        }
    }

    fn next_seed(&mut self, bytes: &[u8]) -> u64 {
        self.tensors += 1;
        seed(self.tensors - 1, bytes.len() as u64)
    }

    /// Multiplies a matrix of `rows` rows with the values.
    pub(crate) fn multiply(&mut self, bytes: &[u8], float: Float, rows: usize) {
        let seed = self.next_seed(bytes);
        let row_bytes = bytes.len() / rows;
        let mut row = Vec::new();
        let mut input = Vec::new();
        let mut products = Vec::with_capacity(rows);
        for encoded in bytes.chunks_exact(row_bytes) {
            read_row(encoded, float, &mut row);
            if input.is_empty() {
                input = self
                    .values
                    .iter()
                    .copied()
                    .cycle()
                    .take(row.len())
                    .collect();
            }
            let product = dot(&row, &input);
            let bits = if product.is_nan() {
                NAN_BITS
            } else {
                product.to_bits()
            };
            self.digest = self.digest.wrapping_add(term(seed, products.len(), bits));
            products.push(product);
        }
        let finite = products.iter().filter(|product| product.is_finite());
        let largest = finite.fold(0.0f32, |largest, product| largest.max(product.abs()));
        let value = |(index, product): (usize, &f32)| {
            if largest > 0.0 && product.is_finite() {
                product / largest
            } else {
                start(index)
            }
        };
        self.values = products.iter().enumerate().map(value).collect();
    }

    /// Takes notice of bytes that are no matrix of floats.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        let seed = self.next_seed(bytes);
        for (index, chunk) in bytes.chunks(4).enumerate() {
            let mut word = [0; 4];
            word[..chunk.len()].copy_from_slice(chunk);
            let term = term(seed, index, u32::from_le_bytes(word));
            self.digest = self.digest.wrapping_add(term);
        }
    }

    /// What all that was computed hashes to.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }
}

fn read_row(encoded: &[u8], float: Float, row: &mut Vec<f32>) {
    row.clear();
    let pairs = || encoded.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    let quads = encoded.chunks_exact(4);
    match float {
        Float::BF16 => row.extend(pairs().map(|pair| bf16::from_le_bytes(pair).to_f32())),
        Float::F16 => row.extend(pairs().map(|pair| f16::from_le_bytes(pair).to_f32())),
        Float::F32 => {
            row.extend(quads.map(|quad| f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]])))
        }
    }
}

/// So many running sums that the compiler may use vectors, and a GPU a warp, without changing the order of any sum.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (left, right) in left.chunks(LANES).zip(right.chunks(LANES)) {
        for (sum, (left, right)) in sums.iter_mut().zip(left.iter().zip(right)) {
            *sum += left * right;
        }
    }
    // Neighbours first, then what lies half of the rest apart, as a warp does.
    for pair in 0..LANES / 2 {
        sums[pair] = sums[2 * pair] + sums[2 * pair + 1];
    }
    let mut apart = LANES / 4;
    while apart > 0 {
        for lane in 0..apart {
            sums[lane] += sums[lane + apart];
        }
        apart /= 2;
    }
    sums[0]
}
