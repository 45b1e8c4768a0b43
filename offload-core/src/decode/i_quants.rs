//! `IQ1_S` to `IQ4_XS`: integers chosen from codebooks, most of them rows of 4 or 8 at a time.

use std::array::from_fn;

use bytemuck::{Pod, Zeroable};

use super::{Machine, QuantBlock, bits, grids, legacy, scale};
use crate::encoding::Encoding;

const IQ1_GRID: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
const IQ2_GRID: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
const IQ3_XXS_GRID: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
const IQ3_S_GRID: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
const IQ4_GRID: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// [`IQ4_GRID`] as integers.
const IQ4_INTEGERS: [i8; 16] = [
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
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

    #[inline(always)]
    fn write<M: Machine>(&self, machine: M, numbers: &mut [f32; 32]) {
        write_iq4(machine, scale(self.d), &self.qs, numbers);
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
        let scales = self.unpacked_scales();
        from_fn(|i| {
            let q = bits(self.qs[16 * (i / 32) + i % 16], 4 * (i / 16 % 2), 15);
            scales[i / 32] * IQ4_GRID[usize::from(q)]
        })
    }

    #[inline(always)]
    fn write<M: Machine>(&self, machine: M, numbers: &mut [f32; 256]) {
        let shares = numbers.as_chunks_mut::<32>().0.iter_mut();
        for ((numbers, qs), scale) in shares
            .zip(self.qs.as_chunks::<16>().0)
            .zip(self.unpacked_scales())
        {
            write_iq4(machine, scale, qs, numbers);
        }
    }
}

