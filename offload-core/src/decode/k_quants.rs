//! `Q2_K` to `Q6_K`: 256 numbers share an f16 scale, each 16 or 32 of them a small integer scale on top.
//!
//! Numbers `i`, `i + 32`, `i + 64`, ... share bytes: within a byte, higher bits are later numbers.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::{Machine, QuantBlock, bits, scale};
use crate::encoding::Encoding;

/// 2-bit integers over a minimum; 16 numbers share a 4-bit scale and a 4-bit minimum.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q2K {
    scales: [u8; 16],
    qs: [u8; 64],
    d: [u8; 2],
    dmin: [u8; 2],
}

impl QuantBlock<256> for Q2K {
    const ENCODING: Encoding = Encoding::Q2K;

    fn numbers(&self) -> [f32; 256] {
        let (d, dmin) = (scale(self.d), scale(self.dmin));
        let scales = self.scales.map(|s| d * f32::from(s & 15));
        let minimums = self.scales.map(|s| dmin * f32::from(s >> 4));
        from_fn(|i| scales[i / 16] * f32::from(two_bits(&self.qs, i)) - minimums[i / 16])
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let (d, dmin) = (scale(self.d), scale(self.dmin));
        let scales = self.scales.map(|s| d * f32::from(s & 15));
        let minimums = self.scales.map(|s| dmin * f32::from(s >> 4));
        for (half, numbers) in numbers.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            for odd in 0..2 {
                let qs = sixteen(&self.qs, 32 * half + 16 * odd);
                let (scales, minimums) = (&scales[8 * half + odd..], &minimums[8 * half + odd..]);
                for (i, q) in qs.into_iter().enumerate() {
                    let i = 16 * odd + i;
                    numbers[i] = scales[0] * f32::from(q & 3) - minimums[0];
                    numbers[i + 32] = scales[2] * f32::from(q >> 2 & 3) - minimums[2];
                    numbers[i + 64] = scales[4] * f32::from(q >> 4 & 3) - minimums[4];
                    numbers[i + 96] = scales[6] * f32::from(q >> 6) - minimums[6];
                }
            }
        }
    }
}

/// 3-bit integers less 4; 16 numbers share a 6-bit scale less 32.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q3K {
    hmask: [u8; 32],
    qs: [u8; 64],
    /// Lower 4 bits of scale `s`: byte `s % 8`. Upper 2 bits: byte `8 + s % 4`.
    scales: [u8; 12],
    d: [u8; 2],
}

impl QuantBlock<256> for Q3K {
    const ENCODING: Encoding = Encoding::Q3K;

    fn numbers(&self) -> [f32; 256] {
        let scales = self.unpacked_scales();
        from_fn(|i| {
            let high = bits(self.hmask[i % 32], i / 32, 1);
            scales[i / 16] * (f32::from(two_bits(&self.qs, i) | (high << 2)) - 4.0)
        })
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let scales = self.unpacked_scales();
        let sixteens = numbers.as_chunks_mut::<16>().0.iter_mut();
        for (s, numbers) in sixteens.enumerate() {
            let q = sixteen(&self.qs, 32 * (s / 8) + 16 * (s % 2));
            let high = sixteen(&self.hmask, 16 * (s % 2));
            let (shift, high_shift) = (2 * (s / 2 % 4), s / 2);
            for ((number, q), high) in numbers.iter_mut().zip(q).zip(high) {
                let q = bits(q, shift, 3) | (bits(high, high_shift, 1) << 2);
                *number = scales[s] * (f32::from(q) - 4.0);
            }
        }
    }
}

impl Q3K {
    fn unpacked_scales(&self) -> [f32; 16] {
        let d = scale(self.d);
        from_fn(|s| {
            let low = bits(self.scales[s % 8], 4 * (s / 8), 15);
            let high = bits(self.scales[8 + s % 4], 2 * (s / 4), 3);
            d * (f32::from(low | (high << 4)) - 32.0)
        })
    }
}

/// 4-bit integers over a minimum; 32 numbers share a 6-bit scale and a 6-bit minimum.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q4K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    qs: [u8; 128],
}

impl QuantBlock<256> for Q4K {
    const ENCODING: Encoding = Encoding::Q4K;

    fn numbers(&self) -> [f32; 256] {
        let scales = six_bit_scales(&self.scales, scale(self.d));
        let minimums = six_bit_minimums(&self.scales, scale(self.dmin));
        from_fn(|i| scales[i / 32] * f32::from(four_bits(&self.qs, i)) - minimums[i / 32])
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let scales = six_bit_scales(&self.scales, scale(self.d));
        let minimums = six_bit_minimums(&self.scales, scale(self.dmin));
        let groups = numbers.as_chunks_mut::<64>().0.iter_mut();
        for (c, (numbers, qs)) in groups.zip(self.qs.as_chunks::<32>().0).enumerate() {
            let (low, high) = numbers.split_at_mut(32);
            for ((low, high), q) in low.iter_mut().zip(high).zip(qs) {
                *low = scales[2 * c] * f32::from(q & 15) - minimums[2 * c];
                *high = scales[2 * c + 1] * f32::from(q >> 4) - minimums[2 * c + 1];
            }
        }
    }
}

/// 5-bit integers over a minimum; scales and minimums as in `Q4_K`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q5K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    qh: [u8; 32],
    qs: [u8; 128],
}

