//! The same numbers as the reference, in loops that compilers turn into vector instructions.
//!
//! Each format's `write` says what its `numbers` says, one shared scale and one shift at a time. Everything here is
//! plain Rust, compiled twice: for any processor, and once more for those with AVX2 and F16C, which [`decode_as`] asks for
//! when it is called. Two things have no plain form that compiles well, looking up bytes in a table of 16 and rounding to
//! f16; they are a [`Machine`]'s to do. Nothing depends on the order of operations, so that both give the reference's bits.

#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "calling what is compiled for AVX2 and F16C once the processor was asked"
    )
)]

use bytemuck::NoUninit;

use super::{Float, QuantBlock};

/// What a processor does in its own way.
pub(super) trait Machine: Copy {
    /// `table[code]` for each of 16 codes below 16.
    fn look_up(self, table: &[i8; 16], codes: [u8; 16]) -> [i8; 16];

    /// Rounds numbers to f16, to nearest even, little-endian. Both slices have the same length.
    fn round_to_f16(self, numbers: &[f32], rounded: &mut [u16]);
}

/// Any processor.
#[derive(Clone, Copy)]
struct Portable;

impl Machine for Portable {
    #[inline(always)]
    fn look_up(self, table: &[i8; 16], codes: [u8; 16]) -> [i8; 16] {
        codes.map(|code| table[usize::from(code & 15)])
    }

    #[inline(always)]
    fn round_to_f16(self, numbers: &[f32], rounded: &mut [u16]) {
        for (rounded, number) in rounded.iter_mut().zip(numbers) {
            *rounded = f16_bits(*number).to_le();
        }
    }
}

/// Numbers that are decoded before they are scaled and rounded: they stay in the first cache, and hold a whole number of
/// every format's quant blocks.
const NUMBERS: usize = 256;

/// Decodes quant blocks, each number times `factor` if there is one.
pub(super) fn decode_as<B: QuantBlock<LEN>, const LEN: usize>(
    encoded: &[u8],
    factor: Option<f32>,
    target: Float,
    arrived: &mut [u8],
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(machine) = avx2::Avx2::new() {
        return machine.decode::<B, LEN>(encoded, factor, target, arrived);
    }
    decode_portably::<B, LEN>(encoded, factor, target, arrived);
}

/// As [`decode_as`], on any processor.
pub(super) fn decode_portably<B: QuantBlock<LEN>, const LEN: usize>(
    encoded: &[u8],
    factor: Option<f32>,
    target: Float,
    arrived: &mut [u8],
) {
    decode_on::<Portable, B, LEN>(Portable, encoded, factor, target, arrived);
}

#[inline(always)]
fn decode_on<M: Machine, B: QuantBlock<LEN>, const LEN: usize>(
    machine: M,
    encoded: &[u8],
    factor: Option<f32>,
    target: Float,
    arrived: &mut [u8],
) {
    const { assert!(NUMBERS.is_multiple_of(LEN)) }
    let blocks: &[B] = bytemuck::cast_slice(encoded);
    match target {
        Float::F32 => match bytemuck::try_cast_slice_mut(arrived) {
            Ok(numbers) if cfg!(target_endian = "little") => {
                let pieces = numbers.chunks_mut(NUMBERS);
                for (blocks, numbers) in blocks.chunks(NUMBERS / LEN).zip(pieces) {
                    write_all(machine, blocks, factor, numbers);
                }
            }
            _ => write_rounded(machine, blocks, factor, arrived, |numbers, rounded| {
                for (rounded, number) in rounded.iter_mut().zip(numbers) {
                    *rounded = number.to_bits().to_le();
                }
            }),
        },
        Float::F16 => write_rounded(machine, blocks, factor, arrived, |numbers, rounded| {
            machine.round_to_f16(numbers, rounded);
        }),
        Float::BF16 => write_rounded(machine, blocks, factor, arrived, |numbers, rounded| {
            for (rounded, number) in rounded.iter_mut().zip(numbers) {
                *rounded = bf16_bits(*number).to_le();
            }
        }),
    }
}

#[inline(always)]
fn write_all<M: Machine, B: QuantBlock<LEN>, const LEN: usize>(
    machine: M,
    blocks: &[B],
    factor: Option<f32>,
    numbers: &mut [f32],
) {
    for (block, numbers) in blocks.iter().zip(numbers.as_chunks_mut::<LEN>().0) {
        block.write(machine, numbers);
    }
    if let Some(factor) = factor {
        for number in numbers {
            *number *= factor;
        }
    }
}

