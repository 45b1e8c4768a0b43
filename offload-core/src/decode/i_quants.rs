//! `IQ1_S` to `IQ4_XS`: integers chosen from codebooks, most of them rows of 4 or 8 at a time.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::{QuantBlock, bits, grids, legacy, scale};
use crate::encoding::Encoding;

const IQ1_GRID: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
const IQ2_GRID: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
const IQ3_XXS_GRID: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
const IQ3_S_GRID: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
const IQ4_GRID: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// What is added to the codebook's numbers in `IQ1_S` and `IQ1_M`.
const IQ1_DELTA: f32 = 0.125;

/// 4-bit codes. 32 numbers share a scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Iq4Nl {
    d: [u8; 2],
    qs: [u8; 16],
}

impl QuantBlock<32> for Iq4Nl {
    const ENCODING: Encoding = Encoding::Iq4Nl;

    fn numbers(&self) -> [f32; 32] {
        let d = scale(self.d);
        from_fn(|i| d * IQ4_GRID[usize::from(legacy::nibble(&self.qs, i))])
    }
}

/// 4-bit codes; 32 numbers share a 6-bit scale less 32.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Iq4Xs {
    d: [u8; 2],
    scales_h: [u8; 2],
    scales_l: [u8; 4],
    qs: [u8; 128],
}

impl QuantBlock<256> for Iq4Xs {
    const ENCODING: Encoding = Encoding::Iq4Xs;

    fn numbers(&self) -> [f32; 256] {
        let d = scale(self.d);
        let scales: [f32; 8] = from_fn(|s| {
            let low = bits(self.scales_l[s / 2], 4 * (s % 2), 15);
            let high = bits(self.scales_h[s / 4], 2 * (s % 4), 3);
            d * (f32::from(low | (high << 4)) - 32.0)
        });
        from_fn(|i| {
            let q = bits(self.qs[16 * (i / 32) + i % 16], 4 * (i / 16 % 2), 15);
            scales[i / 32] * IQ4_GRID[usize::from(q)]
        })
    }
}

/// 8-bit codes of 8 numbers. 32 numbers share a word of four 7-bit sign codes and a 4-bit scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Iq2Xxs {
    d: [u8; 2],
    qs: [Iq2XxsGroup; 8],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Iq2XxsGroup {
    codes: [u8; 4],
    signs_and_scale: [u8; 4],
}

impl QuantBlock<256> for Iq2Xxs {
    const ENCODING: Encoding = Encoding::Iq2Xxs;

    fn numbers(&self) -> [f32; 256] {
        let d = scale(self.d);
        from_fn(|i| {
            let group = self.qs[i / 32];
            let word = u32::from_le_bytes(group.signs_and_scale);
            let row = grids::IQ2_XXS[usize::from(group.codes[i / 8 % 4])];
            let number = IQ2_GRID[eighth(row, i)];
            quarter_scale(d, (word >> 28) as u8) * signed(number, word_signs(word, i), i)
        })
    }
}

/// 9-bit codes of 8 numbers, beside a 7-bit sign code; 16 numbers share a 4-bit scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Iq2Xs {
    d: [u8; 2],
    qs: [[u8; 2]; 32],
    scales: [u8; 8],
}

impl QuantBlock<256> for Iq2Xs {
    const ENCODING: Encoding = Encoding::Iq2Xs;

    fn numbers(&self) -> [f32; 256] {
        let d = scale(self.d);
        from_fn(|i| {
            let code = u16::from_le_bytes(self.qs[i / 8]);
            let number = IQ2_GRID[eighth(grids::IQ2_XS[usize::from(code & 511)], i)];
            let s = bits(self.scales[i / 32], 4 * (i / 16 % 2), 15);
            quarter_scale(d, s) * signed(number, sign_code((code >> 9) as u8), i)
        })
    }
}

/// 10-bit codes of 8 numbers and their 8 signs; 16 numbers share a 4-bit scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Iq2S {
    d: [u8; 2],
    qs: [u8; 32],
    signs: [u8; 32],
    qh: [u8; 8],
    scales: [u8; 8],
}

impl QuantBlock<256> for Iq2S {
    const ENCODING: Encoding = Encoding::Iq2S;

    fn numbers(&self) -> [f32; 256] {
        let d = scale(self.d);
        from_fn(|i| {
            let high = bits(self.qh[i / 32], 2 * (i / 8 % 4), 3);
            let code = u16::from_le_bytes([self.qs[i / 8], high]);
            let number = IQ2_GRID[eighth(grids::IQ2_S[usize::from(code)], i)];
            let s = bits(self.scales[i / 32], 4 * (i / 16 % 2), 15);
            quarter_scale(d, s) * signed(number, self.signs[i / 8], i)
        })
    }
}

/// 8-bit codes of 4 numbers; signs and scales as in `IQ2_XXS`, but in a field of their own.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Iq3Xxs {
    d: [u8; 2],
    qs: [u8; 64],
    signs_and_scales: [[u8; 4]; 8],
}

