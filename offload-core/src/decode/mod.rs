//! Decoding: encoded bytes to f32, f16 or bf16, as the formats define it.
//!
//! Every encoding is a struct that spells out the bytes of one quant block and one formula for its `i`-th number, and
//! beside it the loops that write the same numbers quickly. [`decode`] uses the loops; [`decode_by_definition`] the
//! formulas, with which every decoder is compared. This module does not encode, and it does not read files.
//!
//! The numbers are those of `ggml/src/ggml-quants.c` in f32, then rounded once, to nearest even, to the target. No
//! result depends on the order of operations: an f16 scale has 11 significant bits and every product of a formula needs
//! at most 24, so products are exact in f32 and the only rounding is the one addition of the formats that have a
//! minimum (`Q4_1`, `Q5_1`, `Q2_K`, `Q4_K`, `Q5_K`). A decoder agrees if it agrees bit for bit, save for the sign and
//! payload of NaN. Arithmetic in f16 or with denormals flushed does not agree.

mod fp;
mod fp4;
mod grids;
mod i_quants;
mod k_quants;
mod legacy;
mod low_bit;
mod quick;
mod scaled;

use std::fmt;

use bytemuck::Pod;
use half::{bf16, f16};

use crate::encoding::Encoding;
use quick::Machine;

pub use scaled::{Scale, decode_scaled, decode_scaled_by_definition, is_scalable};

/// A type of number that a computation reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Float {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
}

impl Float {
    /// Bytes of one number.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.encoding().quant_block_bytes()
    }

    /// The encoding of a tensor that holds such numbers.
    #[must_use]
    pub const fn encoding(self) -> Encoding {
        match self {
            Self::F32 => Encoding::F32,
            Self::F16 => Encoding::F16,
            Self::BF16 => Encoding::BF16,
        }
    }

    /// The type of number of a tensor in `encoding`, if it holds plain floats of one of these types.
    #[must_use]
    pub const fn from_encoding(encoding: Encoding) -> Option<Self> {
        match encoding {
            Encoding::F32 => Some(Self::F32),
            Encoding::F16 => Some(Self::F16),
            Encoding::BF16 => Some(Self::BF16),
            _ => None,
        }
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.encoding().name())
    }
}

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The encoding holds no real numbers, or floats that no decoder is there for.
    #[error("{encoding} does not decode to floating point numbers")]
    Unsupported {
        /// The encoding asked for.
        encoding: Encoding,
    },
}

/// Whether [`decode`] knows the encoding: true for all but integers, truth values, complex numbers, and the 8-bit floats
/// `F8_E8M0`, `F8_E4M3FNUZ` and `F8_E5M2FNUZ`.
#[must_use]
pub fn is_supported(encoding: Encoding) -> bool {
    decoders(encoding).is_some()
}

/// Fills `arrived` with the numbers that `encoded` holds, little-endian.
///
/// Neither slice needs any alignment, and nothing is allocated. `F64` is rounded to f32 on the way, as torch does.
///
/// # Errors
/// When the encoding is [not supported](is_supported).
///
/// # Panics
/// When `encoded` is no whole number of quant blocks, or `arrived` has not just the bytes of their numbers.
pub fn decode(
    encoding: Encoding,
    encoded: &[u8],
    target: Float,
    arrived: &mut [u8],
) -> Result<(), DecodeError> {
    let decoders = decoders(encoding).ok_or(DecodeError::Unsupported { encoding })?;
    assert_lengths(encoding, encoded, target, arrived);
    (decoders.quick)(encoded, None, target, arrived);
    Ok(())
}

/// As [`decode`], number by number as the formats define them: slow, and what every other decoder is compared with.
///
/// # Errors
/// As [`decode`].
///
/// # Panics
/// As [`decode`].
pub fn decode_by_definition(
    encoding: Encoding,
    encoded: &[u8],
    target: Float,
    arrived: &mut [u8],
) -> Result<(), DecodeError> {
    let decoders = decoders(encoding).ok_or(DecodeError::Unsupported { encoding })?;
    assert_lengths(encoding, encoded, target, arrived);
    (decoders.by_definition)(encoded, None, target, arrived);
    Ok(())
}