impl QuantBlock<256> for Q5K {
    const ENCODING: Encoding = Encoding::Q5K;

    fn numbers(&self) -> [f32; 256] {
        let scales = six_bit_scales(&self.scales, scale(self.d));
        let minimums = six_bit_minimums(&self.scales, scale(self.dmin));
        from_fn(|i| {
            let q = four_bits(&self.qs, i) | (bits(self.qh[i % 32], i / 32, 1) << 4);
            scales[i / 32] * f32::from(q) - minimums[i / 32]
        })
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let scales = six_bit_scales(&self.scales, scale(self.d));
        let minimums = six_bit_minimums(&self.scales, scale(self.dmin));
        let groups = numbers.as_chunks_mut::<64>().0.iter_mut();
        for (c, (numbers, qs)) in groups.zip(self.qs.as_chunks::<32>().0).enumerate() {
            let (low, high) = numbers.split_at_mut(32);
            for (((low, high), q), fifth) in low.iter_mut().zip(high).zip(qs).zip(&self.qh) {
                let q_low = (q & 15) | (bits(*fifth, 2 * c, 1) << 4);
                let q_high = (q >> 4) | (bits(*fifth, 2 * c + 1, 1) << 4);
                *low = scales[2 * c] * f32::from(q_low) - minimums[2 * c];
                *high = scales[2 * c + 1] * f32::from(q_high) - minimums[2 * c + 1];
            }
        }
    }
}

/// 6-bit integers less 32; 16 numbers share an 8-bit scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Q6K {
    ql: [u8; 128],
    qh: [u8; 64],
    scales: [i8; 16],
    d: [u8; 2],
}

impl QuantBlock<256> for Q6K {
    const ENCODING: Encoding = Encoding::Q6K;

    fn numbers(&self) -> [f32; 256] {
        let d = scale(self.d);
        let scales = self.scales.map(|s| d * f32::from(s));
        from_fn(|i| {
            // Of each 128 numbers the first 64 lie in the lower halves of 64 bytes.
            let low = bits(self.ql[64 * (i / 128) + i % 64], 4 * (i / 64 % 2), 15);
            scales[i / 16] * (f32::from(low | (two_bits(&self.qh, i) << 4)) - 32.0)
        })
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let d = scale(self.d);
        let scales = self.scales.map(|s| d * f32::from(s));
        for (half, numbers) in numbers.as_chunks_mut::<128>().0.iter_mut().enumerate() {
            for odd in 0..2 {
                let first = sixteen(&self.ql, 64 * half + 16 * odd);
                let second = sixteen(&self.ql, 64 * half + 32 + 16 * odd);
                let high = sixteen(&self.qh, 32 * half + 16 * odd);
                let scales = &scales[8 * half + odd..];
                let number = |low: u8, high: u8, scale: f32| {
                    scale * (f32::from(low | ((high & 3) << 4)) - 32.0)
                };
                for i in 0..16 {
                    let at = 16 * odd + i;
                    numbers[at] = number(first[i] & 15, high[i], scales[0]);
                    numbers[at + 32] = number(second[i] & 15, high[i] >> 2, scales[2]);
                    numbers[at + 64] = number(first[i] >> 4, high[i] >> 4, scales[4]);
                    numbers[at + 96] = number(second[i] >> 4, high[i] >> 6, scales[6]);
                }
            }
        }
    }
}

/// 2 bits of number `i` of 256: bytes 0 to 31 hold the first 128.
fn two_bits(qs: &[u8; 64], i: usize) -> u8 {
    bits(qs[32 * (i / 128) + i % 32], 2 * (i / 32 % 4), 3)
}

/// 4 bits of number `i` of 256: bytes 0 to 31 hold the first 64.
fn four_bits(qs: &[u8; 128], i: usize) -> u8 {
    bits(qs[32 * (i / 64) + i % 32], 4 * (i / 32 % 2), 15)
}

/// The 8 scales of `Q4_K` and `Q5_K`. Letters name a scale's bits, small ones a minimum's; A and a are the first:
///
/// ```text
///  0 EEAAAAAA   4 eeaaaaaa   8 eeeeEEEE
///  1 FFBBBBBB   5 ffbbbbbb   9 ffffFFFF
///  2 GGCCCCCC   6 ggcccccc  10 ggggGGGG
///  3 HHDDDDDD   7 hhdddddd  11 hhhhHHHH
/// ```
fn six_bit_scales(scales: &[u8; 12], d: f32) -> [f32; 8] {
    from_fn(|s| {
        let bits = if s < 4 {
            scales[s] & 63
        } else {
            (scales[s + 4] & 15) | ((scales[s - 4] >> 6) << 4)
        };
        d * f32::from(bits)
    })
}

/// The 8 minimums of `Q4_K` and `Q5_K`, which lie as [`six_bit_scales`] shows.
fn six_bit_minimums(scales: &[u8; 12], dmin: f32) -> [f32; 8] {
    from_fn(|s| {
        let bits = if s < 4 {
            scales[s + 4] & 63
        } else {
            (scales[s + 4] >> 4) | ((scales[s] >> 6) << 4)
        };
        dmin * f32::from(bits)
    })
}

/// 16 bytes from `at` on.
#[inline(always)]
fn sixteen(bytes: &[u8], at: usize) -> [u8; 16] {
    bytes[at..][..16].try_into().expect("16 bytes")
}
