//! Formats of 1 to 2 bits: `Q1_0`, `Q2_0` and the ternary `TQ1_0`, `TQ2_0`.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::{Machine, QuantBlock, bits, scale};
use crate::encoding::Encoding;

/// Powers of 3.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Signs: 1 is plus. 128 numbers share a scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q1_0 {
    d: [u8; 2],
    qs: [u8; 16],
}

impl QuantBlock<128> for Q1_0 {
    const ENCODING: Encoding = Encoding::Q1_0;

    fn numbers(&self) -> [f32; 128] {
        let d = scale(self.d);
        from_fn(|i| {
            if bits(self.qs[i / 8], i % 8, 1) == 1 {
                d
            } else {
                -d
            }
        })
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 128]) {
        let minus = (-scale(self.d)).to_bits();
        for (numbers, &q) in numbers.as_chunks_mut::<8>().0.iter_mut().zip(&self.qs) {
            for (k, number) in numbers.iter_mut().enumerate() {
                *number = f32::from_bits(minus ^ ((u32::from(q) >> k) << 31));
            }
        }
    }
}

/// 2-bit integers less 1. 64 numbers share a scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q2_0 {
    d: [u8; 2],
    qs: [u8; 16],
}

impl QuantBlock<64> for Q2_0 {
    const ENCODING: Encoding = Encoding::Q2_0;

    fn numbers(&self) -> [f32; 64] {
        let d = scale(self.d);
        from_fn(|i| (f32::from(bits(self.qs[i / 4], 2 * (i % 4), 3)) - 1.0) * d)
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 64]) {
        let d = scale(self.d);
        for (numbers, q) in numbers
            .as_chunks_mut::<16>()
            .0
            .iter_mut()
            .zip(self.qs.as_chunks::<4>().0)
        {
            let q = u32::from_le_bytes(*q);
            for (k, number) in numbers.iter_mut().enumerate() {
                *number = ((q >> (2 * k) & 3) as i32 as f32 - 1.0) * d;
            }
        }
    }
}

/// Base-3 digits less 1, five to a byte, the first the most significant; the last 4 bytes hold four.
///
/// A byte is the number `0.d0 d1 d2 d3 d4` in base 3, scaled to 256 and rounded up: multiplied by 3, its digit is what
/// overflows.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Tq1_0 {
    qs: [u8; 48],
    qh: [u8; 4],
    d: [u8; 2],
}

impl QuantBlock<256> for Tq1_0 {
    const ENCODING: Encoding = Encoding::Tq1_0;

    fn numbers(&self) -> [f32; 256] {
        let d = scale(self.d);
        from_fn(|i| {
            let (byte, digit) = match i {
                0..160 => (self.qs[i % 32], i / 32),
                160..240 => (self.qs[32 + i % 16], (i - 160) / 16),
                _ => (self.qh[i % 4], (i - 240) / 4),
            };
            let rest = byte.wrapping_mul(POWERS[digit]);
            let q = (u16::from(rest) * 3) >> 8;
            (f32::from(q) - 1.0) * d
        })
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let d = scale(self.d);
        let digit = |byte: u8, power: u8| {
            let rest = byte.wrapping_mul(power);
            (f32::from(((u16::from(rest) * 3) >> 8) as u8) - 1.0) * d
        };
        let (first, rest) = numbers.split_at_mut(160);
        let (second, third) = rest.split_at_mut(80);
        for (numbers, power) in first.as_chunks_mut::<32>().0.iter_mut().zip(POWERS) {
            for (number, &byte) in numbers.iter_mut().zip(&self.qs[..32]) {
                *number = digit(byte, power);
            }
        }
        for (numbers, power) in second.as_chunks_mut::<16>().0.iter_mut().zip(POWERS) {
            for (number, &byte) in numbers.iter_mut().zip(&self.qs[32..]) {
                *number = digit(byte, power);
            }
        }
        for (numbers, power) in third.as_chunks_mut::<4>().0.iter_mut().zip(POWERS) {
            for (number, &byte) in numbers.iter_mut().zip(&self.qh) {
                *number = digit(byte, power);
            }
        }
    }
}

/// 2-bit integers less 1. 256 numbers share a scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Tq2_0 {
    qs: [u8; 64],
    d: [u8; 2],
}

impl QuantBlock<256> for Tq2_0 {
    const ENCODING: Encoding = Encoding::Tq2_0;

    fn numbers(&self) -> [f32; 256] {
        let d = scale(self.d);
        from_fn(|i| {
            let q = bits(self.qs[32 * (i / 128) + i % 32], 2 * (i / 32 % 4), 3);
            (f32::from(q) - 1.0) * d
        })
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let d = scale(self.d);
        let groups = numbers.as_chunks_mut::<128>().0.iter_mut();
        for (numbers, qs) in groups.zip(self.qs.as_chunks::<32>().0) {
            for (k, numbers) in numbers.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                for (number, &q) in numbers.iter_mut().zip(qs) {
                    *number = (f32::from(bits(q, 2 * k, 3)) - 1.0) * d;
                }
            }
        }
    }
}
