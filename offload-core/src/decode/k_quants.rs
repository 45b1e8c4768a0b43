//! `Q2_K` to `Q6_K`: 256 numbers share an f16 scale, each 16 or 32 of them a small integer scale on top.
//!
//! Numbers `i`, `i + 32`, `i + 64`, ... share bytes: within a byte, higher bits are later numbers.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::{QuantBlock, bits, scale};
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
        let d = scale(self.d);
        let scales: [f32; 16] = from_fn(|s| {
            let low = bits(self.scales[s % 8], 4 * (s / 8), 15);
            let high = bits(self.scales[8 + s % 4], 2 * (s / 4), 3);
            d * (f32::from(low | (high << 4)) - 32.0)
        });
        from_fn(|i| {
            let high = bits(self.hmask[i % 32], i / 32, 1);
            scales[i / 16] * (f32::from(two_bits(&self.qs, i) | (high << 2)) - 4.0)
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