/// Through a buffer of rounded numbers: compilers make vectors of those, not of pairs of bytes.
#[inline(always)]
fn write_rounded<M, B, Bits, const LEN: usize>(
    machine: M,
    blocks: &[B],
    factor: Option<f32>,
    arrived: &mut [u8],
    round: impl Fn(&[f32], &mut [Bits]),
) where
    M: Machine,
    B: QuantBlock<LEN>,
    Bits: NoUninit + Default,
{
    let mut buffer = [0.0; NUMBERS];
    let mut rounded = [Bits::default(); NUMBERS];
    let pieces = arrived.chunks_mut(NUMBERS * size_of::<Bits>());
    for (blocks, arrived) in blocks.chunks(NUMBERS / LEN).zip(pieces) {
        let numbers = &mut buffer[..blocks.len() * LEN];
        write_all(machine, blocks, factor, numbers);
        let rounded = &mut rounded[..numbers.len()];
        round(numbers, rounded);
        arrived.copy_from_slice(bytemuck::cast_slice(rounded));
    }
}

/// Rounds to nearest even. All three ways are computed and one is chosen, so that there is no branch.
#[inline(always)]
fn f16_bits(number: f32) -> u16 {
    let bits = number.to_bits();
    let (sign, magnitude) = (bits >> 16 & 0x8000, bits & 0x7fff_ffff);
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    // Below the least normal f16 the step is 2^-24: adding 0.5 leaves that step as the last bit, rounded.
    let denormal = (f32::from_bits(magnitude) + 0.5)
        .to_bits()
        .wrapping_sub(0x3f00_0000);
    let special = if magnitude > 0x7f80_0000 {
        0x7e00
    } else {
        0x7c00
    };
    let finite = if magnitude < 0x3880_0000 {
        denormal
    } else {
        normal
    };
    let rounded = if magnitude < 0x4780_0000 {
        finite
    } else {
        special
    };
    (sign | rounded) as u16
}

/// Rounds to nearest even, without a branch.
#[inline(always)]
fn bf16_bits(number: f32) -> u16 {
    let bits = number.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    let nan = bits >> 16 | 0x40;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    (if is_nan { nan } else { rounded }) as u16
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m128i, __m256, _MM_FROUND_TO_NEAREST_INT, _mm_shuffle_epi8, _mm256_cvtps_ph,
    };

    use super::{Float, Machine, Portable, QuantBlock, decode_on};

    /// A processor that has AVX2 and F16C: there is no value without.
    #[derive(Clone, Copy)]
    pub(super) struct Avx2(());

    impl Avx2 {
        pub(super) fn new() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c"))
                .then_some(Self(()))
        }

        pub(super) fn decode<B: QuantBlock<LEN>, const LEN: usize>(
            self,
            encoded: &[u8],
            factor: Option<f32>,
            target: Float,
            arrived: &mut [u8],
        ) {
            #[target_feature(enable = "avx2,f16c")]
            fn compiled_for_avx2<B: QuantBlock<LEN>, const LEN: usize>(
                machine: Avx2,
                encoded: &[u8],
                factor: Option<f32>,
                target: Float,
                arrived: &mut [u8],
            ) {
                decode_on::<Avx2, B, LEN>(machine, encoded, factor, target, arrived);
            }
            // SAFETY: the processor has AVX2 and F16C, or `self` would not exist.
            unsafe { compiled_for_avx2::<B, LEN>(self, encoded, factor, target, arrived) }
        }
    }

    impl Machine for Avx2 {
        #[inline(always)]
        fn look_up(self, table: &[i8; 16], codes: [u8; 16]) -> [i8; 16] {
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            fn shuffled(table: &[i8; 16], codes: [u8; 16]) -> [i8; 16] {
                let table: __m128i = bytemuck::cast(*table);
                bytemuck::cast(_mm_shuffle_epi8(table, bytemuck::cast(codes)))
            }
            // SAFETY: the processor has AVX2 and F16C, or `self` would not exist.
            unsafe { shuffled(table, codes) }
        }

        #[inline(always)]
        fn round_to_f16(self, numbers: &[f32], rounded: &mut [u16]) {
            #[inline]
            #[target_feature(enable = "avx2,f16c")]
            fn eight_rounded(numbers: [f32; 8]) -> [u16; 8] {
                let numbers: __m256 = bytemuck::cast(numbers);
                bytemuck::cast(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(numbers))
            }
            let (eights, rest) = numbers.as_chunks::<8>();
            let (rounded_eights, rounded_rest) = rounded.as_chunks_mut::<8>();
            for (rounded, numbers) in rounded_eights.iter_mut().zip(eights) {
                // SAFETY: the processor has AVX2 and F16C, or `self` would not exist.
                *rounded = unsafe { eight_rounded(*numbers) };
            }
            Portable.round_to_f16(rest, rounded_rest);
        }
    }
}