/// Checks that `encoded` is whole quant blocks and `arrived` has room for just their numbers, and counts those.
fn assert_lengths(encoding: Encoding, encoded: &[u8], target: Float, arrived: &[u8]) -> u64 {
    let (encoded_bytes, block_bytes) = (encoded.len() as u64, encoding.quant_block_bytes());
    assert!(
        encoded_bytes.is_multiple_of(block_bytes),
        "contract: {encoded_bytes} bytes are not a whole number of {encoding} quant blocks of {block_bytes}"
    );
    let numbers = encoded_bytes / block_bytes * encoding.quant_block_len();
    assert!(
        arrived.len() as u64 == numbers * target.bytes(),
        "contract: {numbers} numbers as {target} do not fill {} bytes",
        arrived.len()
    );
    numbers
}

/// One quant block as it lies in memory. Its fields are bytes, so that it has no padding and may lie anywhere.
trait QuantBlock<const LEN: usize>: Pod {
    /// The encoding whose quant block it is.
    const ENCODING: Encoding;

    /// The numbers it stands for: the definition.
    fn numbers(&self) -> [f32; LEN];

    /// Writes the same numbers in loops that compilers turn into vector instructions.
    fn write<M: Machine>(&self, machine: M, numbers: &mut [f32; LEN]);
}

/// Decodes quant blocks, each number times the factor if there is one.
type Decoder = fn(&[u8], Option<f32>, Float, &mut [u8]);

/// The two decoders of a format.
struct Decoders {
    by_definition: Decoder,
    quick: Decoder,
    #[cfg(test)]
    portable: Decoder,
}

fn decoders(encoding: Encoding) -> Option<Decoders> {
    Some(match encoding {
        Encoding::F32 => Decoders::of::<fp::F32, 1>(),
        Encoding::F16 => Decoders::of::<fp::F16, 1>(),
        Encoding::BF16 => Decoders::of::<fp::BF16, 1>(),
        Encoding::F64 => Decoders::of::<fp::F64, 1>(),
        Encoding::F8E4M3 => Decoders::of::<fp::F8E4M3, 1>(),
        Encoding::F8E5M2 => Decoders::of::<fp::F8E5M2, 1>(),
        Encoding::Q4_0 => Decoders::of::<legacy::Q4_0, 32>(),
        Encoding::Q4_1 => Decoders::of::<legacy::Q4_1, 32>(),
        Encoding::Q5_0 => Decoders::of::<legacy::Q5_0, 32>(),
        Encoding::Q5_1 => Decoders::of::<legacy::Q5_1, 32>(),
        Encoding::Q8_0 => Decoders::of::<legacy::Q8_0, 32>(),
        Encoding::Q2K => Decoders::of::<k_quants::Q2K, 256>(),
        Encoding::Q3K => Decoders::of::<k_quants::Q3K, 256>(),
        Encoding::Q4K => Decoders::of::<k_quants::Q4K, 256>(),
        Encoding::Q5K => Decoders::of::<k_quants::Q5K, 256>(),
        Encoding::Q6K => Decoders::of::<k_quants::Q6K, 256>(),
        Encoding::Iq1S => Decoders::of::<i_quants::Iq1S, 256>(),
        Encoding::Iq1M => Decoders::of::<i_quants::Iq1M, 256>(),
        Encoding::Iq2Xxs => Decoders::of::<i_quants::Iq2Xxs, 256>(),
        Encoding::Iq2Xs => Decoders::of::<i_quants::Iq2Xs, 256>(),
        Encoding::Iq2S => Decoders::of::<i_quants::Iq2S, 256>(),
        Encoding::Iq3Xxs => Decoders::of::<i_quants::Iq3Xxs, 256>(),
        Encoding::Iq3S => Decoders::of::<i_quants::Iq3S, 256>(),
        Encoding::Iq4Nl => Decoders::of::<i_quants::Iq4Nl, 32>(),
        Encoding::Iq4Xs => Decoders::of::<i_quants::Iq4Xs, 256>(),
        Encoding::Q1_0 => Decoders::of::<low_bit::Q1_0, 128>(),
        Encoding::Q2_0 => Decoders::of::<low_bit::Q2_0, 64>(),
        Encoding::Tq1_0 => Decoders::of::<low_bit::Tq1_0, 256>(),
        Encoding::Tq2_0 => Decoders::of::<low_bit::Tq2_0, 256>(),
        Encoding::Mxfp4 => Decoders::of::<fp4::Mxfp4, 32>(),
        Encoding::Nvfp4 => Decoders::of::<fp4::Nvfp4, 64>(),
        Encoding::Bool
        | Encoding::I8
        | Encoding::I16
        | Encoding::I32
        | Encoding::I64
        | Encoding::U8
        | Encoding::U16
        | Encoding::U32
        | Encoding::U64
        | Encoding::C64
        | Encoding::F8E4M3Fnuz
        | Encoding::F8E5M2Fnuz
        | Encoding::F8E8M0 => return None,
    })
}