impl Iq4Xs {
    fn unpacked_scales(&self) -> [f32; 8] {
        let d = scale(self.d);
        from_fn(|s| {
            let low = bits(self.scales_l[s / 2], 4 * (s % 2), 15);
            let high = bits(self.scales_h[s / 4], 2 * (s % 4), 3);
            d * (f32::from(low | (high << 4)) - 32.0)
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let d = scale(self.d);
        for (numbers, group) in numbers.as_chunks_mut::<32>().0.iter_mut().zip(&self.qs) {
            let word = u32::from_le_bytes(group.signs_and_scale);
            let scale = quarter_scale(d, (word >> 28) as u8);
            let rows = numbers.as_chunks_mut::<8>().0.iter_mut().zip(group.codes);
            for (k, (numbers, code)) in rows.enumerate() {
                let row = grids::IQ2_XXS[usize::from(code)];
                write_iq2(scale, row, word_signs(word, 8 * k), numbers);
            }
        }
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let d = scale(self.d);
        let rows = numbers.as_chunks_mut::<8>().0.iter_mut().zip(self.qs);
        for (i, (numbers, code)) in rows.enumerate() {
            let code = u16::from_le_bytes(code);
            let scale = quarter_scale(d, bits(self.scales[i / 4], 4 * (i / 2 % 2), 15));
            let row = grids::IQ2_XS[usize::from(code & 511)];
            write_iq2(scale, row, sign_code((code >> 9) as u8), numbers);
        }
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let d = scale(self.d);
        let rows = numbers.as_chunks_mut::<8>().0.iter_mut();
        for (i, numbers) in rows.enumerate() {
            let scale = quarter_scale(d, bits(self.scales[i / 4], 4 * (i / 2 % 2), 15));
            let code = u16::from_le_bytes([self.qs[i], bits(self.qh[i / 4], 2 * (i % 4), 3)]);
            write_iq2(
                scale,
                grids::IQ2_S[usize::from(code)],
                self.signs[i],
                numbers,
            );
        }
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let d = scale(self.d);
        let rows = numbers
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(self.qs.as_chunks::<2>().0);
        for (i, (numbers, codes)) in rows.enumerate() {
            let word = u32::from_le_bytes(self.signs_and_scales[i / 4]);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            let signs = word_signs(word, 8 * (i % 4));
            let [low, high] = codes.map(|code| u32::from(grids::IQ3_XXS[usize::from(code)]));
            for (k, number) in numbers.iter_mut().enumerate() {
                let code = (low | (high << 16)) >> (4 * k) & 7;
                // 4, 12, ... 52, and then 62.
                let magnitude = (4 + 8 * code + 2 * ((code + 1) >> 3)) as i32 as f32;
                *number = flipped(scale * magnitude, signs, k);
            }
        }
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let d = scale(self.d);
        let rows = numbers
            .as_chunks_mut::<8>()
            .0
            .iter_mut()
            .zip(self.qs.as_chunks::<2>().0);
        for (i, (numbers, codes)) in rows.enumerate() {
            let s = bits(self.scales[i / 8], 4 * (i / 4 % 2), 15);
            let scale = d * (1.0 + 2.0 * f32::from(s));
            let ninth = usize::from(bits(self.qh[i / 4], 2 * (i % 4), 3));
            let low = u32::from(grids::IQ3_S[usize::from(codes[0]) | ((ninth & 1) << 8)]);
            let high = u32::from(grids::IQ3_S[usize::from(codes[1]) | ((ninth >> 1) << 8)]);
            for (k, number) in numbers.iter_mut().enumerate() {
                let magnitude = (1 + 2 * ((low | (high << 16)) >> (4 * k) & 7)) as i32 as f32;
                *number = flipped(scale * magnitude, self.signs[i], k);
            }
        }
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

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let d = scale(self.d);
        let rows = numbers.as_chunks_mut::<8>().0.iter_mut().zip(self.qs);
        for (i, (numbers, low)) in rows.enumerate() {
            let qh = u16::from_le_bytes(self.qh[i / 4]);
            let scale = d * (2.0 * f32::from(qh >> 12 & 7) + 1.0);
            let high = (qh >> (3 * (i % 4)) & 7) as u8;
            let row = grids::IQ1_S[usize::from(u16::from_le_bytes([low, high]))];
            write_iq1(scale, row, iq1_delta(qh & 0x8000 != 0), numbers);
        }
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
        let (d, words) = self.scale_and_words();
        from_fn(|i| {
            let qh = bits(self.qh[i / 16], 4 * (i / 8 % 2), 15);
            let s = words[i / 64] >> (3 * (i / 16 % 4)) & 7;
            let scale = d * (2.0 * f32::from(s) + 1.0);
            scale * iq1_number(self.qs[i / 8], qh & 7, qh & 8 != 0, i)
        })
    }

    #[inline(always)]
    fn write<M: Machine>(&self, _: M, numbers: &mut [f32; 256]) {
        let (d, words) = self.scale_and_words();
        let rows = numbers.as_chunks_mut::<8>().0.iter_mut().zip(self.qs);
        for (i, (numbers, low)) in rows.enumerate() {
            let qh = bits(self.qh[i / 2], 4 * (i % 2), 15);
            let s = words[i / 8] >> (3 * (i / 2 % 4)) & 7;
            let scale = d * (2.0 * f32::from(s) + 1.0);
            let row = grids::IQ1_S[usize::from(u16::from_le_bytes([low, qh & 7]))];
            write_iq1(scale, row, iq1_delta(qh & 8 != 0), numbers);
        }
    }
}

impl Iq1M {
    fn scale_and_words(&self) -> (f32, [u16; 4]) {
        let words = self.scales.map(u16::from_le_bytes);
        let d = words
            .iter()
            .rev()
            .fold(0, |d: u16, word| (d << 4) | (word >> 12));
        (scale(d.to_le_bytes()), words)
    }
}

fn iq1_number(low: u8, high: u8, negative: bool, i: usize) -> f32 {
    let row = grids::IQ1_S[usize::from(u16::from_le_bytes([low, high]))];
    IQ1_GRID[eighth(row, i)] + iq1_delta(negative)
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

/// 32 numbers of 4-bit codes.
#[inline(always)]
fn write_iq4<M: Machine>(machine: M, scale: f32, qs: &[u8; 16], numbers: &mut [f32; 32]) {
    let low = machine.look_up(&IQ4_INTEGERS, qs.map(|q| q & 15));
    let high = machine.look_up(&IQ4_INTEGERS, qs.map(|q| q >> 4));
    for (i, (low, high)) in low.into_iter().zip(high).enumerate() {
        numbers[i] = scale * f32::from(low);
        numbers[i + 16] = scale * f32::from(high);
    }
}

/// `number` with its sign changed if bit `i` of `signs` is set.
#[inline(always)]
fn flipped(number: f32, signs: u8, i: usize) -> f32 {
    f32::from_bits(number.to_bits() ^ ((u32::from(signs) >> i) << 31))
}

/// A row of an `IQ2` codebook.
#[inline(always)]
fn write_iq2(scale: f32, row: u16, signs: u8, numbers: &mut [f32; 8]) {
    for (k, number) in numbers.iter_mut().enumerate() {
        let code = u32::from(row) >> (2 * k) & 3;
        // 8, 25, 43: no row has a fourth.
        let magnitude = (8 + 17 * code + (code >> 1)) as i32 as f32;
        *number = flipped(scale * magnitude, signs, k);
    }
}

/// A row of the `IQ1` codebook.
#[inline(always)]
fn write_iq1(scale: f32, row: u16, delta: f32, numbers: &mut [f32; 8]) {
    for (k, number) in numbers.iter_mut().enumerate() {
        let code = (u32::from(row) >> (2 * k) & 3) as i32;
        *number = scale * ((code as f32 - 1.0) + delta);
    }
}

fn iq1_delta(negative: bool) -> f32 {
    if negative { -IQ1_DELTA } else { IQ1_DELTA }
}