impl QuantBlock<256> for Iq3Xxs {
    const ENCODING: Encoding = Encoding::Iq3Xxs;

    fn numbers(&self) -> [f32; 256] {
        let d = scale(self.d);
        from_fn(|i| {
            let word = u32::from_le_bytes(self.signs_and_scales[i / 32]);
            let row = grids::IQ3_XXS[usize::from(self.qs[i / 4])];
            let number = IQ3_XXS_GRID[fourth(row, i)];
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            scale * signed(number, word_signs(word, i), i)
        })
    }
}

/// 9-bit codes of 4 numbers and their signs; 32 numbers share a 4-bit scale.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Iq3S {
    d: [u8; 2],
    qs: [u8; 64],
    qh: [u8; 8],
    signs: [u8; 32],
    scales: [u8; 4],
}

impl QuantBlock<256> for Iq3S {
    const ENCODING: Encoding = Encoding::Iq3S;

    fn numbers(&self) -> [f32; 256] {
        let d = scale(self.d);
        from_fn(|i| {
            let high = bits(self.qh[i / 32], i / 4 % 8, 1);
            let code = u16::from_le_bytes([self.qs[i / 4], high]);
            let number = IQ3_S_GRID[fourth(grids::IQ3_S[usize::from(code)], i)];
            let s = bits(self.scales[i / 64], 4 * (i / 32 % 2), 15);
            d * (1.0 + 2.0 * f32::from(s)) * signed(number, self.signs[i / 8], i)
        })
    }
}

/// 11-bit codes of 8 numbers; 32 numbers share a 3-bit scale and the sign of what is added to them.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Iq1S {
    d: [u8; 2],
    qs: [u8; 32],
    qh: [[u8; 2]; 8],
}

impl QuantBlock<256> for Iq1S {
    const ENCODING: Encoding = Encoding::Iq1S;

    fn numbers(&self) -> [f32; 256] {
        let d = scale(self.d);
        from_fn(|i| {
            let qh = u16::from_le_bytes(self.qh[i / 32]);
            let high = (qh >> (3 * (i / 8 % 4)) & 7) as u8;
            let scale = d * (2.0 * f32::from(qh >> 12 & 7) + 1.0);
            let negative = qh & 0x8000 != 0;
            scale * iq1_number(self.qs[i / 8], high, negative, i)
        })
    }
}

/// 11-bit codes of 8 numbers with the sign of what is added to them; 16 numbers share a 3-bit scale.
///
/// The f16 scale lies in the upper 4 bits of the four words that hold, below, four 3-bit scales each.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(super) struct Iq1M {
    qs: [u8; 32],
    qh: [u8; 16],
    scales: [[u8; 2]; 4],
}

impl QuantBlock<256> for Iq1M {
    const ENCODING: Encoding = Encoding::Iq1M;

    fn numbers(&self) -> [f32; 256] {
        let words = self.scales.map(u16::from_le_bytes);
        let d = words
            .iter()
            .rev()
            .fold(0, |d: u16, word| (d << 4) | (word >> 12));
        let d = scale(d.to_le_bytes());
        from_fn(|i| {
            let qh = bits(self.qh[i / 16], 4 * (i / 8 % 2), 15);
            let s = words[i / 64] >> (3 * (i / 16 % 4)) & 7;
            let scale = d * (2.0 * f32::from(s) + 1.0);
            scale * iq1_number(self.qs[i / 8], qh & 7, qh & 8 != 0, i)
        })
    }
}

fn iq1_number(low: u8, high: u8, negative: bool, i: usize) -> f32 {
    let row = grids::IQ1_S[usize::from(u16::from_le_bytes([low, high]))];
    let delta = if negative { -IQ1_DELTA } else { IQ1_DELTA };
    IQ1_GRID[eighth(row, i)] + delta
}

/// Index of number `i % 8` in a row of 8.
fn eighth(row: u16, i: usize) -> usize {
    usize::from(row >> (2 * (i % 8)) & 3)
}

/// Index of number `i % 4` in a row of 4.
fn fourth(row: u16, i: usize) -> usize {
    usize::from(row >> (4 * (i % 4)) & 7)
}

/// The scale of the `IQ2` formats.
fn quarter_scale(d: f32, s: u8) -> f32 {
    d * (0.5 + f32::from(s)) * 0.25
}

/// The signs of numbers `i / 8` of a group of 32, whose word holds four sign codes.
fn word_signs(word: u32, i: usize) -> u8 {
    sign_code((word >> (7 * (i / 8 % 4)) & 127) as u8)
}

/// The 8 signs that 7 bits stand for: an even number of them is minus.
fn sign_code(code: u8) -> u8 {
    code | ((code.count_ones() as u8 & 1) << 7)
}

/// `number`, negated if bit `i % 8` of `signs` is set.
fn signed(number: f32, signs: u8, i: usize) -> f32 {
    if bits(signs, i % 8, 1) == 1 {
        -number
    } else {
        number
    }
}