impl Decoders {
    const fn of<B: QuantBlock<LEN>, const LEN: usize>() -> Self {
        const {
            assert!(size_of::<B>() as u64 == B::ENCODING.quant_block_bytes());
            assert!(LEN as u64 == B::ENCODING.quant_block_len());
            assert!(align_of::<B>() == 1);
        }
        Self {
            by_definition: decode_as::<B, LEN>,
            quick: quick::decode_as::<B, LEN>,
            #[cfg(test)]
            portable: quick::decode_portably::<B, LEN>,
        }
    }
}

fn decode_as<B: QuantBlock<LEN>, const LEN: usize>(
    encoded: &[u8],
    factor: Option<f32>,
    target: Float,
    arrived: &mut [u8],
) {
    let blocks: &[B] = bytemuck::cast_slice(encoded);
    let scaled = |number| factor.map_or(number, |factor| number * factor);
    match target {
        Float::F32 => fill(blocks, arrived, |x| scaled(x).to_le_bytes()),
        Float::F16 => fill(blocks, arrived, |x| f16::from_f32(scaled(x)).to_le_bytes()),
        Float::BF16 => fill(blocks, arrived, |x| bf16::from_f32(scaled(x)).to_le_bytes()),
    }
}

fn fill<B: QuantBlock<LEN>, const LEN: usize, const BYTES: usize>(
    blocks: &[B],
    arrived: &mut [u8],
    round: impl Fn(f32) -> [u8; BYTES],
) {
    let (arrived, _) = arrived.as_chunks_mut::<BYTES>();
    for (block, arrived) in blocks.iter().zip(arrived.chunks_exact_mut(LEN)) {
        for (arrived, number) in arrived.iter_mut().zip(block.numbers()) {
            *arrived = round(number);
        }
    }
}

/// The f16 that scales and minimums are stored as.
fn scale(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

/// Bits `shift` and up of `byte`, as many as `mask` covers.
fn bits(byte: u8, shift: usize, mask: u8) -> u8 {
    (byte >> shift) & mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::toy::random_bytes;

    /// What a processor without the vector instructions runs, which this one may never do otherwise.
    #[test]
    fn the_portable_loops_equal_the_definition() {
        for &encoding in Encoding::ALL {
            let Some(decoders) = decoders(encoding) else {
                continue;
            };
            let quant_blocks = 4096 / encoding.quant_block_len();
            let bytes =
                usize::try_from(quant_blocks * encoding.quant_block_bytes()).expect("small");
            let encoded = random_bytes(7, bytes);
            for (float, is_nan) in [
                (
                    Float::F32,
                    (|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_nan())
                        as fn(&[u8]) -> bool,
                ),
                (Float::F16, |b| f16::from_le_bytes([b[0], b[1]]).is_nan()),
                (Float::BF16, |b| bf16::from_le_bytes([b[0], b[1]]).is_nan()),
            ] {
                let width = float.bytes() as usize;
                let (mut got, mut wanted) = (vec![0; 4096 * width], vec![0; 4096 * width]);
                (decoders.portable)(&encoded, None, float, &mut got);
                (decoders.by_definition)(&encoded, None, float, &mut wanted);
                let mut pairs = got.chunks(width).zip(wanted.chunks(width));
                assert!(
                    pairs.all(|(got, wanted)| got == wanted || (is_nan(got) && is_nan(wanted))),
                    "{encoding} to {float}"
                );
            }
        }
    }
}
