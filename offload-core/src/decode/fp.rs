//! Element types: one number, no shared scale.

use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

use super::{Machine, QuantBlock};
use crate::encoding::Encoding;

/// IEEE binary32.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct F32([u8; 4]);

impl QuantBlock<1> for F32 {
    const ENCODING: Encoding = Encoding::F32;

    fn numbers(&self) -> [f32; 1] {
        [f32::from_le_bytes(self.0)]
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 1]) {
        *numbers = self.numbers();
    }
}

/// IEEE binary16.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct F16([u8; 2]);

impl QuantBlock<1> for F16 {
    const ENCODING: Encoding = Encoding::F16;

    fn numbers(&self) -> [f32; 1] {
        [f16::from_le_bytes(self.0).to_f32()]
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 1]) {
        *numbers = [widened::<10, 5>(u16::from_le_bytes(self.0).into(), 16)];
    }
}

/// The upper half of a binary32.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct BF16([u8; 2]);

impl QuantBlock<1> for BF16 {
    const ENCODING: Encoding = Encoding::BF16;

    fn numbers(&self) -> [f32; 1] {
        [bf16::from_le_bytes(self.0).to_f32()]
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 1]) {
        *numbers = self.numbers();
    }
}

/// IEEE binary64, rounded to nearest even.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct F64([u8; 8]);

impl QuantBlock<1> for F64 {
    const ENCODING: Encoding = Encoding::F64;

    fn numbers(&self) -> [f32; 1] {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "rounding is what is wanted"
        )]
        [f64::from_le_bytes(self.0) as f32]
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 1]) {
        *numbers = self.numbers();
    }
}

/// OCP E4M3FN: sign, 4 exponent bits with bias 7, 3 mantissa bits; all ones is NaN, there is no infinity.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct F8E4M3(u8);

impl QuantBlock<1> for F8E4M3 {
    const ENCODING: Encoding = Encoding::F8E4M3;

    fn numbers(&self) -> [f32; 1] {
        let magnitude = if self.0 & 0x7f == 0x7f {
            f32::NAN
        } else {
            e4m3(self.0)
        };
        [if self.0 & 0x80 == 0 {
            magnitude
        } else {
            -magnitude
        }]
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 1]) {
        let nan = self.0 & 0x7f == 0x7f;
        let number = finite::<3, 4>(self.0.into(), 8);
        *numbers = [if nan { f32::NAN } else { number }];
    }
}

/// OCP E5M2: the upper half of an IEEE binary16.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct F8E5M2(u8);

impl QuantBlock<1> for F8E5M2 {
    const ENCODING: Encoding = Encoding::F8E5M2;

    fn numbers(&self) -> [f32; 1] {
        [f16::from_le_bytes([0, self.0]).to_f32()]
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 1]) {
        *numbers = [widened::<2, 5>(self.0.into(), 8)];
    }
}

/// What the lower 7 bits stand for if 4 are exponent, with bias 7, and 3 mantissa; without any special value.
pub(super) fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(byte >> 3) & 15, f32::from(byte & 7));
    if exponent == 0 {
        mantissa * power_of_two(-9)
    } else {
        (8.0 + mantissa) * power_of_two(exponent as i32 - 10)
    }
}

/// 2 to the power of `exponent`, which a normal f32 can hold.
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// What the lower `width` bits stand for as a float of an IEEE format: sign, `EXPONENT` bits and `MANTISSA` bits.
#[inline(always)]
fn widened<const MANTISSA: u32, const EXPONENT: u32>(bits: u32, width: u32) -> f32 {
    let special = (bits >> MANTISSA) & ((1 << EXPONENT) - 1) == (1 << EXPONENT) - 1;
    let sign = (bits >> (width - 1)) << 31;
    let mantissa = (bits & ((1 << MANTISSA) - 1)) << (23 - MANTISSA);
    let infinity_or_nan = f32::from_bits(sign | 0x7f80_0000 | mantissa);
    let number = finite::<MANTISSA, EXPONENT>(bits, width);
    if special { infinity_or_nan } else { number }
}

/// The same, where no exponent is special.
#[inline(always)]
fn finite<const MANTISSA: u32, const EXPONENT: u32>(bits: u32, width: u32) -> f32 {
    let bias = (1 << (EXPONENT - 1)) - 1;
    let magnitude = bits & ((1 << (width - 1)) - 1);
    let sign = (bits >> (width - 1)) << 31;
    let normal = (magnitude << (23 - MANTISSA)) + ((127 - bias) << 23);
    // A denormal is the number with the least exponent and the same mantissa, less the one that is not there.
    let least = (128 - bias) << 23;
    let denormal = f32::from_bits(normal + (1 << 23)) - f32::from_bits(least);
    let number = if magnitude >> MANTISSA == 0 {
        denormal
    } else {
        f32::from_bits(normal)
    };
    f32::from_bits(number.to_bits() | sign)
}
